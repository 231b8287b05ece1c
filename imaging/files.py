"""Image files in folders."""

import os
import sys
from collections.abc import Collection
from importlib.util import find_spec
from pathlib import Path

from PIL import features

from utils import UserError

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
