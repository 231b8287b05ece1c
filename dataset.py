"""Images and masks as batches: crops, flips and holes of a requested coverage, every draw repeatable."""

import math
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import skimage
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from imaging.augment import UNCHANGED, Augmentation, Cut
from imaging.cache import IMAGES, INVERTED_MASKS, MASKS, open_pixels, short_side_of
from imaging.files import EXTENSIONS, find_images
from imaging.mask_file import masks_by_image, summarise
from utils import UserError, split_roots

MAX_UNREADABLE = 0.01  # share of a folder

SAMPLE = "sample"  # reserved root: crops of photographs that the scikit-image wheel carries
SAMPLE_CROPS = 100
SAMPLE_PHOTOGRAPHS = {
    "train": ("chelsea.png", "coffee.png", "hubble_deep_field.jpg", "motorcycle_left.png", "retina.jpg"),
    "val": ("astronaut.png", "rocket.jpg"),
}

# --- masks -------------------------------------------------------------------------------------------

Coverage = float | tuple[float, float]
Draw = Callable[[np.ndarray, np.random.Generator], tuple[float, float]]


def random_free_form_mask(
    height: int, width: int, coverage: Coverage = (0.1, 0.4), generator: np.random.Generator | None = None
) -> np.ndarray:
    """Brush strokes that turn at random, as if drawn by hand, until the requested share is missing.

    After Yu et al., "Free-Form Image Inpainting with Gated Convolution", ICCV 2019, algorithm 1; ours
    ends, if need be in the middle of a stroke, at the requested coverage.

    Args:
        coverage: the share of missing pixels, in [0, 1]; of a range, a share is drawn evenly.

    Returns:
        (height, width) uint8 in {0, 1}, 1 = missing; the share is met to one pixel.
    """
    generator = generator or np.random.default_rng()
    canvas = np.zeros((height, width), np.uint8)
    return _fill_to(draw_share(coverage, generator), canvas, _draw_stroke, generator)


def random_rectangular_mask(
    height: int, width: int, coverage: Coverage = (0.1, 0.4), generator: np.random.Generator | None = None
) -> np.ndarray:
    """Rectangles, some across the border, until the requested share is missing.

    Arguments and result as of `random_free_form_mask`.
    """
    generator = generator or np.random.default_rng()
    canvas = np.zeros((height, width), np.uint8)
    return _fill_to(draw_share(coverage, generator), canvas, _draw_rectangle, generator)


def random_mask(height: int, width: int, coverage: Coverage, generator: np.random.Generator) -> np.ndarray:
    """The mixture: half of the masks strokes, a quarter rectangles, a quarter equal areas of both.

    Arguments and result as of `random_free_form_mask`.
    """
    kind = generator.integers(4)
    if kind < 2:
        return random_free_form_mask(height, width, coverage, generator)
    if kind == 2:
        return random_rectangular_mask(height, width, coverage, generator)
    share = draw_share(coverage, generator)
    canvas = random_rectangular_mask(height, width, share / 2, generator)
    return _fill_to(share, canvas, _draw_stroke, generator)


def draw_share(coverage: Coverage, generator: np.random.Generator) -> float:
    """A share of missing pixels, drawn evenly from a range, or the one given."""
    low, high = coverage if isinstance(coverage, tuple | list) else (coverage, coverage)
    if not 0 <= low <= high <= 1:
        raise ValueError(f"coverage must be a share in [0, 1] or a range of shares, got {coverage}")
    return float(generator.uniform(low, high))


def _fill_to(share: float, canvas: np.ndarray, draw: Draw, generator: np.random.Generator) -> np.ndarray:
    """Draw shapes on `canvas` until `share` of it is 1; the last shape is cut across at the exact pixel."""
    target = round(share * canvas.size)
    while cv2.countNonZero(canvas) < target:
        before = canvas.copy()
        direction_x, direction_y = draw(canvas, generator)
        excess = cv2.countNonZero(canvas) - target
        if excess > 0:
            rows, columns = np.nonzero(canvas > before)
            along = columns * direction_x + rows * direction_y
            last = np.argpartition(along, -excess)[-excess:]
            canvas[rows[last], columns[last]] = 0
    return canvas


