"""Images and masks decoded once, scaled, and kept in one file that all processes share."""

import hashlib
import itertools
import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from filelock import FileLock
from tqdm import tqdm

from imaging.mask_file import Findings
from imaging.read import open_header, read_scaled, read_scaled_mask
from utils import UserError, atomic_path

FORMAT = 3  # version of the cache files; another number rebuilds them
IMAGES, MASKS, INVERTED_MASKS = "images", "masks", "inverted masks"  # kinds of files
BLOCK = 256  # images decoded at a time, and held in memory together
T = TypeVar("T")


def open_pixels(
    paths: list[Path], short_side: int, kind: str, cache_dir: str | Path | None, label: str
) -> "PixelCache | UncachedPixels":
    """Images or masks that will be read many times.

    Args:
        paths: their files.
        short_side: pixels that the shorter side is scaled to.
        kind: `IMAGES`, `MASKS` or `INVERTED_MASKS`.
        cache_dir: folder of the decoded images; "" for the user's cache folder, None to cache nothing.
        label: name in the progress bar.
    """
    if cache_dir is None:
        return UncachedPixels(paths, short_side, kind, label)
    return PixelCache(paths, short_side, kind, Path(cache_dir or default_cache_dir()), label)


def default_cache_dir() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "msse-inpainting"


def decode(path: Path, short_side: int, kind: str) -> tuple[np.ndarray, Findings]:
    """The scaled pixels of a file, and the findings on a mask; arguments are those of `open_pixels`."""
    if kind == IMAGES:
        return read_scaled(path, short_side), {}
    return read_scaled_mask(path, short_side, invert=kind == INVERTED_MASKS)


class PixelCache:
    """Decoded images or masks in one file of raw bytes, mapped into memory and shared by all processes.

    Built on first use by one thread per processor; a second process waits for the first. The key is a hash
    of the files' names, sizes and times, and of `short_side` and `kind`: a changed file makes a new cache.

    Args:
        paths, short_side, kind, label: see `open_pixels`.
        folder: folder of the cache files.

    Attributes:
        readable: indices into `paths` of the files that could be decoded.
        unreadable: one line for each file that could not.
        findings: the findings on each readable mask; empty for images.

    Raises:
        UserError: if the folder cannot be written.
    """

    def __init__(self, paths: list[Path], short_side: int, kind: str, folder: Path, label: str) -> None:
        stats = [
            (str(path.resolve()), status.st_size, status.st_mtime_ns, status.st_ctime_ns)
            for path in paths
            for status in [path.stat()]
        ]
        key = hashlib.sha256(json.dumps([FORMAT, short_side, kind, stats]).encode()).hexdigest()[:24]
        self.file = folder / f"{key}.pixels"
        index_file = folder / f"{key}.json"
        try:
            if not (index_file.exists() and self.file.exists()):
                folder.mkdir(parents=True, exist_ok=True)
                with FileLock(folder / f"{key}.lock"):
                    if not (index_file.exists() and self.file.exists()):  # another process may have built it
                        for leftover in folder.glob(f".{key}.*.tmp"):  # left by a process that was killed
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
        self.findings: list[Findings] = index["findings"]
        self.shapes: list[tuple[int, ...]] = [tuple(shape) for shape in index["shapes"]]
        self.offsets = np.cumsum([0] + [math.prod(shape) for shape in self.shapes])
        self._pixels: np.ndarray | None = None

    def _build(self, paths: list[Path], short_side: int, kind: str, label: str) -> dict[str, list]:
        """Decode the files into `self.file`; returns the content of the index file."""
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
) -> Iterator[tuple[np.ndarray, Findings] | UserError]:
    """Decode files in several threads; yields, in order, the results of `decode` or the errors it raises."""
    bar = tqdm(total=len(paths), desc=f"decoding {label}", unit="image", leave=False, disable=None)
    with bar, ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow and OpenCV release the GIL
        for start in range(0, len(paths), BLOCK):
            block = paths[start : start + BLOCK]
            for decoded in pool.map(lambda path: result_or_error(decode, path, short_side, kind), block):
                bar.update()
                yield decoded


def result_or_error(function: Callable[..., T], *args: Any) -> T | UserError:
    """Call a function, and return a `UserError` that it raises."""
    try:
        return function(*args)
    except UserError as error:
        return error


class UncachedPixels:
    """Images or masks decoded at every use, with the interface of `PixelCache`.

    Files that are no images are found at once by their headers; masks are decoded once for their findings.
    A file that turns out damaged later is replaced by the next one in the list, with a warning.
    """

    def __init__(self, paths: list[Path], short_side: int, kind: str, label: str) -> None:
        self.short_side, self.kind = short_side, kind
        self.readable: list[int] = []
        self.unreadable: list[str] = []
        self.findings: list[Findings] = []
        results: Iterable[tuple[Any, Any] | UserError]
        if kind == IMAGES:
            results = (result_or_error(open_header, path) for path in paths)
        else:
            results = decode_all(paths, short_side, kind, label)
        for i, result in enumerate(results):
            if isinstance(result, UserError):
                self.unreadable.append(str(result))
            else:
                self.readable.append(i)
                self.findings.append({} if kind == IMAGES else result[1])
        self.paths = [paths[i] for i in self.readable]
        self.warned: set[int] = set()

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
                    print(f"warning: {error}; the next image is used instead", file=sys.stderr)
                self.warned.add(k)
        raise UserError("no image can be read any more")
