"""Problems of image folders and shards: unreadable, small or duplicate images, and overlap of two roots."""

import hashlib
import io
import itertools
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from tqdm import tqdm

from imaging.cache import BLOCK
from imaging.files import choose_subset, list_root, require_large_images, too_small
from imaging.read import read_image
from imaging.shards import EncodedImage, ShardDataset, read_range
from utils import UserError, is_shards

SIDE = 32  # pixels, side of the image whose cosine transform is hashed
THUMBNAIL = 16  # pixels, side of the images by which candidates are compared
# Copies of 239 photographs, as JPEG of quality 30 or a third as large, were up to 6 bits away and correlated
# by 0.985 or more. Of 633,375 pairs of different portraits, all frontal on a plain ground, 260 were up to 8
# bits apart, but those correlated by 0.92 at most, and any pair by 0.93.
MAX_DISTANCE = 8  # bits
MIN_CORRELATION = 0.96
MIN_CONTRAST = 2.0  # standard deviation in grey levels of 255; a flatter image is not compared


class Fingerprint(NamedTuple):
    """Properties of a decoded image by which copies are recognised, and its size.

    Shapes:
        signs (64,) int8 in {-1, 1}, all 0 for an image without structure; thumbnail (256,) uint8.
    """

    name: str
    digest: bytes  # SHA-256 of the file
    short_side: int  # pixels; a large JPEG may be decoded at a smaller size, but not below the training size
    signs: np.ndarray
    thumbnail: np.ndarray


@dataclass(frozen=True)
class Scan:
    """Contents and problems of a root. A near duplicate of several files is paired with the most similar."""

    root: str
    flag: str
    count: int  # images per epoch: readable files, or crops of `sample`
    files: int  # distinct files, readable or not
    unreadable: list[str]  # one line each
    short_sides: dict[str, int]  # pixels, for files whose shorter side is below the training size
    exact: list[list[str]]  # groups of files with the same bytes
    near: list[tuple[str, str]]  # a file and the earlier one that it resembles
    fingerprints: list[Fingerprint]  # one per readable file
    uses: Counter[str]  # images per epoch by file, for files of folders

    def count_at(self, size: int, max_enlarge: float) -> int:
        """Images per epoch in a stage of `size` pixels, without those that `--max_enlarge` leaves out.

        Raises:
            UserError: if none are left.
        """
        left_out = [name for name, side in self.short_sides.items() if too_small(side, size, max_enlarge)]
        count = self.count - sum(self.uses[name] for name in left_out)
        require_large_images(count, self.root, size)
        return count


def perceptual_hash(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A hash of 64 bits, as signs, of which scaling and recompression change only a few, and a thumbnail.

    The bits tell which of the 8×8 lowest frequencies above zero, of the cosine transform of the 32×32 grey
    image, are above their median. Zauner, "Implementation and Benchmarking of Perceptual Image Hash
    Functions", 2010, section 3.2.1; we average areas where he filters before subsampling.

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
    queries: list[Fingerprint], references: list[Fingerprint], earlier: bool = False
) -> list[tuple[str, str]]:
    """Names of each query that has near duplicates among the references, and of the most similar of them.

    Args:
        earlier: compare query i only with the references before the i-th.
    """

    def standardize(images: list[Fingerprint]) -> np.ndarray:
        thumbnails = np.array([image.thumbnail for image in images])
        centered = thumbnails - thumbnails.mean(axis=1, keepdims=True, dtype=np.float32)
        return centered / np.linalg.norm(centered, axis=1, keepdims=True).clip(1)

    pairs: list[tuple[str, str]] = []
    signs = np.array([reference.signs for reference in references], np.float32).reshape(-1, 64)
    for start in range(0, len(queries), BLOCK):
        block = queries[start : start + BLOCK]
        # the product of two vectors of ±1 is 64 minus twice the bits that differ; with a vector of 0 it is 0
        products = np.array([query.signs for query in block], np.float32) @ signs.T  # (len(block), N)
        near = products >= 64 - 2 * MAX_DISTANCE
        if earlier:
            near &= np.arange(near.shape[1]) < start + np.arange(len(near))[:, None]
        columns = np.flatnonzero(near.any(axis=0))
        if len(columns):
            candidates = [references[k] for k in columns]
            correlation = standardize(block) @ standardize(candidates).T
            correlation[~near[:, columns]] = -1
            pairs += [
                (block[i].name, candidates[k].name)
                for i, k in enumerate(correlation.argmax(axis=1))
                if correlation[i, k] >= MIN_CORRELATION
            ]
    return pairs


def scan(
    root: str, training: bool, image_size: int, flag: str, max_images: int | None = None, seed: int = 42
) -> Scan:
    """Decode every image that a run would use, each file once, and look for problems.

    Args:
        root: see `InpaintingDataset`; or shards, for training.
        training, image_size, flag, max_images, seed: see `InpaintingDataset`.

    Raises:
        UserError: no folder, no image, a damaged shard.
    """
    if training and is_shards(root):
        data = ShardDataset(root, max_images=max_images, seed=seed)
        total, uses = int(data.counts.sum()), Counter[str]()
        shards = [(path, count) for path, count in zip(data.shards, data.counts, strict=True) if count]
        sources: Iterator[Path | EncodedImage] = (
            image for path, count in shards for image in read_range(path, 0, int(count))
        )
    else:
        paths, _ = list_root(root, training, flag)
        paths = [paths[i] for i in choose_subset(len(paths), max_images, seed)]
        files = dict.fromkeys(paths)
        total, uses, sources = len(files), Counter(map(str, paths)), iter(files)

    fingerprints: list[Fingerprint] = []
    unreadable: list[str] = []
    bar = tqdm(total=total, desc=f"scanning {flag[2:]}", unit="image", leave=False, disable=None)
    with bar, ThreadPoolExecutor(os.cpu_count()) as pool:
        while block := list(itertools.islice(sources, BLOCK)):
            for result in pool.map(take_fingerprint, block, itertools.repeat(max(image_size, SIDE))):
                bar.update()
                if isinstance(result, UserError):
                    unreadable.append(str(result))
                else:
                    fingerprints.append(result)

    copies: dict[bytes, list[Fingerprint]] = {}
    for image in fingerprints:
        copies.setdefault(image.digest, []).append(image)
    distinct = [group[0] for group in copies.values()]
    return Scan(
        root=root,
        flag=flag,
        count=sum(uses.get(image.name, 1) for image in fingerprints),
        files=len(fingerprints) + len(unreadable),
        unreadable=unreadable,
        short_sides={image.name: image.short_side for image in fingerprints if image.short_side < image_size},
        exact=[[image.name for image in group] for group in copies.values() if len(group) > 1],
        near=find_near(distinct, distinct, earlier=True),
        fingerprints=fingerprints,
        uses=uses,
    )


def take_fingerprint(source: Path | EncodedImage, min_side: int) -> Fingerprint | UserError:
    """Decode and hash one image, or return the error."""
    try:
        image = read_image(source, min_side)
    except UserError as error:
        return error
    content = source.getvalue() if isinstance(source, io.BytesIO) else source.read_bytes()
    digest = hashlib.sha256(content).digest()
    return Fingerprint(str(source), digest, min(image.shape[:2]), *perceptual_hash(image))


def find_overlap(
    train: list[Fingerprint], val: list[Fingerprint]
) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Exact and near duplicates of training images in validation, as names (validation, training)."""
    by_digest = {image.digest: image.name for image in train}
    exact = [(image.name, by_digest[image.digest]) for image in val if image.digest in by_digest]
    return exact, find_near([image for image in val if image.digest not in by_digest], train)
