"""Image files in folders."""

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


EXTENSIONS |= {".avif"} if features.check("avif") else set()  # with a recent Pillow


EXTENSIONS |= {".heic", ".heif"} if find_spec("pillow_heif") else set()  # with the optional library


SYSTEM_FOLDERS = {"@eaDir", "__MACOSX"}  # thumbnails and leftovers that a NAS or macOS puts beside pictures


def find_images(root: Path, flag: str, extensions: Collection[str] = EXTENSIONS) -> list[Path]:
    """All picture files below `root`, of given extensions, in the order of their names.

    Hidden folders and files, and the folders that systems make for themselves, are left out; so is what is
    no regular file, such as a pipe. A note on the standard error names the folders.

    Raises:
        UserError: naming `flag`, if the folder is missing or holds no picture.
    """
    if not root.is_dir():
        raise UserError(f"{flag}: no such folder: {root}")
    found: list[Path] = []
    left_out: set[str] = set()
    visited: set[str] = set()  # a link may lead back to where it stands
    for folder, subfolders, names in os.walk(root, followlinks=True):
        visited.add(os.path.realpath(folder))
        hidden = {name for name in subfolders if name.startswith(".") or name in SYSTEM_FOLDERS}
        left_out |= hidden
        subfolders[:] = [
            name
            for name in subfolders
            if name not in hidden and os.path.realpath(Path(folder, name)) not in visited
        ]
        found += [
            path for name in names if not name.startswith(".") and (path := Path(folder, name)).is_file()
        ]
    if left_out:
        print(
            f"note: {flag} {root}: hidden and system folders are skipped: {', '.join(sorted(left_out))}",
            file=sys.stderr,
        )
    images = sorted(path for path in found if path.suffix.lower() in extensions)
    if not images:
        kinds = ", ".join(sorted({path.suffix.lower() or path.name for path in found})[:5]) or "nothing"
        raise UserError(
            f"{flag}: no images in {root} (found {kinds}; looked for {', '.join(sorted(extensions))})"
        )
    return images


MAX_UNREADABLE = 0.01  # share of a folder


SAMPLE = "sample"  # reserved root: crops of photographs that the scikit-image wheel carries


SAMPLE_CROPS = 100


SAMPLE_PHOTOGRAPHS = {
    "train": ("chelsea.png", "coffee.png", "hubble_deep_field.jpg", "motorcycle_left.png", "retina.jpg"),
    "val": ("astronaut.png", "rocket.jpg"),
}


def too_small(short_side: float, image_size: int, max_enlarge: float) -> bool:
    """Whether `--max_enlarge` leaves a picture out of training at a size; at 0 it leaves out none."""
    return 0 < max_enlarge * short_side < image_size


def all_too_small(root: str, image_size: int) -> UserError:
    """The error where `--max_enlarge` leaves nothing."""
    return UserError(f"--max_enlarge: every picture in {root} is too small for {image_size} pixels")


def name_digest(name: str) -> int:
    """32 bits that stand for a file's name, which need not be UTF-8."""
    return zlib.crc32(name.encode(errors="surrogatepass"))


def choose(count: int, max_images: int | None, seed: int) -> list[int]:
    """Indices of at most `max_images` of so many images, in order, chosen by the seed; None for all."""
    if max_images is None or max_images >= count:
        return list(range(count))
    return np.sort(np.random.default_rng(seed).permutation(count)[:max_images]).tolist()


def list_root(root: str, training: bool, flag: str) -> tuple[list[Path], list[str]]:
    """The files of a root and the name of each: its path in the root, without extension if that is unique."""
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
    repeated = Counter(names)  # in several roots
    return paths, [f"{i}-{name}" if repeated[name] > 1 else name for i, name in enumerate(names)]
