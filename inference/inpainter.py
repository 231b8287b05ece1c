"""Fill any hole in any picture: what surrounds each hole is completed, in tiles where it is large."""

import functools
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from imaging.mask_file import binarise, colors_of
from inference.checkpoints import Network, load_network
from inference.device import select_device
from inference.tiling import OVERLAP, WHOLE, Region, crops, enlarge, halve, tiles, to_tensor, to_unit

SMALLEST_TILE = 128  # pixels a side
BASE_BYTES = 400 * 2**20  # what a process takes that has loaded torch and a network
BYTES_PER_PIXEL = 4300  # of a tile, while the network completes it


class Inpainter:
    """Fills holes in pictures of any size; every pixel outside the hole comes back as it was.

    A picture of up to `WHOLE` pixels a side gets exactly what the network gives. In a larger one, holes
    are grouped, and each group is completed in a crop; a crop that is still larger is completed at half its
    size first, which is what the network does inside itself, one level further up: the enlarged completion
    is the prefill of overlapping tiles. Time and memory follow the hole, not the picture.

    Args:
        network: in evaluation mode, on its device; or one that was exported to ONNX.
        max_memory: bytes that the process should stay below, the picture's own not counted; it sets the
            tile's side. Where memory runs out all the same, the tile is halved.
        flip: average with the completion of the mirrored picture; twice the time.
        passes: completions over the previous one's result; each costs the time of one.

    Attributes:
        after_run: if set, called after each of the runs that `count_runs` counts, as progress bars want it.
    """

    after_run: Callable[[], None] | None = None

    def __init__(
        self,
        network: Network,
        *,
        max_memory: float = 2 * 2**30,
        flip: bool = False,
        passes: int = 1,
    ) -> None:
        if passes < 1:
            raise ValueError(f"passes must be at least 1, got {passes}")
        self.network, self.flip, self.passes = network, flip, passes
        self.device = network.device
        affordable = math.isqrt(max(0, int(max_memory - BASE_BYTES)) // BYTES_PER_PIXEL)
        self.tile = max(SMALLEST_TILE, min(WHOLE, affordable // OVERLAP * OVERLAP))

    @classmethod
    def from_checkpoint(
        cls, path: str | Path | None = None, device: str = "auto", **settings: Any
    ) -> "Inpainter":
        """The network of a checkpoint file, or the one that comes with the project; `settings` as above.

        Raises:
            UserError: if the file is missing, damaged, or another program's.
        """
        network, _ = load_network(path, select_device(device))
        return cls(network, **settings)

    def __call__(self, image: Any, mask: Any) -> Any:
        """Fill the hole; the result is of the image's kind, size and type, and shares no memory with it.

        Args:
            image: a PIL picture; an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4; the last is alpha and
                stays) of uint8, uint16 or float in [0, 1]; a tensor (3, H, W) or (B, 3, H, W), uint8 or float
                in [0, 1]; or a list of such.
            mask: of the same height and width; nonzero is missing in arrays and tensors of bool or with no
                value above 1, from half of the range up in the others. A list, or one for all.

        Raises:
            ValueError: naming the shape or type that it cannot take.
        """
        if isinstance(image, list | tuple):
            masks = mask if isinstance(mask, list | tuple) else [mask] * len(image)
            if len(masks) != len(image):
                raise ValueError(f"{len(image)} images but {len(masks)} masks")
            return [self(*pair) for pair in zip(image, masks, strict=True)]
        if isinstance(image, Image.Image):
            return self._fill_picture(image, mask)
        if isinstance(image, torch.Tensor):
            return self._fill_tensor(image, mask)
        if isinstance(image, np.ndarray):
            return self.fill(image, as_hole(mask))
        raise ValueError(f"image must be a PIL picture, an array or a tensor, got {type(image).__name__}")

    def _fill_picture(self, image: Image.Image, mask: Any) -> Image.Image:
        if image.mode not in ("L", "LA", "RGB", "RGBA", "I;16"):
            return self._fill_picture(image.convert("RGBA" if image.has_transparency_data else "RGB"), mask)
        pixels = np.array(image)
        if image.mode == "LA":
            filled = np.dstack([self.fill(pixels[:, :, 0], as_hole(mask)), pixels[:, :, 1]])
        else:
            filled = self.fill(pixels, as_hole(mask))
        if image.mode == "I;16":
            result = Image.frombytes("I;16", image.size, filled.astype("<u2").tobytes())
        else:
            result = Image.fromarray(filled)
        result.info = dict(image.info)
        return result

    def _fill_tensor(self, image: torch.Tensor, mask: Any) -> torch.Tensor:
        if image.ndim == 4:
            masks = mask if isinstance(mask, torch.Tensor) and mask.ndim == 4 else [mask] * len(image)
            if len(masks) not in (1, len(image)):
                raise ValueError(f"{len(image)} images but {len(masks)} masks")
            shared = len(masks) == 1
            filled = [self._fill_tensor(x, masks[0 if shared else i]) for i, x in enumerate(image)]
            return torch.stack(filled) if filled else image.clone()
        if image.ndim != 3 or image.shape[0] not in (1, 3):
            raise ValueError(f"a tensor must be (3, H, W) or (B, 3, H, W), got {tuple(image.shape)}")
        pixels = image.detach().permute(1, 2, 0).cpu()
        if pixels.is_floating_point():
            pixels = pixels.float()
        hole = as_hole(mask)
        result = torch.from_numpy(self.fill(pixels.numpy(), hole)).permute(2, 0, 1)
        result = result.to(image.device, image.dtype)
        return torch.where(torch.from_numpy(hole).to(image.device), result, image)

    def fill(self, pixels: np.ndarray, hole: np.ndarray) -> np.ndarray:
        """Fill `hole` (H, W) bool of `pixels` (H, W), (H, W, 1), (H, W, 3) or (H, W, 4); see `__call__`."""
        if pixels.dtype not in (np.uint8, np.uint16, np.float32, np.float64, np.float16):
            raise ValueError(f"pixels must be uint8, uint16 or float, got {pixels.dtype}")
        if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (1, 3, 4)):
            raise ValueError(f"pixels must be (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), got {pixels.shape}")
        if hole.shape != pixels.shape[:2]:
            raise ValueError(f"the mask is {hole.shape}, but the image is {pixels.shape[:2]}")
        if pixels.dtype.kind == "f":
            known = pixels[~hole]
            if known.size and not (known.min() >= 0 and known.max() <= 1):  # also catches NaN
                raise ValueError("float pixels must be in [0, 1] outside the hole")
        filled = pixels.copy()
        color = filled[:, :, None] if filled.ndim == 2 else filled[:, :, :3]
        for region in self.regions(hole):
            color[region] = self.complete(color[region], hole[region])
        return filled

    def regions(self, hole: np.ndarray) -> list[Region]:
        """The parts of a picture that `complete` takes one by one to fill its hole (H, W) bool."""
        return crops(hole, self.tile)

    @torch.inference_mode()
    def complete(self, pixels: np.ndarray, hole: np.ndarray) -> np.ndarray:
        """A copy of one of `regions`, (h, w, 1 or 3) as of `__call__`, with its hole (h, w) bool filled."""
        filled = np.ascontiguousarray(pixels).copy()
        filled[hole] = 0  # NaN would survive even a weight of 0 in the blending
        self._complete(filled, hole)
        return filled

    def _complete(self, pixels: np.ndarray, hole: np.ndarray) -> None:
        """Fill the hole of `pixels` (H, W, 1 or 3) in place, at half its size first if it is large."""
        while hole.any():
            try:
                if max(hole.shape) <= self.tile:
                    self._write(pixels, hole, self._run(pixels, hole))
                    return
                below, below_hole = halve(pixels, hole)
                self._complete(below, below_hole)
                for rows, fade_in in tiles(np.any(hole, axis=1), self.tile):
                    band = self._complete_band(pixels, hole, below, rows)
                    self._write(pixels[rows], hole[rows], band, fade_in)
                return
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error) or self.tile <= SMALLEST_TILE:
                    raise
            self.tile //= 2
            print(f"note: out of memory; going on with tiles of {self.tile} pixels", file=sys.stderr)

    def _complete_band(
        self, pixels: np.ndarray, hole: np.ndarray, below: np.ndarray, rows: slice
    ) -> np.ndarray:
        """The completion of some rows, (h, W, 3) float32 in [0, 1], from tiles side by side over `below`."""
        band = np.broadcast_to(to_unit(pixels[rows]), (*hole[rows].shape, 3)).copy()
        for columns, fade_in in tiles(np.any(hole[rows], axis=0), self.tile):
            region = rows, columns
            if hole[region].any():
                completed = self._run(pixels[region], hole[region], enlarge(below, region))
                weight = fade_in[:, None]
                band[:, columns] = weight * completed + (1 - weight) * band[:, columns]
        return band

    def _run(self, pixels: np.ndarray, hole: np.ndarray, prefill: np.ndarray | None = None) -> np.ndarray:
        """The network's completion, (H, W, 3) float32 in [0, 1], over its own prefill or the one given."""
        image = to_tensor(pixels).to(self.device).expand(-1, 3, -1, -1)
        mask = torch.from_numpy(hole.astype(np.float32))[None, None].to(self.device)
        image = image.masked_fill(mask > 0, 0)
        guess = None if prefill is None else to_tensor(prefill).to(self.device).expand(-1, 3, -1, -1)
        refined = self._passes(image, mask, guess)
        if self.flip:
            flipped = self._passes(image.flip(3), mask.flip(3), None if guess is None else guess.flip(3))
            refined = (refined + flipped.flip(3)) / 2
        if self.after_run is not None:
            self.after_run()
        return refined[0].permute(1, 2, 0).cpu().numpy()

    def _passes(self, image: torch.Tensor, mask: torch.Tensor, prefill: torch.Tensor | None) -> torch.Tensor:
        def over(guess: torch.Tensor) -> torch.Tensor:
            guess = torch.where(mask > 0, guess, image)
            return self.network.complete_from_prefill(guess, image, mask)["refined"].clamp(0, 1)

        refined = self.network(image, mask)["output"] if prefill is None else over(prefill)
        for _ in range(self.passes - 1):
            refined = over(refined)
        return refined

    @staticmethod
    def _write(
        pixels: np.ndarray, hole: np.ndarray, completed: np.ndarray, fade_in: np.ndarray | None = None
    ) -> None:
        """Put `completed` (H, W, 3) into the hole of `pixels`, rows weighted (H,) against what is there."""
        values = completed[hole]
        if pixels.shape[2] == 1:
            values = values.mean(axis=1, keepdims=True)
        if pixels.dtype.kind == "u":
            values = values * np.iinfo(pixels.dtype).max
        if fade_in is not None:
            weight = np.broadcast_to(fade_in[:, None], hole.shape)[hole][:, None]
            values = weight * values + (1 - weight) * pixels[hole]
        pixels[hole] = values if pixels.dtype.kind == "f" else np.rint(values)


def inpaint(image: Any, mask: Any) -> Any:
    """Fill the hole with the network that comes with the project, called like `cv2.inpaint`."""
    return _bundled()(image, mask)


@functools.cache
def _bundled() -> Inpainter:
    return Inpainter.from_checkpoint()


def as_hole(mask: Any) -> np.ndarray:
    """(H, W) bool, True = missing, of a PIL picture, an array or a tensor; see `Inpainter.__call__`.

    A PIL picture is read as a mask file is: `binarise`.

    Raises:
        ValueError: naming the shape or type that it cannot take.
    """
    if isinstance(mask, Image.Image):
        return binarise(*colors_of(mask))[0]
    if isinstance(mask, torch.Tensor):
        mask = mask.detach().cpu().numpy()
        mask = mask[0] if mask.ndim == 3 and mask.shape[0] == 1 else mask
    if not isinstance(mask, np.ndarray):
        raise ValueError(f"mask must be a PIL picture, an array or a tensor, got {type(mask).__name__}")
    if mask.ndim == 3 and mask.shape[2] == 1:
        mask = mask[:, :, 0]
    if mask.ndim != 2:
        raise ValueError(f"mask must be (H, W), (H, W, 1) or, of a tensor, (1, H, W), got {mask.shape}")
    if mask.dtype == bool:
        return mask
    if mask.dtype.kind not in "uif" or (mask.dtype.kind == "f" and not np.isfinite(mask).all()):
        raise ValueError("mask must be bool, integer or finite")
    if mask.size == 0 or mask.max() <= 1:
        return mask >= 0.5
    return mask >= (32768 if mask.dtype == np.uint16 else 127.5)


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out, on the GPU or on the CPU."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
