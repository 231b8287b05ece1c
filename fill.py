"""Fill the holes of picture files, one or all in a folder, each written back in its own format."""

import argparse
import dataclasses
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from cli import UserError
from files import find_images
from masks import Hole, alpha_hole, box_hole, doctor, feather, grow, painted_hole, read_hole
from pictures import LOSSY, Picture

if TYPE_CHECKING:  # what is read and refused here needs no torch, which is slow to import
    from inference import Inpainter


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

    @classmethod
    def of(cls, args: argparse.Namespace) -> "FillSettings":
        """Those among the flags."""
        return cls(**{field.name: getattr(args, field.name) for field in dataclasses.fields(cls)})


@dataclass(frozen=True)
class Job:
    """A picture that was read, its hole (H, W) bool, the file to write, and the true colours, if known."""

    image_file: Path
    target_file: Path
    relative: Path
    picture: Picture
    missing: np.ndarray
    notes: list[str]
    truth: np.ndarray | None


@dataclass(frozen=True)
class Filled:
    """One completion: colours (H, W, 1 or 3) before and after."""

    job: Job
    before: np.ndarray
    after: np.ndarray


def open_single(settings: FillSettings) -> Job | None:
    """The job of a single image file; None if its result is there and `skip_existing` asks to leave it.

    Raises:
        UserError: as `open_job`.
    """
    path = Path(settings.image_path)
    mask_file = Path(settings.mask_path) if settings.mask_path else None
    return open_job(settings, path, mask_file, Path(path.name))


def fill_folder(
    inpainter: "Inpainter", settings: FillSettings, trained: tuple[float, float]
) -> Iterator[Filled | None]:
    """Fill all images of a folder; what cannot be filled is reported at the end.

    Args:
        trained: range of missing shares that the network was trained on.

    Yields:
        Every completion; None for an image that could not be filled. Those that were there are left out.

    Raises:
        UserError: for a mistake in the settings.
    """
    files = list_files(settings)
    failed: list[str] = []
    for image_file, mask_file, relative in tqdm(files, desc="filling", unit="image", disable=None):
        try:
            if settings.mask_path and mask_file is None:
                raise UserError(f"--mask_path: no mask for {image_file}")
            job = open_job(settings, image_file, mask_file, relative)
            done = None if job is None else fill_job(inpainter, settings, trained, job)
        except UserError as error:
            failed.append(str(error))
            yield None
        else:
            if done is not None:
                yield done
    for message in failed:
        print(f"test.py: not filled: {message}", file=sys.stderr)
    print(f"{len(files) - len(failed)} of {len(files)} images filled in {settings.save_dir}")


def list_files(settings: FillSettings) -> list[tuple[Path, Path | None, Path]]:
    """Every image of a folder, its mask (by path or stem, with or without `_mask`), and its relative path."""
    root, mask_root = Path(settings.image_path), Path(settings.mask_path)
    images = find_images(root, "--image_path")
    if not settings.mask_path or mask_root.is_file():
        mask_file = mask_root if settings.mask_path else None
        return [(path, mask_file, path.relative_to(root)) for path in images]
    masks = find_images(mask_root, "--mask_path")
    if mask_root.resolve() == root.resolve():
        masks = [path for path in masks if path.stem.endswith("_mask")]
        images = [path for path in images if path not in masks]
    names = [path.relative_to(mask_root).with_suffix("").as_posix().removesuffix("_mask") for path in masks]
    stems = [name.rpartition("/")[2] for name in names]
    counts = Counter(stems)
    by_name = {stem: path for stem, path in zip(stems, masks, strict=True) if counts[stem] == 1}
    by_name |= dict(zip(names, masks, strict=True))
    jobs = []
    for path in images:
        relative = path.relative_to(root)
        mask = by_name.get(relative.with_suffix("").as_posix(), by_name.get(path.stem))
        jobs.append((path, mask, relative))
    return jobs


