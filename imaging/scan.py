"""What picture folders and shards hold: unreadable, small, doubled, or shared by training and validation."""

import hashlib
import io
import itertools
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from imaging.cache import BLOCK
from imaging.files import choose, list_root, too_small
from imaging.read import read_image
from imaging.shards import Sample, ShardDataset, read_counted
from utils import UserError, is_shards

SIDE = 32  # pixels, of the picture whose cosine transform is hashed
THUMBNAIL = 16  # pixels, side of what candidates are compared by
# Copies of 239 photographs, as JPEG of quality 30 or a third as large, were up to 6 bits away and correlated
# by 0.985 or more. Of 633,375 pairs of different portraits, all frontal on a plain ground, 260 were up to 8
# bits apart, but those correlated by 0.92 at most, and any pair by 0.93.
MAX_DISTANCE = 8  # bits
MIN_CORRELATION = 0.96
MIN_CONTRAST = 2.0  # standard deviation in grey levels of 255, below which there is nothing to compare


@dataclass(frozen=True)
class Fingerprints:
    """What readable pictures are recognised by: names and SHA-256 of N files, and how they look.

    Shapes:
        signs (N, 64) int8 in {-1, 1}, 0 for a picture without structure; thumbnails (N, 256) uint8.
    """

    names: list[str]
    digests: list[bytes]
    signs: np.ndarray
    thumbnails: np.ndarray

    def select(self, rows: list[int]) -> "Fingerprints":
        names, digests = [self.names[i] for i in rows], [self.digests[i] for i in rows]
        return Fingerprints(names, digests, self.signs[rows], self.thumbnails[rows])


@dataclass(frozen=True)
class Scan:
    """What a root holds. A picture that several others resemble is paired with the one most like it."""

    root: str
    flag: str
    count: int  # images an epoch: readable files, or crops of `sample`
    files: int  # looked at, each once
    unreadable: list[str]  # one line each
    short_sides: dict[str, int]  # pixels, of the files whose shorter side is below the training size
    exact: list[list[str]]  # groups of files of the same bytes
    near: list[tuple[str, str]]  # a file and the earlier one that it resembles
    prints: Fingerprints
    uses: Counter[str]  # how often an epoch sees a file

    def count_at(self, size: int, max_enlarge: float) -> int:
        """Images an epoch of a stage of `size` pixels, where `--max_enlarge` leaves out what is too small."""
        left_out = [name for name, side in self.short_sides.items() if too_small(side, size, max_enlarge)]
        return self.count - sum(self.uses[name] for name in left_out)


