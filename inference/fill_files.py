"""Fills the holes of image files, one or all in a folder, and writes each back in its own format."""

import os
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from imaging.files import find_images
from imaging.image_file import SUFFIXES, ImageFile, becomes_png, reason_of, sniff_file
from imaging.mask_file import (
    alpha_mask,
    box_mask,
    dilate,
    feather,
    mask_warnings,
    masks_by_image,
    painted_mask,
    read_mask_for,
)
from imaging.verify import verify
from inference.inpainter import Inpainter
from utils import UserError, make_folder

REPORT_FILES = ("metrics.json", "test_results.png")  # in `save_dir`, where the true image is given


@dataclass(frozen=True)
class FillSettings:
    """The holes to fill and the files to write; each field is a flag of `test.py` of the same name."""

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
    """An image file to fill, its mask file if there is one, and the path of its result below `save_dir`."""

    image_path: Path
    mask_path: Path | None
    relative: Path
    is_namesake: bool = False  # whether another image of the call differs in its extension alone


@dataclass(frozen=True)
class Job:
    """An opened image file with its mask (H, W) bool, the file to write, and the true image, if known."""

    settings: FillSettings
    source: Source
    target_path: Path
    image_file: ImageFile
    mask: np.ndarray
    mask_notes: list[str]
    truth: np.ndarray | None

    @property
    def notes(self) -> list[str]:
        """Notes for the user; saving may add to them."""
        if not self.mask.any():  # the file is copied
            return self.mask_notes
        encoding_notes = self.image_file.encoding_notes(self.settings.lossless)
        return [*encoding_notes, *self.image_file.notes, *self.mask_notes]


class Targets:
    """The files that a call must not write to: those it reads, their neighbours, and those it wrote.

    Args:
        sources: the files that the call reads, besides `gt_path`.
    """

    def __init__(self, settings: FillSettings, sources: list[Source]) -> None:
        self.overwrite = settings.overwrite
        named = [path for source in sources for path in (source.image_path, source.mask_path)]
        inputs = [Path(path) for path in (*named, settings.gt_path) if path and Path(path).exists()]
        self.inputs = {_identity(path) for path in inputs}
        self.input_folders = {os.path.realpath(path.parent) for path in inputs}
        self.written: set[str] = set()
        # the files of results that lie among the images may be originals, too
        nested = Path(settings.image_path).is_dir() and is_below(settings.save_dir, settings.image_path)
        self.guarded = os.path.realpath(settings.save_dir) if nested else None

    def refuse(self, target: Path, image_path: Path) -> None:
        """Raise a `UserError` if writing `target`, the result of `image_path`, would lose another file.

        With `overwrite`, the image itself may be overwritten, and files beside the inputs.
        """
        parent = os.path.realpath(target.parent)
        name = os.path.join(parent, target.name)
        if name in self.written:
            raise UserError(f"--save_dir: {target} holds the result of another image of this call")
        if target.exists() or target.is_symlink():
            is_own = target.exists() and _identity(target) == _identity(image_path)
            is_other = target.exists() and not is_own and _identity(target) in self.inputs
            if is_other or (is_own and not self.overwrite):
                hint = "" if is_other else " (--overwrite)"
                raise UserError(f"--save_dir: {target} would overwrite an input{hint}")
            is_guarded = self.guarded is not None and is_below(name, self.guarded)
            if (is_guarded or parent in self.input_folders) and not self.overwrite:
                raise UserError(f"--save_dir: {target} is there, among the images (--overwrite)")
        self.written.add(name)


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def is_below(path: str | Path, folder: str | Path) -> bool:
    """Whether a file or folder lies in another folder, links resolved."""
    return Path(os.path.realpath(folder)) in Path(os.path.realpath(path)).parents


def fill_file(
    inpainter: Inpainter, settings: FillSettings, trained_ratio: tuple[float, float]
) -> Iterator[Job]:
    """Fill one image file.

    Args:
        trained_ratio: range of mask ratios that the network was trained on.

    Yields:
        The filled job; nothing if its result exists and `skip_existing` is set.

    Raises:
        UserError: see `open_job` and `fill_job`.
    """
    path = Path(settings.image_path)
    source = Source(path, Path(settings.mask_path) if settings.mask_path else None, Path(path.name))
    job = open_job(settings, source, Targets(settings, [source]))
    if job is not None:
        make_folder(Path(settings.save_dir), "--save_dir")
        print_job(job, trained_ratio, fill_job(inpainter, job))
        yield job