def open_job(
    settings: FillSettings,
    image_file: Path,
    mask_file: Path | None,
    relative: Path,
    strokes: np.ndarray | None = None,
) -> Job | None:
    """Read an image file and its hole, to be filled and written to `relative` in the folder of results.

    Args:
        strokes: what was painted over the image, as of `masks.painted_hole`; it adds to the mask, if any.

    Returns:
        None if it was there and `skip_existing` asks to leave it.

    Raises:
        UserError: if a file cannot be read, does not fit, or would be overwritten.
    """
    target_file = Path(settings.save_dir) / relative
    if settings.skip_existing and (target_file.exists() or target_file.with_suffix(".png").exists()):
        return None
    picture = read_named(image_file, "--image_path")
    lossy = picture.format in LOSSY
    if settings.lossless and lossy:
        target_file = target_file.with_suffix(".png")
    for path in (image_file, mask_file, settings.gt_path):
        if path and target_file.resolve() == Path(path).resolve() and not settings.overwrite:
            raise UserError(f"--save_dir: {target_file} would overwrite an input (--overwrite)")
    truth = read_named(Path(settings.gt_path), "--gt_path").colors if settings.gt_path else None
    if truth is not None and truth.shape[:2] != picture.colors.shape[:2]:
        sizes = [f"{each.shape[1]}×{each.shape[0]}" for each in (truth, picture.colors)]
        raise UserError(f"--gt_path: is {sizes[0]} pixels, but the image is {sizes[1]}")
    hole = find_hole(picture, mask_file, settings, strokes)
    notes = [*picture.notes, *hole.notes]
    if lossy and not settings.lossless:
        notes.append(
            f"{picture.format} is written anew, at quality 95, and changes a little (--lossless: PNG)"
        )
    missing = grow(hole.missing, settings.dilate)
    return Job(image_file, target_file, relative, picture, missing, notes, truth)


def fill_job(
    inpainter: "Inpainter", settings: FillSettings, trained: tuple[float, float], job: Job
) -> Filled:
    """Complete a picture of any size and write it; `trained` as of `fill_folder`.

    Raises:
        UserError: if it cannot be written or verified.
    """
    for note in [*job.notes, *doctor(job.missing, trained)]:
        print(f"note: {job.image_file}: {note}", file=sys.stderr)
    before = job.picture.colors
    filled = inpainter.fill(before, job.missing)
    if settings.feather:
        filled = feather(filled, before, job.missing, settings.feather)
    job.picture.fill(filled, job.missing, opaque=settings.alpha_mask)
    job.picture.save(job.target_file, settings.lossless)
    verified = ""
    if settings.verify:
        verify(job.image_file, job.target_file, job.missing)
        verified = ", the others are identical"
    size = f"{job.missing.shape[1]}×{job.missing.shape[0]}"
    print(f"{job.target_file}: {job.missing.mean():.1%} of {size} pixels filled{verified}")
    return Filled(job, before, job.picture.colors)


def find_hole(
    picture: Picture, mask_file: Path | None, settings: FillSettings, strokes: np.ndarray | None = None
) -> Hole:
    """The hole that is asked for: strokes, a box, a mask file, or what is transparent in the picture."""
    shape = picture.colors.shape[0], picture.colors.shape[1]
    if strokes is not None:
        painted = painted_hole(strokes, shape)
        if mask_file is None:
            return painted
        masked = find_hole(picture, mask_file, settings)
        return Hole(painted.missing | masked.missing, masked.notes)
    if settings.box:
        return box_hole(settings.box, shape)
    if mask_file is None:
        return alpha_hole(picture)
    try:
        return read_hole(mask_file, shape, settings.invert_mask)
    except UserError as error:
        raise UserError(f"--mask_path: {error}") from None


def read_named(path: Path, flag: str) -> Picture:
    """The picture of a file, with the flag in front of what is wrong with it."""
    try:
        return Picture(path)
    except UserError as error:
        raise UserError(f"{flag}: {error}") from None


def verify(image_file: Path, target_file: Path, missing: np.ndarray) -> None:
    """Read both files again and compare every pixel outside the hole, alpha included.

    Raises:
        UserError: if one differs.
    """
    first, second = Picture(image_file), Picture(target_file)
    if first.colors.shape != second.colors.shape or first.colors.dtype != second.colors.dtype:
        raise UserError(f"--verify: another size or depth: {target_file}")
    differing = (first.colors != second.colors).any(axis=2)
    if first.alpha is not None and second.alpha is not None:
        differing |= first.alpha != second.alpha
    count = int((differing & ~missing).sum())
    if count:
        raise UserError(f"--verify: {count:,} pixels outside the hole differ: {target_file}")