def perceptual_hash(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sixty-four bits, as signs, of which scaling and recompression change a few, and a thumbnail.

    The eight lowest frequencies but zero of the cosine transform of the 32×32 grey picture, each
    above or below their median. Zauner, "Implementation and Benchmarking of Perceptual Image Hash
    Functions", 2010, section 3.2.1; areas are averaged where he filters before subsampling.

    Shapes:
        image (H, W, 3) uint8. Returns (64,) int8 in {-1, 1}, all 0 below `MIN_CONTRAST`; (256,) uint8.
    """
    grey = cv2.resize(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    thumbnail = cv2.resize(grey, (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA).ravel()
    if thumbnail.std() < MIN_CONTRAST:
        return np.zeros(64, np.int8), thumbnail
    frequencies = cv2.dct(grey.astype(np.float32))[1:9, 1:9].ravel()
    return np.where(frequencies > np.median(frequencies), 1, -1).astype(np.int8), thumbnail


def find_near(
    queries: Fingerprints, references: Fingerprints, earlier: bool = False
) -> list[tuple[str, str]]:
    """Each query that has a near duplicate among the references, with the one most like it.

    Args:
        earlier: compare query i with the references before the i-th alone.
    """

    def standardize(thumbnails: np.ndarray) -> np.ndarray:
        centered = thumbnails - thumbnails.mean(axis=1, keepdims=True, dtype=np.float32)
        return centered / np.linalg.norm(centered, axis=1, keepdims=True).clip(1)

    pairs = []
    signs = references.signs.astype(np.float32)
    for start in range(0, len(queries.names), BLOCK):
        block = slice(start, start + BLOCK)
        # the product of two vectors of ±1 is 64 less twice the bits that differ; of one of 0, it is 0
        near = queries.signs[block].astype(np.float32) @ signs.T >= 64 - 2 * MAX_DISTANCE  # (rows, N)
        if earlier:
            near &= np.arange(near.shape[1]) < start + np.arange(len(near))[:, None]
        columns = np.flatnonzero(near.any(axis=0))
        if len(columns):
            likeness = standardize(queries.thumbnails[block]) @ standardize(references.thumbnails[columns]).T
            likeness[~near[:, columns]] = -1
            pairs += [
                (queries.names[start + i], references.names[columns[k]])
                for i, k in enumerate(likeness.argmax(axis=1))
                if likeness[i, k] >= MIN_CORRELATION
            ]
    return pairs


def scan(
    root: str, training: bool, image_size: int, flag: str, max_images: int | None = None, seed: int = 42
) -> Scan:
    """Decode every picture that a run would use, each file once, and look for what is wrong with them.

    Args:
        root, training, max_images, seed, flag: as of `InpaintingDataset`; or shards, for training.

    Raises:
        UserError: no folder, no image, a damaged shard.
    """
    if training and is_shards(root):
        data = ShardDataset(root, max_images=max_images, seed=seed)
        total, uses = int(data.counts.sum()), Counter[str]()
        shards = [(path, n) for path, n in zip(data.shards, data.counts, strict=True) if n]
        sources: Iterator[Path | Sample] = (
            sample for path, n in shards for sample in read_counted(path, 0, int(n))
        )
    else:
        paths, _ = list_root(root, training, flag)
        paths = [paths[i] for i in choose(len(paths), max_images, seed)]
        files = dict.fromkeys(paths)
        total, uses, sources = len(files), Counter(map(str, paths)), iter(files)

    def look(source: Path | Sample) -> tuple[str, bytes, int, np.ndarray, np.ndarray] | UserError:
        try:
            image = read_image(source, least_side=max(image_size, SIDE))
        except UserError as error:
            return error
        content = source.getvalue() if isinstance(source, io.BytesIO) else source.read_bytes()
        side = min(image.shape[:2])  # its own, if it is below `image_size`
        return str(source), hashlib.sha256(content).digest(), side, *perceptual_hash(image)

    seen: list[tuple[str, bytes, int, np.ndarray, np.ndarray]] = []
    unreadable: list[str] = []
    bar = tqdm(total=total, desc=f"looking at {flag[2:]}", unit="image", leave=False, disable=None)
    with bar, ThreadPoolExecutor(os.cpu_count()) as pool:
        while block := list(itertools.islice(sources, BLOCK)):
            for found in pool.map(look, block):
                bar.update()
                if isinstance(found, UserError):
                    unreadable.append(str(found))
                else:
                    seen.append(found)

    names, digests = [each[0] for each in seen], [each[1] for each in seen]
    signs = np.array([each[3] for each in seen], np.int8).reshape(-1, 64)
    thumbnails = np.array([each[4] for each in seen], np.uint8).reshape(-1, THUMBNAIL**2)
    prints = Fingerprints(names, digests, signs, thumbnails)
    groups: dict[bytes, list[int]] = {}
    for i, digest in enumerate(digests):
        groups.setdefault(digest, []).append(i)
    distinct = prints.select([group[0] for group in groups.values()])
    return Scan(
        root=root,
        flag=flag,
        count=sum(uses.get(name, 1) for name in names),
        files=len(seen) + len(unreadable),
        unreadable=unreadable,
        short_sides={name: side for name, _, side, *_ in seen if side < image_size},
        exact=[[names[i] for i in group] for group in groups.values() if len(group) > 1],
        near=find_near(distinct, distinct, earlier=True),
        prints=prints,
        uses=uses,
    )


def find_overlap(
    train: Fingerprints, val: Fingerprints
) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """The validation pictures that training sees: (validation, training) of the same bytes, and alike."""
    known = dict(zip(train.digests, train.names, strict=True))
    exact = [
        (name, known[digest]) for name, digest in zip(val.names, val.digests, strict=True) if digest in known
    ]
    rest = [i for i, digest in enumerate(val.digests) if digest not in known]
    return exact, find_near(val.select(rest), train)