def fill_folder(
    inpainter: Inpainter, settings: FillSettings, trained_ratio: tuple[float, float]
) -> Iterator[Job | None]:
    """Fill all images of a folder, and report at the end those that could not be filled.

    Args:
        trained_ratio: range of mask ratios that the network was trained on.

    Yields:
        Every filled job; None for an image that could not be filled. Skipped images are left out.

    Raises:
        UserError: for a mistake in the settings.
    """
    sources = list_sources(settings)
    make_folder(Path(settings.save_dir), "--save_dir")
    targets = Targets(settings, sources)
    failures: list[str] = []
    num_skipped = 0
    for source in tqdm(sources, desc="filling", unit="image", disable=None):
        try:
            if settings.mask_path and source.mask_path is None:
                raise UserError(f"--mask_path: no mask for {source.image_path}")
            job = open_job(settings, source, targets)
            proof = "" if job is None else fill_job(inpainter, job)
        except UserError as error:
            is_named = str(source.image_path) in str(error)
            failures.append(str(error) if is_named else f"{source.image_path}: {error}")
            yield None
        except Exception as error:  # whatever is wrong with one file, the others are filled
            failures.append(f"{source.image_path}: {type(error).__name__}: {reason_of(error)}")
            yield None
        else:
            num_skipped += job is None
            if job is not None:
                print_job(job, trained_ratio, proof)
                yield job
    for failure in failures:
        print(f"test.py: not filled: {failure}", file=sys.stderr)
    skipped = f", {num_skipped} of them before" if num_skipped else ""
    num_filled = len(sources) - len(failures)
    print(f"{num_filled} of {len(sources)} images filled in {settings.save_dir}{skipped}")


def list_sources(settings: FillSettings) -> list[Source]:
    """Every image of a folder and its mask (by path or stem, with or without `_mask`).

    Images below `save_dir`, where that lies inside the folder, are taken for results and left out.

    Raises:
        UserError: if there is nothing to fill.
    """
    root, mask_root = Path(settings.image_path), Path(settings.mask_path)

    def lies_in(path: Path, subfolder: str) -> bool:
        return is_below(subfolder, root) and is_below(path, subfolder)

    images = find_images(root, "--image_path", SUFFIXES)
    results = {path for path in images if lies_in(path, settings.save_dir)}
    if results:
        print(
            f"note: --image_path: {len(results):,} images in {settings.save_dir}, where results go, "
            "are left out",
            file=sys.stderr,
        )
    masks: list[Path] = []
    if settings.mask_path and not mask_root.is_file():
        masks = find_images(mask_root, "--mask_path", SUFFIXES)
        if mask_root.resolve() == root.resolve():
            masks = [path for path in masks if path.stem.endswith("_mask")]
    left_out = results | set(masks)
    images = [
        path for path in images if path not in left_out and not (masks and lies_in(path, settings.mask_path))
    ]
    if not images:
        raise UserError(f"--image_path: no images to fill in {root}")
    by_name, notes = masks_by_image(masks, mask_root)
    for note in notes:
        print(f"note: --mask_path: {note}", file=sys.stderr)
    names = [path.relative_to(root).with_suffix("").as_posix() for path in images]
    taken = {by_name[name] for name in names if name in by_name}  # by the image of the same path
    counts = Counter(names)
    sources = []
    for path, name in zip(images, names, strict=True):
        mask_path: Path | None = mask_root if mask_root.is_file() else by_name.get(name)
        if mask_path is None and by_name.get(path.stem) not in taken:
            mask_path = by_name.get(path.stem)
        sources.append(Source(path, mask_path, path.relative_to(root), counts[name] > 1))
    return sources


def target_of(settings: FillSettings, source: Source) -> Path:
    """The file to write: of the same name, or, where it becomes a PNG, with that extension.

    An image with a namesake keeps its own extension before it: `a.jpg.png`.
    """
    target = Path(settings.save_dir) / source.relative
    if becomes_png(sniff_file(source.image_path), settings.lossless):
        return target.with_name(f"{target.name}.png") if source.is_namesake else target.with_suffix(".png")
    return target


