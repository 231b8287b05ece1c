"""Fill the holes of image files, one or all in a folder, each written back in its own format."""

import os
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from imaging.files import find_images
from imaging.image_file import SUFFIXES, ImageFile, becomes_png, reason_of, sniff_file
from imaging.mask_file import (
    Hole,
    alpha_hole,
    box_hole,
    feather,
    grow,
    mask_warnings,
    masks_by_image,
    painted_hole,
    read_hole,
)
from imaging.verify import verify
from inference.inpainter import Inpainter
from utils import UserError, make_folder

REPORT_FILES = ("metrics.json", "test_results.png")  # in `save_dir`, where the true image is given


@dataclass(frozen=True)
class FillSettings:
    """What to fill and how; each field is a flag of `test.py` of the same name."""

    image_path: str
    save_dir: str
    mask_path: str = ""
    box: tuple[int, int, int, int] | None = None  # left, top, width, height
    alpha_mask: bool = False
    invert_mask: bool = False
    dilate: int = 0  # pixels
    feather: int = 0  # pixels
    lossless: bool = False
    verify: bool = False
    overwrite: bool = False
    skip_existing: bool = False
    gt_path: str = ""
    max_megapixels: float = 0  # 0 for no limit


@dataclass(frozen=True)
class Source:
    """An image file to fill, its mask file if there is one, and where its result goes below `save_dir`."""

    image_file: Path
    mask_file: Path | None
    relative: Path
    doubled: bool = False  # whether another image of the call has its name but for the extension


@dataclass(frozen=True)
class Job:
    """An opened image file, its hole (H, W) bool, the file to write, and the true colours, if known."""

    image_file: Path
    target_file: Path
    relative: Path
    picture: ImageFile
    missing: np.ndarray
    mask_notes: list[str]
    truth: np.ndarray | None
    lossless: bool

    @property
    def notes(self) -> list[str]:
        """What a user should know; saving may add to it."""
        if not self.missing.any():  # the file is copied
            return self.mask_notes
        return [*self.picture.encoding_notes(self.lossless), *self.picture.notes, *self.mask_notes]


@dataclass
class Targets:
    """The files that a call must not write to: those it reads, their neighbours, and those it wrote."""

    inputs: set[tuple[int, int]] = field(default_factory=set)  # device and inode
    folders: set[str] = field(default_factory=set)  # that hold inputs
    guarded: str = ""  # a folder of which, with all below it, nothing is overwritten
    written: set[str] = field(default_factory=set)

    def add_input(self, path: Path) -> None:
        """Remember a file that the call reads."""
        if path.exists():
            self.inputs.add(_identity(path))
            self.folders.add(os.path.realpath(path.parent))

    def refuse(self, target: Path, image_file: Path, overwrite: bool) -> None:
        """Raise a `UserError` if writing `target`, the result of `image_file`, would lose another file.

        Args:
            overwrite: allow writing over the image itself, and over files beside the inputs.
        """
        name = os.path.realpath(target.parent) + os.sep + target.name
        if name in self.written:
            raise UserError(f"--save_dir: {target} holds the result of another image of this call")
        if target.exists() or target.is_symlink():
            own = target.exists() and _identity(target) == _identity(image_file)
            other = target.exists() and not own and _identity(target) in self.inputs
            if other or (own and not overwrite):
                hint = "" if other else " (--overwrite)"
                raise UserError(f"--save_dir: {target} would overwrite an input{hint}")
            parent = os.path.realpath(target.parent)
            guarded = bool(self.guarded) and (parent + os.sep).startswith(self.guarded + os.sep)
            if (guarded or parent in self.folders) and not overwrite:
                raise UserError(f"--save_dir: {target} is there, among the images (--overwrite)")
        self.written.add(name)


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def fill_file(inpainter: Inpainter, settings: FillSettings, trained: tuple[float, float]) -> Iterator[Job]:
    """Fill one image file.

    Args:
        trained: range of mask ratios that the network was trained on.

    Yields:
        The filled job; nothing if its result exists and `skip_existing` asks to leave it.

    Raises:
        UserError: as `open_job` and `fill_job`.
    """
    path = Path(settings.image_path)
    mask_file = Path(settings.mask_path) if settings.mask_path else None
    source = Source(path, mask_file, Path(path.name))
    job = open_job(settings, source, targets_of(settings, [source]))
    if job is not None:
        make_folder(Path(settings.save_dir), "--save_dir")
        print_job(job, trained, fill_job(inpainter, settings, job))
        yield job


