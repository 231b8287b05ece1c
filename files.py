"""Picture files in folders, and files that are written whole or not at all."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cli import UserError

EXTENSIONS = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}


def is_shards(root: str) -> bool:
    """Whether a root names tar files, and not folders."""
    return any(part.endswith(".tar") for part in root.split(os.pathsep))


def find_images(root: Path, flag: str) -> list[Path]:
    """All picture files below `root`, in the order of their names.

    Raises:
        UserError: naming `flag`, if the folder is missing or holds no picture.
    """
    if not root.is_dir():
        raise UserError(f"{flag}: no such folder: {root}")
    found: list[Path] = []
    visited: set[str] = set()  # a link may lead back to where it stands
    for folder, subfolders, names in os.walk(root, followlinks=True):
        visited.add(os.path.realpath(folder))
        subfolders[:] = [name for name in subfolders if os.path.realpath(Path(folder, name)) not in visited]
        found += [
            path for name in names if not name.startswith(".") and (path := Path(folder, name)).is_file()
        ]
    images = sorted(path for path in found if path.suffix.lower() in EXTENSIONS)
    if not images:
        kinds = ", ".join(sorted({path.suffix.lower() or path.name for path in found})[:5]) or "nothing"
        raise UserError(
            f"{flag}: no images in {root} (found {kinds}; looked for {', '.join(sorted(EXTENSIONS))})"
        )
    return images


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it over `path` on success, remove it on failure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(text: str, path: Path) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text)


def write_json(content: dict[str, Any], path: Path) -> None:
    write_text(json.dumps(content, indent=2) + "\n", path)
