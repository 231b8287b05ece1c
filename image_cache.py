"""Pictures for training: decoded once, scaled, and kept in one file that all processes share."""

import hashlib
import itertools
import json
import math
import os
import struct
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np
from filelock import FileLock
from PIL import Image, ImageOps
from tqdm import tqdm

from cli import UserError
from files import atomic_path

FORMAT = 2  # of what a cache file holds; another number rebuilds all
MAX_ASPECT = 4  # long side to short side of a kept picture
BLOCK = 256  # pictures decoded at a time, and held in memory together


def read_image(path: Path | BinaryIO, background: str = "white", least_side: int = 0) -> np.ndarray:
    """Decode a picture of any common kind: upright by its EXIF tag, over `background` where transparent.

    Args:
        path: a file, or an open one whose text names it.
        least_side: pixels that the shorter side needs; a JPEG of more may come at a half, a quarter or an
            eighth of its size. 0 for the whole size.

    Returns:
        (H, W, 3) uint8, RGB. Sixteen-bit grey is rounded to eight bits, sixteen-bit colour cut.

    Raises:
        UserError: if the file is missing or is not a readable picture.
    """
    try:
        with Image.open(path) as file:
            if least_side and file.format == "JPEG" and least_side < min(file.size):
                scale = least_side / min(file.size)
                file.draft(None, (math.ceil(file.width * scale), math.ceil(file.height * scale)))
            picture = ImageOps.exif_transpose(file)
            picture.load()
    except FileNotFoundError:
        raise UserError(f"no such file: {path}") from None
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError) as error:
        raise UserError(f"not a readable image: {path} ({str(error).splitlines()[0][:120]})") from None
    if picture.mode == "I" or picture.mode.startswith("I;16"):
        grey = np.round(np.asarray(picture, dtype=np.float64).clip(0, 65535) / 257).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, background), picture)
    return np.asarray(picture.convert("RGB"))


def short_side_of(path: Path) -> float:
    """Pixels of a picture's shorter side, from its header; ∞ if that is unreadable: decoding will say why."""
    try:
        with Image.open(path) as file:
            return min(file.size)
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError):
        return math.inf


def read_mask(path: Path, invert: bool = False) -> tuple[np.ndarray, float]:
    """Read a mask file: white, from 50 % up, is missing; black is, if `invert`. Transparent is black.

    Returns:
        (H, W) uint8 in {0, 1}, 1 = missing, and the share of grey pixels, which were neither (0 is clean).
    """
    grey = read_image(path, background="black").mean(axis=2)
    mask = (grey >= 127.5) != invert
    return mask.astype(np.uint8), float(np.mean((grey > 2) & (grey < 253)))


def resize_image(image: np.ndarray, short_side: int) -> np.ndarray:
    """Scale (H, W, 3) uint8 so that its shorter side is `short_side`: areas averaged down, bicubic up."""
    scale = short_side / min(image.shape[:2])
    if scale == 1:
        return image
    height, width = (max(short_side, round(side * scale)) for side in image.shape[:2])
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)


