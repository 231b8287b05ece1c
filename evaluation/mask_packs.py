"""Mask packs: the same holes over the same images on every machine, drawn once and verified by hashes."""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset
from tqdm import tqdm

from imaging.cache import IMAGES, open_pixels
from imaging.files import choose_subset, list_root, name_digest
from imaging.mask_file import read_mask, summarise
from imaging.random_masks import random_free_form_mask, random_mask, random_rectangular_mask
from utils import UserError, atomic_path, write_text

FORMAT = "msse-pack-1"
BUCKETS = ((0.01, 0.1), (0.1, 0.2), (0.2, 0.3), (0.3, 0.4), (0.4, 0.5), (0.5, 0.6))
MAX_DRAWS = 1000  # attempts at a mask that touches the border
DEFAULT_SIZE = 256  # pixels


def bucket_of(ratio: float) -> str:
    """The name of the bucket of a mask ratio, `10-20 %`; `other` below 1 % and from 60 % up."""
    for low, high in BUCKETS:
        if low <= ratio < high:
            return f"{100 * low:.0f}-{100 * high:.0f} %"
    return "other"


def bucket_order(label: str) -> tuple[bool, int, str]:
    """Sort key of the names of buckets: by mask ratio, `other` last."""
    return label == "other", len(label), label


def border_mask(
    height: int, width: int, mask_ratio: tuple[float, float], generator: np.random.Generator
) -> np.ndarray:
    """A mask of `random_mask` that touches the border of the image."""
    for _ in range(MAX_DRAWS):
        mask = random_mask(height, width, mask_ratio, generator)
        if mask[[0, -1]].any() or mask[:, [0, -1]].any():
            return mask
    mask[0, 0] = 1
    return mask


KINDS = {"strokes": random_free_form_mask, "boxes": random_rectangular_mask, "border": border_mask}


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def make_pack(root: str, folder: Path, image_size: int, seed: int, max_images: int | None) -> int:
    """Draw one mask per bucket for every image of a root; write them and `manifest.json` to `folder`.

    Kinds take turns, so that every bucket has equally many strokes, boxes and masks at the border. Images are
    not copied: the manifest lists them by name and SHA-256.

    Args:
        root, image_size, seed, max_images: see `InpaintingDataset`.

    Returns:
        The number of masks.

    Raises:
        UserError: if there is no folder or no image, or `folder` cannot be written or holds a pack already.
    """
    paths, names = list_root(root, False, "--test_root")
    if (folder / "manifest.json").exists():
        raise UserError(f"--make_pack: {folder} holds a pack already")
    items = []
    try:
        chosen = choose_subset(len(paths), max_images, seed)
        for i in tqdm(chosen, desc="drawing", unit="image", leave=False, disable=None):
            image_sha256 = digest(paths[i].read_bytes())
            for j, (low, high) in enumerate(BUCKETS):
                kind = list(KINDS)[(i + j) % len(KINDS)]
                mask_seed = [seed, name_digest(names[i]), j]
                generator = np.random.default_rng(mask_seed)
                pixel = 1 / image_size**2  # precision of the mask ratio
                mask = KINDS[kind](image_size, image_size, (low + pixel, high - pixel), generator)
                label = bucket_of(float(mask.mean()))
                path = folder / "masks" / label.removesuffix(" %") / f"{names[i]}.png"
                with atomic_path(path) as temporary:
                    Image.fromarray(mask * 255).save(temporary, format="PNG")
                items.append(
                    {
                        "image": names[i],
                        "image_sha256": image_sha256,
                        "mask": path.relative_to(folder).as_posix(),
                        "mask_sha256": digest(np.packbits(mask).tobytes()),
                        "bucket": label,
                        "kind": kind,
                        "ratio": float(mask.mean()),
                        "seed": mask_seed,
                    }
                )
        manifest = {"format": FORMAT, "image_size": image_size, "seed": seed, "items": items}
        write_text(json.dumps(manifest, indent=1) + "\n", folder / "manifest.json")
    except OSError as error:
        raise UserError(f"--make_pack: cannot write to {folder}: {error.strerror}") from None
    return len(items)


class PackDataset(Dataset):
    """The images of a root under the masks of a pack, bucket by bucket.

    Args:
        folder: written by `make_pack`.
        root: a folder that holds the images; it need not be the one that the pack was made from.
        cache_dir: see `InpaintingDataset`.

    Attributes:
        image_size: pixels.
        digest: SHA-256 of the manifest.

    Items are dicts of image (3, S, S) float32 in [0, 1], mask (1, S, S) float32, 1 = missing, name,
    which begins with the bucket, and source, the name of the image.

    Raises:
        UserError: if the manifest is missing or damaged, or an image or a mask is missing or has changed.
    """

    def __init__(self, folder: Path, root: str, cache_dir: str | Path | None = "") -> None:
        try:
            text = (folder / "manifest.json").read_text()
            manifest = json.loads(text)
            if manifest["format"] != FORMAT:
                raise ValueError(f"format {manifest['format']}")
            self.items: list[dict[str, Any]] = manifest["items"]
            self.image_size = int(manifest["image_size"])
            hashes = {item["image"]: item["image_sha256"] for item in self.items}
        except FileNotFoundError:
            raise UserError(f"--pack: no manifest.json in {folder}") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"--pack: not a manifest of this project: {folder / 'manifest.json'} ({error})"
            ) from None
        self.folder, self.digest = folder, digest(text.encode())
        paths, names = list_root(root, False, "--test_root")
        files = {name: path for name, path in zip(names, paths, strict=True) if name in hashes}
        for name, expected in hashes.items():
            if name not in files:
                raise UserError(f"--pack: {name} is not in {root}")
            if digest(files[name].read_bytes()) != expected:
                raise UserError(f"--pack: the file has changed since the pack was made: {files[name]}")
        self.positions = {name: i for i, name in enumerate(files)}
        self.pixels = open_pixels(list(files.values()), self.image_size, IMAGES, cache_dir, "test_root")
        self.unreadable = self.pixels.unreadable
        if self.unreadable:
            raise UserError(f"--pack: {self.unreadable[0]}")
        for note in summarise((item["mask"], self.read_mask(item)[1]) for item in self.items):
            print(f"note: --pack {folder}: {note}", file=sys.stderr)

    def read_mask(self, item: dict[str, Any]) -> tuple[np.ndarray, dict[str, str]]:
        """The mask (S, S) bool of an item, checked against the manifest's hash, and findings on its file."""
        path = self.folder / item["mask"]
        try:
            mask, findings = read_mask(path)
        except UserError as error:
            raise UserError(f"--pack: not a readable mask: {error}") from None
        has_size = mask.shape == (self.image_size,) * 2
        if not has_size or digest(np.packbits(mask).tobytes()) != item["mask_sha256"]:
            raise UserError(f"--pack: the mask has changed since the pack was made: {path}")
        return mask, findings

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = self.items[index]
        image = self.pixels[self.positions[item["image"]]]
        top, left = ((side - self.image_size) // 2 for side in image.shape[:2])
        image = image[top : top + self.image_size, left : left + self.image_size]
        return {
            "image": torch.from_numpy(image.transpose(2, 0, 1).astype(np.float32) / 255),
            "mask": torch.from_numpy(self.read_mask(item)[0][None].astype(np.float32)),
            "name": f"{item['bucket'].removesuffix(' %')}/{item['image']}",
            "source": item["image"],
        }
