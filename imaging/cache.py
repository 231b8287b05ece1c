"""Pictures for training: decoded once, scaled, and kept in one file that all processes share."""

import hashlib
import itertools
import json
import math
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from tqdm import tqdm

from imaging.read import open_header, read_scaled, read_scaled_mask
from utils import UserError, atomic_path

FORMAT = 3  # of what a cache file holds; another number rebuilds all
IMAGES, MASKS, INVERTED_MASKS = "images", "masks", "inverted masks"  # what files can hold
BLOCK = 256  # pictures decoded at a time, and held in memory together


def decode(path: Path, short_side: int, kind: str) -> tuple[np.ndarray, dict[str, str]]:
    """The pixels of a file as of `open_pixels`, and what is to be said of a mask."""
    if kind == IMAGES:
        return read_scaled(path, short_side), {}
    return read_scaled_mask(path, short_side, invert=kind == INVERTED_MASKS)


class PixelCache:
    """Decoded images or masks in one file of raw bytes, mapped into memory and shared by all processes.

    Built at the first use by as many threads as there are processors; a second process waits for the first.
    The key is made of the files' names, sizes and times, and of what was asked for: a changed file means a
    new cache.

    Args:
        paths, short_side, kind, label: as of `open_pixels`.
        folder: where cache files live.

    Attributes:
        readable: indices into `paths` of the files that could be decoded.
        unreadable: one line for each that could not.
        findings: of each readable mask, what a user should know, as of `read_scaled_mask`.

    Raises:
        UserError: if the folder cannot be written.
    """

    def __init__(self, paths: list[Path], short_side: int, kind: str, folder: Path, label: str) -> None:
        stats = [
            (str(path.resolve()), s.st_size, s.st_mtime_ns, s.st_ctime_ns)
            for path in paths
            for s in [path.stat()]
        ]
        key = hashlib.sha256(json.dumps([FORMAT, short_side, kind, stats]).encode()).hexdigest()[:24]
        self.file = folder / f"{key}.pixels"
        index_file = folder / f"{key}.json"
        try:
            if not (index_file.exists() and self.file.exists()):
                folder.mkdir(parents=True, exist_ok=True)
                with FileLock(folder / f"{key}.lock"):
                    if not (index_file.exists() and self.file.exists()):  # another process was faster
                        for leftover in folder.glob(f".{key}.*.tmp"):  # of one that was killed
                            leftover.unlink()
                        index = self._build(paths, short_side, kind, label)
                        with atomic_path(index_file) as temporary:
                            temporary.write_text(json.dumps(index))
            index = json.loads(index_file.read_text())
        except OSError as error:
            raise UserError(
                f"--cache_dir: cannot keep decoded images in {folder}: {error.strerror} (or use --no_cache)"
            ) from None
        self.readable: list[int] = index["readable"]
        self.unreadable: list[str] = index["unreadable"]
        self.findings: list[dict[str, str]] = index["findings"]
        self.shapes: list[tuple[int, ...]] = [tuple(shape) for shape in index["shapes"]]
        self.offsets = np.cumsum([0] + [math.prod(shape) for shape in self.shapes])
        self._pixels: np.ndarray | None = None

    def _build(self, paths: list[Path], short_side: int, kind: str, label: str) -> dict[str, list]:
        index: dict[str, list] = {"readable": [], "unreadable": [], "findings": [], "shapes": []}
        with atomic_path(self.file) as temporary, open(temporary, "wb") as file:
            for i, decoded in enumerate(decode_all(paths, short_side, kind, label)):
                if isinstance(decoded, UserError):
                    index["unreadable"].append(str(decoded))
                    continue
                pixels, findings = decoded
                file.write(pixels.tobytes())
                index["readable"].append(i)
                index["findings"].append(findings)
                index["shapes"].append(pixels.shape)
        return index

    def __len__(self) -> int:
        return len(self.shapes)

    def __getitem__(self, i: int) -> np.ndarray:
        """The i-th readable image, (H, W, 3) uint8, RGB, or mask, (H, W) uint8 in {0, 1}; read only."""
        if self._pixels is None:  # opened in each process, never pickled
            self._pixels = np.memmap(self.file, np.uint8, mode="r")
        return self._pixels[self.offsets[i] : self.offsets[i + 1]].reshape(self.shapes[i])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pixels": None}


def decode_all(
    paths: list[Path], short_side: int, kind: str, label: str
) -> Iterator[tuple[np.ndarray, dict[str, str]] | UserError]:
    """What `decode` gives of each file, in order, by several threads; for an unreadable one, its error."""

    def try_decode(path: Path) -> tuple[np.ndarray, dict[str, str]] | UserError:
        try:
            return decode(path, short_side, kind)
        except UserError as error:
            return error

    bar = tqdm(total=len(paths), desc=f"decoding {label}", unit="image", leave=False, disable=None)
    with bar, ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow and OpenCV decode and scale side by side
        for start in range(0, len(paths), BLOCK):
            for decoded in pool.map(try_decode, paths[start : start + BLOCK]):
                bar.update()
                yield decoded


class UncachedPixels:
    """Images or masks decoded at every use, for a machine without room for a cache; else like `PixelCache`.

    What is no image is found at once, by its header; masks are decoded once for their findings. A file that
    turns out damaged later is replaced by the next one in the list, with a warning.
    """

    def __init__(self, paths: list[Path], short_side: int, kind: str, label: str) -> None:
        self.short_side, self.kind = short_side, kind
        self.readable: list[int] = []
        self.unreadable: list[str] = []
        self.findings: list[dict[str, str]] = []
        looked = map(self._look, paths) if kind == IMAGES else decode_all(paths, short_side, kind, label)
        for i, found in enumerate(looked):
            if isinstance(found, UserError):
                self.unreadable.append(str(found))
            else:
                self.readable.append(i)
                self.findings.append(found[1])
        self.paths = [paths[i] for i in self.readable]
        self.warned: set[int] = set()

    @staticmethod
    def _look(path: Path) -> tuple[None, dict[str, str]] | UserError:
        try:
            open_header(path)
        except UserError as error:
            return error
        return None, {}

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> np.ndarray:
        """The i-th image, (H, W, 3) uint8, RGB, or mask, (H, W) uint8 in {0, 1}.

        Raises:
            UserError: if neither it nor any other can be read.
        """
        for k in itertools.chain(range(i, len(self)), range(i)):
            try:
                return decode(self.paths[k], self.short_side, self.kind)[0]
            except UserError as error:
                if k not in self.warned:
                    print(f"warning: {error}; the next image stands in for it", file=sys.stderr)
                self.warned.add(k)
        raise UserError("no image can be read any more")


def open_pixels(
    paths: list[Path], short_side: int, kind: str, cache_dir: str | Path | None, label: str
) -> PixelCache | UncachedPixels:
    """Images or masks that will be read many times.

    Args:
        paths: the files.
        short_side: to which they are scaled, in pixels.
        kind: what they hold, which is how they are read: `IMAGES`, `MASKS` or `INVERTED_MASKS`.
        cache_dir: where decoded images are kept; "" for the user's cache folder, None to keep none.
        label: what the progress bar calls them.
    """
    if cache_dir is None:
        return UncachedPixels(paths, short_side, kind, label)
    return PixelCache(paths, short_side, kind, Path(cache_dir or default_cache_dir()), label)


def default_cache_dir() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "msse-inpainting"