def targets_of(settings: FillSettings, sources: list[Source]) -> Targets:
    """What a call that reads these files must not write to."""
    targets = Targets()
    for source in sources:
        targets.add_input(source.image_file)
        if source.mask_file is not None:
            targets.add_input(source.mask_file)
    if settings.gt_path:
        targets.add_input(Path(settings.gt_path))
    root = Path(settings.image_path)
    if root.is_dir() and Path(os.path.realpath(root)) in Path(os.path.realpath(settings.save_dir)).parents:
        targets.guarded = os.path.realpath(settings.save_dir)  # its files may be originals, too
    return targets


def fill_folder(
    inpainter: Inpainter, settings: FillSettings, trained: tuple[float, float]
) -> Iterator[Job | None]:
    """Fill all images of a folder; what cannot be filled is reported at the end.

    Args:
        trained: range of missing shares that the network was trained on.

    Yields:
        Every filled job; None for an image that could not be filled. Those that were there are left out.

    Raises:
        UserError: for a mistake in the settings.
    """
    sources = list_files(settings)
    make_folder(Path(settings.save_dir), "--save_dir")
    targets = targets_of(settings, sources)
    failed: list[str] = []
    left = 0
    for source in tqdm(sources, desc="filling", unit="image", disable=None):
        try:
            if settings.mask_path and source.mask_file is None:
                raise UserError(f"--mask_path: no mask for {source.image_file}")
            job = open_job(settings, source, targets)
            verified = "" if job is None else fill_job(inpainter, settings, job)
        except UserError as error:
            named = str(source.image_file) in str(error)
            failed.append(str(error) if named else f"{source.image_file}: {error}")
            yield None
        except Exception as error:  # whatever is wrong with one file, the others are filled
            failed.append(f"{source.image_file}: {type(error).__name__}: {reason_of(error)}")
            yield None
        else:
            left += job is None
            if job is not None:
                print_job(job, trained, verified)
                yield job
    for message in failed:
        print(f"test.py: not filled: {message}", file=sys.stderr)
    there = f", {left} of them before" if left else ""
    print(f"{len(sources) - len(failed)} of {len(sources)} images filled in {settings.save_dir}{there}")


def list_files(settings: FillSettings) -> list[Source]:
    """Every image of a folder and its mask (by path or stem, with or without `_mask`).

    Images below `save_dir`, where that lies inside the folder, are left out, as they are taken for results.

    Raises:
        UserError: if there is nothing to fill.
    """
    root, mask_root = Path(settings.image_path), Path(settings.mask_path)
    images = find_images(root, "--image_path", SUFFIXES)
    results = [path for path in images if _is_below(path, Path(settings.save_dir), root)]
    if results:
        print(
            f"note: --image_path: {len(results):,} images in {settings.save_dir}, where results go, "
            "are left out",
            file=sys.stderr,
        )
    images = [path for path in images if path not in set(results)]
    masks: list[Path] = []
    if settings.mask_path and not mask_root.is_file():
        masks = find_images(mask_root, "--mask_path", SUFFIXES)
        if mask_root.resolve() == root.resolve():
            masks = [path for path in masks if path.stem.endswith("_mask")]
        used = set(masks)
        images = [path for path in images if path not in used and not _is_below(path, mask_root, root)]
    if not images:
        raise UserError(f"--image_path: no images to fill in {root}")
    by_name, notes = masks_by_image(masks, mask_root)
    for note in notes:
        print(f"note: --mask_path: {note}", file=sys.stderr)
    relatives = [path.relative_to(root) for path in images]
    names = [relative.with_suffix("").as_posix() for relative in relatives]
    owned = {by_name[name] for name in names if name in by_name}  # by an image of the same path
    doubled = Counter(names)
    sources = []
    for path, relative, name in zip(images, relatives, names, strict=True):
        mask: Path | None = mask_root if mask_root.is_file() else by_name.get(name)
        if mask is None and by_name.get(path.stem) not in owned:
            mask = by_name.get(path.stem)
        sources.append(Source(path, mask, relative, doubled[name] > 1))
    return sources


def _is_below(path: Path, folder: Path, root: Path) -> bool:
    """Whether a file lies in a folder that itself lies below `root`."""
    real = Path(os.path.realpath(folder))
    return Path(os.path.realpath(root)) in real.parents and real in Path(os.path.realpath(path)).parents


def target_of(settings: FillSettings, source: Source) -> Path:
    """The file to write: of the same name, or, where it becomes a PNG, with that extension.

    Of several images that differ in their extension alone, the PNG keeps it: `a.jpg.png`.
    """
    target = Path(settings.save_dir) / source.relative
    if becomes_png(sniff_file(source.image_file), settings.lossless):
        return target.with_name(f"{target.name}.png") if source.doubled else target.with_suffix(".png")
    return target