def _draw_stroke(canvas: np.ndarray, generator: np.random.Generator) -> tuple[float, float]:
    height, width = canvas.shape
    side = (height + width) / 2
    chance = generator.random(5 + 2 * 8)
    angle, thickness = 2 * np.pi * chance[0], side * (0.03 + 0.09 * chance[1])
    vertices = 2 + int(7 * chance[2])
    turns = angle + np.cumsum(2.4 * chance[5 : 5 + vertices] - 1.2)
    lengths = side * (0.04 + 0.12 * chance[13 : 13 + vertices])
    points = np.empty((vertices + 1, 2))
    points[0] = chance[3] * width, chance[4] * height
    points[1:, 0] = points[0, 0] + np.cumsum(lengths * np.cos(turns))
    points[1:, 1] = points[0, 1] + np.cumsum(lengths * np.sin(turns))
    cv2.polylines(canvas, [points.round().astype(np.int32)], False, 1, max(1, round(thickness)))
    return float(np.cos(angle)), float(np.sin(angle))


def _draw_rectangle(canvas: np.ndarray, generator: np.random.Generator) -> tuple[float, float]:
    height, width = canvas.shape
    h = max(1, round(height * generator.uniform(0.1, 0.5)))
    w = max(1, round(width * generator.uniform(0.1, 0.5)))
    top, left = generator.integers(-h // 2, height - h // 2), generator.integers(-w // 2, width - w // 2)
    canvas[max(top, 0) : max(top + h, 1), max(left, 0) : max(left + w, 1)] = 1
    return (1.0, 0.0) if generator.integers(2) else (0.0, 1.0)


# --- dataset -----------------------------------------------------------------------------------------


def too_small(short_side: float, image_size: int, max_enlarge: float) -> bool:
    """Whether `--max_enlarge` leaves a picture out of training at a size; at 0 it leaves out none."""
    return 0 < max_enlarge * short_side < image_size


def all_too_small(root: str, image_size: int) -> UserError:
    """The error where `--max_enlarge` leaves nothing."""
    return UserError(f"--max_enlarge: every picture in {root} is too small for {image_size} pixels")


class InpaintingDataset(Dataset):
    """Images below a folder, each with a hole; every random draw derives from (seed, epoch, index).

    In training, the crop, the flip and the mask change with the epoch. In validation the crop is the
    centre and the mask depends on the seed and the file's name alone.

    Args:
        root: a folder, several joined by the system's path separator, or `sample`.
        image_size: side of the square crops, in pixels; the shorter side is scaled to it.
        training: see above.
        max_images: at most so many, chosen by the seed; None for all.
        coverage: range of missing shares.
        mask_root: folder of mask files instead of drawn masks; one whose stem is the image's, or the
            image's with `_mask`, belongs to it and is cropped like it; other images get any of them.
        invert_mask: black, not white, is missing in mask files.
        augmentation: how training pictures are changed.
        max_enlarge: leave out training pictures that would be enlarged by more than this factor; 0 for none.
        cache_dir: where decoded images are kept; "" for the user's cache folder, None to decode at every use.
        flag: what errors call the root.

    Item `epoch * len(self) + index` is a dict of image (3, S, S) float32 in [0, 1], mask (1, S, S)
    float32, 1 = missing, and name.

    Raises:
        UserError: no folder, no image, none readable, or more than 1 % unreadable.
    """

    def __init__(
        self,
        root: str,
        image_size: int = 256,
        *,
        training: bool = True,
        max_images: int | None = None,
        coverage: tuple[float, float] = (0.1, 0.4),
        mask_root: str = "",
        invert_mask: bool = False,
        augmentation: Augmentation = UNCHANGED,
        max_enlarge: float = 0.0,
        seed: int = 42,
        cache_dir: str | Path | None = "",
        flag: str = "--train_root",
    ) -> None:
        self.image_size, self.training, self.coverage, self.seed = image_size, training, coverage, seed
        self.random_crops = training or root == SAMPLE
        paths, names = list_root(root, training, flag)
        chosen = choose(len(paths), max_images, seed)
        paths, names = [paths[i] for i in chosen], [names[i] for i in chosen]

        if training and max_enlarge:
            sizes = {path: short_side_of(path) for path in set(paths)}
            large = [i for i, path in enumerate(paths) if not too_small(sizes[path], image_size, max_enlarge)]
            if not large:
                raise all_too_small(root, image_size)
            paths, names = [paths[i] for i in large], [names[i] for i in large]

        self.augmentation = augmentation if training else UNCHANGED
        stored_size = math.ceil(image_size / self.augmentation.min_crop)
        short_side = stored_size * 3 // 2 if root == SAMPLE else stored_size
        files = sorted(set(paths))
        self.pixels = open_pixels(files, short_side, IMAGES, cache_dir, label=flag.lstrip("-"))
        position = {files[i]: k for k, i in enumerate(self.pixels.readable)}
        self.unreadable = self.pixels.unreadable
        if self.unreadable and (not position or len(self.unreadable) > MAX_UNREADABLE * len(files)):
            raise UserError(
                f"{flag}: {len(self.unreadable)} of {len(files)} images in {root} cannot be read, "
                f"more than {MAX_UNREADABLE:.0%} allowed; the first: {self.unreadable[0]}"
            )
        items = [(position[path], name) for path, name in zip(paths, names, strict=True) if path in position]
        self.positions = [position for position, _ in items]
        self.names = [name for _, name in items]
        self.masks = MaskFolder(Path(mask_root), stored_size, invert_mask, cache_dir) if mask_root else None

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The items of epoch 0, in order."""
        return (self[index] for index in range(len(self)))

    def __getitem__(self, key: int) -> dict[str, Any]:
        epoch, index = divmod(int(key), len(self))
        name = self.names[index]
        if self.training:
            generator = np.random.default_rng([self.seed, epoch, index])
        else:
            generator = np.random.default_rng([self.seed, name_digest(name)])

        return make_item(
            self.pixels[self.positions[index]],
            name,
            generator,
            image_size=self.image_size,
            coverage=self.coverage,
            masks=self.masks,
            augmentation=self.augmentation,
            random_crop=self.random_crops,
            random_flip=self.training,
        )


def make_item(
    image: np.ndarray,
    name: str,
    generator: np.random.Generator,
    *,
    image_size: int,
    coverage: tuple[float, float],
    masks: "MaskFolder | None" = None,
    augmentation: Augmentation = UNCHANGED,
    random_crop: bool = True,
    random_flip: bool = True,
) -> dict[str, Any]:
    """One item of `InpaintingDataset` from a decoded picture; every draw comes from `generator`.

    Args:
        image: (H, W, 3) uint8, its shorter side `image_size / augmentation.min_crop` pixels or more.
        masks: to be used instead of drawn masks of the range `coverage`.
        random_crop: else the centre is cut out.
    """
    cut = augmentation.draw_cut(image.shape, image_size, generator, centered=not random_crop)
    flip = random_flip and generator.random() < 0.5
    if masks is None:
        mask = random_mask(image_size, image_size, coverage, generator)
    else:
        mask = masks.read(name, image.shape[:2], cut, image_size, generator)
    colors = cut.take(image, image_size).astype(np.float32) / 255
    if flip:
        colors, mask = colors[:, ::-1], mask[:, ::-1]
    colors = augmentation.recolor(colors, generator)
    return {
        "image": torch.from_numpy(np.ascontiguousarray(colors.transpose(2, 0, 1))),
        "mask": torch.from_numpy(mask[None].astype(np.float32)),
        "name": name,
    }


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


class MaskFolder:
    """Mask files made by others: an image's own, by path or by stem, else any of them.

    What is odd about them is said on the standard error, every kind of oddity once.
    """

    def __init__(self, root: Path, image_size: int, invert: bool, cache_dir: str | Path | None) -> None:
        files = find_images(root, "--mask_root")
        kind = INVERTED_MASKS if invert else MASKS
        self.pixels = open_pixels(files, image_size, kind, cache_dir, label="masks")
        if self.pixels.unreadable:
            raise UserError(f"--mask_root: {self.pixels.unreadable[0]}")
        by_image, notes = masks_by_image(files, root)
        position = {path: i for i, path in enumerate(files)}
        self.index = {name: position[path] for name, path in by_image.items()}
        names = [str(path.relative_to(root)) for path in files]
        for note in [*summarise(zip(names, self.pixels.findings, strict=True)), *notes]:
            print(f"note: --mask_root {root}: {note}", file=sys.stderr)

    def read(
        self,
        name: str,
        shape: tuple[int, ...],
        cut: Cut,
        size: int,
        generator: np.random.Generator,
    ) -> np.ndarray:
        """(size, size) uint8 in {0, 1}: the image's own mask cropped as the image is, or any, scaled."""
        stem, _, extension = name.rpartition(".")
        name = stem if f".{extension}".lower() in EXTENSIONS else name
        own = self.index.get(name, self.index.get(name.rpartition("/")[2]))
        mask = self.pixels[int(generator.integers(len(self.pixels))) if own is None else own]
        if own is not None:
            mask = cv2.resize(mask, (shape[1], shape[0]), interpolation=cv2.INTER_NEAREST)
            return cut.take(mask, size, nearest=True)
        return cv2.resize(mask, (size, size), interpolation=cv2.INTER_NEAREST)


def report_unreadable(dataset: InpaintingDataset) -> None:
    """Name the images that were skipped, on the standard error."""
    for line in dataset.unreadable:
        print(f"skipped: {line}", file=sys.stderr)


class EpochSampler(Sampler[int]):
    """Every index once an epoch in an order of (seed, epoch), as keys `epoch * length + index`.

    The epoch advances by itself at the end of each pass; set `epoch` and `start` to resume in one.
    Of several processes, each gets its own share of the order, all of one length.
    """

    def __init__(self, length: int, seed: int, rank: int = 0, num_processes: int = 1) -> None:
        self.length, self.seed, self.rank, self.num_processes = length, seed, rank, num_processes
        self.epoch = 0
        self.start = 0  # items of this epoch already seen, by all processes

    def __iter__(self) -> Iterator[int]:
        epoch, start = self.epoch, self.start
        self.epoch, self.start = epoch + 1, 0
        order = np.random.default_rng([self.seed, epoch]).permutation(self.length)
        order = order[start : len(self) * self.num_processes]
        return iter((epoch * self.length + order[self.rank :: self.num_processes]).tolist())

    def __len__(self) -> int:
        return self.length // self.num_processes


class Loader(DataLoader):
    """A `DataLoader` that says in one line if there is no room for its worker processes."""

    def __iter__(self) -> Any:
        if self.num_workers:
            try:  # torch leaves tracebacks behind where it fails half way
                semaphores = [torch.multiprocessing.Semaphore() for _ in range(8 + 3 * self.num_workers)]
            except OSError as error:
                raise UserError(
                    f"--num_workers: {self.num_workers} loader processes do not start ({error.strerror}: "
                    "is /dev/shm full?): use --num_workers 0"
                ) from None
            del semaphores
        return super().__iter__()


def get_dataloaders(
    train_root: str,
    val_root: str,
    batch_size: int = 8,
    image_size: int = 256,
    *,
    val_size: int | None = None,
    train_subset: int | None = None,
    val_subset: int | None = None,
    coverage: tuple[float, float] = (0.1, 0.4),
    mask_root: str = "",
    invert_mask: bool = False,
    augmentation: Augmentation = UNCHANGED,
    max_enlarge: float = 0.0,
    num_workers: int = 2,
    seed: int = 42,
    cache_dir: str | Path | None = "",
    rank: int = 0,
    num_processes: int = 1,
) -> tuple[DataLoader, DataLoader]:
    """Training and validation loaders; arguments as of `InpaintingDataset`.

    Args:
        image_size: of both, in pixels, unless `val_size` says otherwise of the validation images.
        batch_size: images a batch, of each process.
        train_subset, val_subset: at most so many images; None for all.
        rank, num_processes: which share of the training images this process gets.

    Batches are dicts of image (B, 3, S, S) in [0, 1], mask (B, 1, S, S), 1 = missing, and name.
    """
    shared: dict[str, Any] = {"coverage": coverage, "mask_root": mask_root, "invert_mask": invert_mask}
    shared |= {"seed": seed, "cache_dir": cache_dir}
    train_set = InpaintingDataset(
        train_root,
        image_size,
        max_images=train_subset,
        augmentation=augmentation,
        max_enlarge=max_enlarge,
        flag="--train_root",
        **shared,
    )
    sampler = EpochSampler(len(train_set), seed, rank, num_processes)
    pin_memory = torch.cuda.is_available()
    train_loader = Loader(
        train_set,
        batch_size,
        sampler=sampler,
        num_workers=num_workers,
        pin_memory=pin_memory,
        persistent_workers=num_workers > 0,  # the epoch of an item is in its index
    )
    return train_loader, validation_loader(
        val_root, batch_size, val_size or image_size, max_images=val_subset, num_workers=num_workers, **shared
    )


def validation_loader(
    root: str, batch_size: int = 8, image_size: int = 256, *, num_workers: int = 2, **settings: Any
) -> DataLoader:
    """A validation loader as of `get_dataloaders`; `settings` are those of `InpaintingDataset`."""
    data = InpaintingDataset(root, image_size, training=False, flag="--val_root", **settings)
    return Loader(data, batch_size, num_workers=num_workers, pin_memory=torch.cuda.is_available())