def read_scaled(path: Path | BinaryIO, short_side: int, background: str) -> np.ndarray:
    """Decode a picture and scale its shorter side; of one longer than `MAX_ASPECT` widths, keep the middle.

    Returns:
        (H, W, 3) uint8, RGB.

    Raises:
        UserError: as `read_image`.
    """
    image = read_image(path, background, short_side)
    limit = MAX_ASPECT * min(image.shape[:2])
    top, left = (max(0, side - limit) // 2 for side in image.shape[:2])
    return resize_image(image[top : top + limit, left : left + limit], short_side)


class PixelCache:
    """Decoded images in one file of raw bytes, mapped into memory and shared by all processes.

    Built at the first use by as many threads as there are processors; a second process waits for the first.
    The key is made of the files' names, sizes and times: a changed file means a new cache.

    Args:
        paths: the pictures.
        short_side: to which they are scaled.
        background: of transparent pictures.
        folder: where cache files live.
        label: what the progress bar calls them.

    Attributes:
        readable: indices into `paths` of the images that could be decoded.
        unreadable: one line for each that could not.

    Raises:
        UserError: if the folder cannot be written.
    """

    def __init__(self, paths: list[Path], short_side: int, background: str, folder: Path, label: str) -> None:
        stats = [
            (str(path.resolve()), s.st_size, s.st_mtime_ns, s.st_ctime_ns)
            for path in paths
            for s in [path.stat()]
        ]
        key = hashlib.sha256(json.dumps([FORMAT, short_side, background, stats]).encode()).hexdigest()[:24]
        self.file = folder / f"{key}.pixels"
        index_file = folder / f"{key}.json"
        try:
            if not (index_file.exists() and self.file.exists()):
                folder.mkdir(parents=True, exist_ok=True)
                with FileLock(folder / f"{key}.lock"):
                    if not (index_file.exists() and self.file.exists()):  # another process was faster
                        for leftover in folder.glob(f".{key}.*.tmp"):  # of one that was killed
                            leftover.unlink()
                        index = self._build(paths, short_side, background, label)
                        with atomic_path(index_file) as temporary:
                            temporary.write_text(json.dumps(index))
            index = json.loads(index_file.read_text())
        except OSError as error:
            raise UserError(
                f"--cache_dir: cannot keep decoded images in {folder}: {error.strerror} (or use --no_cache)"
            ) from None
        self.readable: list[int] = index["readable"]
        self.unreadable: list[str] = index["unreadable"]
        self.shapes: list[tuple[int, int]] = [tuple(shape) for shape in index["shapes"]]
        self.offsets = np.cumsum([0] + [3 * height * width for height, width in self.shapes])
        self._pixels: np.ndarray | None = None

    def _build(self, paths: list[Path], short_side: int, background: str, label: str) -> dict[str, list]:
        index: dict[str, list] = {"readable": [], "unreadable": [], "shapes": []}
        with atomic_path(self.file) as temporary, open(temporary, "wb") as file:
            for i, image in enumerate(decode_all(paths, short_side, background, label)):
                if isinstance(image, UserError):
                    index["unreadable"].append(str(image))
                    continue
                file.write(image.tobytes())
                index["readable"].append(i)
                index["shapes"].append(image.shape[:2])
        return index

    def __len__(self) -> int:
        return len(self.shapes)

    def __getitem__(self, i: int) -> np.ndarray:
        """The i-th readable image, (H, W, 3) uint8, RGB, read only."""
        if self._pixels is None:  # opened in each process, never pickled
            self._pixels = np.memmap(self.file, np.uint8, mode="r")
        height, width = self.shapes[i]
        return self._pixels[self.offsets[i] : self.offsets[i + 1]].reshape(height, width, 3)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pixels": None}


def decode_all(
    paths: list[Path], short_side: int, background: str, label: str
) -> Iterator[np.ndarray | UserError]:
    """The pictures as of `read_scaled`, in order, by several threads; for an unreadable one, its error."""

    def decode(path: Path) -> np.ndarray | UserError:
        try:
            return read_scaled(path, short_side, background)
        except UserError as error:
            return error

    bar = tqdm(total=len(paths), desc=f"decoding {label}", unit="image", leave=False, disable=None)
    with bar, ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow and OpenCV decode and scale side by side
        for start in range(0, len(paths), BLOCK):
            for image in pool.map(decode, paths[start : start + BLOCK]):
                bar.update()
                yield image


class UncachedPixels:
    """Images decoded at every use, for a machine without room for a cache; otherwise like `PixelCache`.

    What is no picture is found at once, by its header. A file that turns out damaged later is replaced by
    the next one in the list, with a warning.
    """

    def __init__(self, paths: list[Path], short_side: int, background: str) -> None:
        self.short_side, self.background = short_side, background
        self.readable, self.unreadable = [], []
        for i, path in enumerate(paths):
            try:
                with Image.open(path):
                    self.readable.append(i)
            except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
                self.unreadable.append(f"not a readable image: {path} ({str(error).splitlines()[0][:120]})")
        self.paths = [paths[i] for i in self.readable]
        self.warned: set[int] = set()

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> np.ndarray:
        """The i-th image, (H, W, 3) uint8, RGB.

        Raises:
            UserError: if neither it nor any other can be read.
        """
        for k in itertools.chain(range(i, len(self)), range(i)):
            try:
                return read_scaled(self.paths[k], self.short_side, self.background)
            except UserError as error:
                if k not in self.warned:
                    print(f"warning: {error}; the next image stands in for it", file=sys.stderr)
                self.warned.add(k)
        raise UserError("no image can be read any more")


def open_pixels(
    paths: list[Path], short_side: int, background: str, cache_dir: str | Path | None, label: str
) -> PixelCache | UncachedPixels:
    """Pictures to be read many times; `cache_dir` is "" for the user's cache folder, None for no cache."""
    if cache_dir is None:
        return UncachedPixels(paths, short_side, background)
    return PixelCache(paths, short_side, background, Path(cache_dir or default_cache_dir()), label)


def default_cache_dir() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "msse-inpainting"