def open_job(
    settings: FillSettings, source: Source, targets: Targets, strokes: np.ndarray | None = None
) -> Job | None:
    """Read an image file and its hole.

    Args:
        strokes: what was painted over the image, as of `painted_hole`; it adds to the mask, if any.

    Returns:
        None if its result was there and `skip_existing` asks to leave it.

    Raises:
        UserError: if a file cannot be read, does not fit, or would be overwritten.
    """
    try:
        target_file = target_of(settings, source)
    except UserError as error:
        raise UserError(f"--image_path: {error}") from None
    if settings.skip_existing and target_file.exists() and not target_file.samefile(source.image_file):
        return None
    picture = read_named(source.image_file, "--image_path", settings.max_megapixels, for_writing=True)
    if settings.verify:
        refuse_inexact(picture, settings.lossless)
    targets.refuse(target_file, source.image_file, settings.overwrite)
    if settings.gt_path:
        if target_file.name in REPORT_FILES:
            raise UserError(f"--gt_path: scores are written to {target_file}, too: rename the image")
        for name in REPORT_FILES:
            targets.refuse(Path(settings.save_dir) / name, source.image_file, settings.overwrite)
    truth = read_named(Path(settings.gt_path), "--gt_path").colors() if settings.gt_path else None
    if truth is not None and truth.shape[:2] != picture.shape:
        sizes = [f"{width}×{height}" for height, width in (truth.shape[:2], picture.shape)]
        raise UserError(f"--gt_path: is {sizes[0]} pixels, but the image is {sizes[1]}")
    hole = find_hole(picture, source.mask_file, settings, strokes)
    missing = grow(hole.missing, settings.dilate)
    return Job(
        source.image_file,
        target_file,
        source.relative,
        picture,
        missing,
        hole.notes,
        truth,
        settings.lossless,
    )


def refuse_inexact(picture: ImageFile, lossless: bool) -> None:
    """Raise a `UserError` if known pixels cannot come back as they were."""
    if not picture.exact(lossless):
        raise UserError(
            f"--verify: every pixel of such a {picture.format} changes a little when it is written "
            f"(--lossless: PNG): {picture.path}"
        )


def fill_job(inpainter: Inpainter, settings: FillSettings, job: Job) -> str:
    """Complete an image of any size and write it.

    Returns:
        What `verify` proved; "" if it was not asked.

    Raises:
        UserError: if it cannot be written or verified.
    """
    picture, missing = job.picture, job.missing
    fill_regions(inpainter, settings, picture, missing)
    verified = ""

    def check(path: Path) -> None:
        nonlocal verified
        refuse_inexact(picture, settings.lossless)  # which may have shown itself in writing
        kept, converted = picture.kept(missing, settings.lossless), picture.becomes_png(settings.lossless)
        verified = verify(job.image_file, path, missing, kept, converted, job.target_file)

    picture.save(job.target_file, missing, settings.lossless, check if settings.verify else None)
    return verified


def print_job(job: Job, trained: tuple[float, float], verified: str) -> None:
    """Say what was filled, and what a user should know of it; `verified` as of `fill_job`."""
    for note in [*job.notes, *mask_warnings(job.missing, trained)]:
        print(f"note: {job.image_file}: {note}", file=sys.stderr)
    height, width = job.missing.shape
    end = f", {verified}" if verified else ""
    print(f"{job.target_file}: {job.missing.mean():.1%} of {width}×{height} pixels filled{end}")


def fill_regions(
    inpainter: Inpainter, settings: FillSettings, picture: ImageFile, missing: np.ndarray
) -> None:
    """Complete the holes of an opened image; only what surrounds each is held a second time."""
    for region in inpainter.regions(missing):
        before, hole = picture.colors(region), missing[region]
        filled = inpainter.complete(before, hole)
        if settings.feather:
            filled = feather(filled, before, hole, settings.feather)
        picture.put(region, filled, hole, opaque=settings.alpha_mask)


def find_hole(
    picture: ImageFile, mask_file: Path | None, settings: FillSettings, strokes: np.ndarray | None = None
) -> Hole:
    """The hole that is asked for: strokes, a box, a mask file, or what is transparent in the picture."""
    if strokes is not None:
        painted = painted_hole(strokes, picture.shape)
        if mask_file is None:
            return painted
        masked = find_hole(picture, mask_file, settings)
        return Hole(painted.missing | masked.missing, masked.notes)
    if settings.box:
        return box_hole(settings.box, picture.shape)
    if mask_file is None:
        return alpha_hole(picture)
    try:
        return read_hole(mask_file, picture.shape, settings.invert_mask)
    except UserError as error:
        raise UserError(f"--mask_path: {error}") from None


def read_named(path: Path, flag: str, max_megapixels: float = 0, for_writing: bool = False) -> ImageFile:
    """The opened image file, with the flag in front of what is wrong with it."""
    try:
        return ImageFile(path, max_megapixels, for_writing=for_writing)
    except UserError as error:
        raise UserError(f"{flag}: {error}") from None