def open_job(
    settings: FillSettings, source: Source, targets: Targets, strokes: np.ndarray | None = None
) -> Job | None:
    """Read an image file and its mask.

    Args:
        strokes: opacity of the paint over the image (see `painted_mask`), added to the mask, if any.

    Returns:
        None if its result exists and `skip_existing` is set.

    Raises:
        UserError: if a file cannot be read, does not fit, or would be overwritten.
    """
    try:
        target = target_of(settings, source)
    except UserError as error:
        raise UserError(f"--image_path: {error}") from None
    if settings.skip_existing and target.exists() and not target.samefile(source.image_path):
        return None
    image_file = open_image(source.image_path, "--image_path", settings.max_megapixels, for_writing=True)
    if settings.verify:
        refuse_inexact(image_file, settings.lossless)
    targets.refuse(target, source.image_path)
    truth = None
    if settings.gt_path:
        if target.name in REPORT_FILES:
            raise UserError(f"--gt_path: scores are written to {target}, too: rename the image")
        for name in REPORT_FILES:
            targets.refuse(Path(settings.save_dir) / name, source.image_path)
        truth = open_image(Path(settings.gt_path), "--gt_path").colors()
        if truth.shape[:2] != image_file.shape:
            sizes = [f"{width}×{height}" for height, width in (truth.shape[:2], image_file.shape)]
            raise UserError(f"--gt_path: is {sizes[0]} pixels, but the image is {sizes[1]}")
    mask, mask_notes = find_mask(image_file, source.mask_path, settings, strokes)
    mask = dilate(mask, settings.dilate)
    return Job(settings, source, target, image_file, mask, mask_notes, truth)


def refuse_inexact(image_file: ImageFile, lossless: bool) -> None:
    """Raise a `UserError` if known pixels cannot come back as they were."""
    if not image_file.exact(lossless):
        raise UserError(
            f"--verify: every pixel of such a {image_file.format} changes a little when it is written "
            f"(--lossless: PNG): {image_file.path}"
        )


def fill_job(inpainter: Inpainter, job: Job) -> str:
    """Complete an image of any size and write it.

    Returns:
        The proof that `verify` gives; "" without it.

    Raises:
        UserError: if it cannot be written or verified.
    """
    image_file, mask, settings = job.image_file, job.mask, job.settings
    for region in inpainter.regions(mask):  # so that only one region is held a second time
        before = image_file.colors(region)
        filled = inpainter.fill_region(before, mask[region])
        if settings.feather:
            filled = feather(filled, before, mask[region], settings.feather)
        image_file.put(region, filled, mask[region], opaque=settings.alpha_mask)
    proof = ""

    def check(path: Path) -> None:
        nonlocal proof
        refuse_inexact(image_file, settings.lossless)  # writing may have shown that it is not
        kept, converted = image_file.kept(mask, settings.lossless), image_file.becomes_png(settings.lossless)
        proof = verify(image_file.path, path, mask, kept, converted, job.target_path)

    image_file.save(job.target_path, mask, settings.lossless, check if settings.verify else None)
    return proof


def print_job(job: Job, trained_ratio: tuple[float, float], proof: str) -> None:
    """Print the size of the filled hole, and the notes for the user; `proof` is that of `fill_job`."""
    for note in [*job.notes, *mask_warnings(job.mask, trained_ratio)]:
        print(f"note: {job.source.image_path}: {note}", file=sys.stderr)
    height, width = job.mask.shape
    end = f", {proof}" if proof else ""
    print(f"{job.target_path}: {job.mask.mean():.1%} of {width}×{height} pixels filled{end}")


def find_mask(
    image_file: ImageFile, mask_path: Path | None, settings: FillSettings, strokes: np.ndarray | None = None
) -> tuple[np.ndarray, list[str]]:
    """The mask (H, W) bool of strokes, a box, a mask file or the image's transparency, and notes on it."""
    if strokes is not None:
        painted = painted_mask(strokes, image_file.shape)
        if mask_path is None:
            return painted, []
        mask, notes = find_mask(image_file, mask_path, settings)
        return painted | mask, notes
    if settings.box:
        return box_mask(settings.box, image_file.shape), []
    if mask_path is None:
        return alpha_mask(image_file), []
    try:
        return read_mask_for(mask_path, image_file.shape, settings.invert_mask)
    except UserError as error:
        raise UserError(f"--mask_path: {error}") from None


def open_image(path: Path, flag: str, max_megapixels: float = 0, for_writing: bool = False) -> ImageFile:
    """Open an image file; errors begin with the flag that named it."""
    try:
        return ImageFile(path, max_megapixels, for_writing=for_writing)
    except UserError as error:
        raise UserError(f"{flag}: {error}") from None
