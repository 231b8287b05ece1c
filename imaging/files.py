"""Image files in folders: search, names, subsets, and the limits that a training folder must keep."""

import os
import sys
import zlib
from collections import Counter
from collections.abc import Collection
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import skimage
from PIL import features

from utils import UserError, split_roots

EXTENSIONS = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}
EXTENSIONS |= {".avif"} if features.check("avif") else set()  # needs a recent Pillow
EXTENSIONS |= {".heic", ".heif"} if find_spec("pillow_heif") else set()
SYSTEM_FOLDERS = {"@eaDir", "__MACOSX"}  # thumbnails and leftovers that a NAS or macOS puts beside images

SAMPLE = "sample"  # reserved root: crops of photographs that the scikit-image wheel carries
SAMPLE_CROPS = 100
SAMPLE_PHOTOGRAPHS = {
    "train": ("chelsea.png", "coffee.png", "hubble_deep_field.jpg", "motorcycle_left.png", "retina.jpg"),
    "val": ("astronaut.png", "rocket.jpg"),
}

MAX_UNREADABLE = 0.01  # share of a folder's images


def find_images(root: Path, flag: str, extensions: Collection[str] = EXTENSIONS) -> list[Path]:
    """All image files below `root` that have one of the extensions, sorted by path.

    Hidden files and folders, system folders, and anything but regular files, such as pipes, are left out.
    A note on stderr names the folders that were skipped.

    Raises:
        UserError: naming `flag`, if the folder is missing or holds no image.
    """
    if not root.is_dir():
        raise UserError(f"{flag}: no such folder: {root}")
    found: list[Path] = []
    skipped: set[str] = set()
    visited: set[str] = set()  # a link may lead back to a folder above it
    for folder, subfolders, names in os.walk(root, followlinks=True):
        visited.add(os.path.realpath(folder))
        hidden = {name for name in subfolders if name.startswith(".") or name in SYSTEM_FOLDERS}
        skipped |= hidden
        subfolders[:] = [
            name
            for name in subfolders
            if name not in hidden and os.path.realpath(Path(folder, name)) not in visited
        ]
        found += [
            path for name in names if not name.startswith(".") and (path := Path(folder, name)).is_file()
        ]
    if skipped:
        folders = ", ".join(sorted(skipped))
        print(f"note: {flag} {root}: hidden and system folders are skipped: {folders}", file=sys.stderr)
    images = sorted(path for path in found if path.suffix.lower() in extensions)
    if not images:
        kinds = ", ".join(sorted({path.suffix.lower() or path.name for path in found})[:5]) or "nothing"
        raise UserError(
            f"{flag}: no images in {root} (found {kinds}; looked for {', '.join(sorted(extensions))})"
        )
    return images


def list_root(root: str, training: bool, flag: str) -> tuple[list[Path], list[str]]:
    """Image files of a root, and their names: the path in the root, without extension where that is unique.

    Args:
        root: a folder, several joined by the system's path separator, or `sample`.
        training: whether `sample` means its photographs for training or those for validation.
    """
    if root == SAMPLE:
        folder = Path(skimage.__file__).parent / "data"
        photographs = SAMPLE_PHOTOGRAPHS["train" if training else "val"]
        paths = [folder / photographs[i % len(photographs)] for i in range(SAMPLE_CROPS)]
        return paths, [f"{path.stem}-{i:02d}" for i, path in enumerate(paths)]
    paths, files = [], []
    for part in split_roots(root):
        images = find_images(Path(part), flag)
        paths += images
        files += [path.relative_to(part) for path in images]
    stems = Counter(file.with_suffix("") for file in files)
    names = [(file if stems[file.with_suffix("")] > 1 else file.with_suffix("")).as_posix() for file in files]
    repeated = Counter(names)  # the same name in several roots
    return paths, [f"{i}-{name}" if repeated[name] > 1 else name for i, name in enumerate(names)]


def choose_subset(count: int, max_images: int | None, seed: int) -> list[int]:
    """Ascending indices of at most `max_images` out of `count` images, drawn with `seed`; None for all."""
    if max_images is None or max_images >= count:
        return list(range(count))
    return np.sort(np.random.default_rng(seed).permutation(count)[:max_images]).tolist()


def name_digest(name: str) -> int:
    """CRC-32 of a file's name, which need not be UTF-8."""
    return zlib.crc32(name.encode(errors="surrogatepass"))


def too_small(short_side: float, image_size: int, max_enlarge: float) -> bool:
    """Whether an image would be enlarged to `image_size` by more than `max_enlarge`; 0 allows any factor."""
    return 0 < max_enlarge * short_side < image_size


def require_large_images(count: int, root: str, image_size: int) -> None:
    """Raise a `UserError` if `--max_enlarge` has left no image of a root."""
    if count == 0:
        raise UserError(f"--max_enlarge: every image in {root} is too small for {image_size} pixels")


def require_readable(
    unreadable: list[str], count: int, root: str, flag: str, allowed: float = MAX_UNREADABLE
) -> None:
    """Raise a `UserError` if more than the allowed share of `count` images is unreadable, or all are.

    Args:
        unreadable: one line for each.
    """
    if unreadable and (len(unreadable) == count or len(unreadable) > allowed * count):
        raise UserError(
            f"{flag}: {len(unreadable)} of {count} images in {root} cannot be read, "
            f"more than {MAX_UNREADABLE:.0%} allowed; the first: {unreadable[0]}"
        )
