"""Fill any hole in any image, with its context alone, and in tiles where it is large."""

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
from inference.tiling import OVERLAP, WHOLE, Region, bands, crops, enlarge, halve, to_tensor, to_unit
from texture import DETAIL, add_texture, check_detail

SMALLEST_TILE = 128  # pixels per side
BASE_BYTES = 400 * 2**20  # memory of a process that has loaded torch and a network
BYTES_PER_PIXEL = 4300  # memory to complete a tile
TEXTURE_SIDE = 4  # sides of a tile to which texture is added at once; it needs less memory


class Inpainter:
    """Fills holes in images of any size; every pixel outside the hole comes back as it was.

    An image of up to `WHOLE` pixels per side gets exactly the network's completion, and then texture. In a
    larger one, holes are grouped, and each group is completed in a crop; a crop that is still larger is
    completed at half its size first, as the network does inside itself: the enlarged completion is the
    prefill of overlapping tiles. Time and memory depend on the size of the hole, not of the image.

    Args:
        network: in evaluation mode, on its device; or one that was exported to ONNX.
        max_memory: bytes that the process should stay below, the image's own not counted; it sets `tile`.
            Where memory runs out all the same, the region being filled is done in tiles of half that side.
        flip: average with the completion of the mirrored image; twice the time.
        passes: completions over the previous one's result; each costs the time of one.
        detail: share of detail copied from the known pixels, in [0, 1] (see `add_texture`); 0 gives the
            network's completion, which has the highest PSNR.

    Attributes:
        tile: side of the tiles, in pixels.
        after_run: called after each of the runs that `count_runs` counts, for a progress bar.
    """

    after_run: Callable[[], None] | None = None

    def __init__(
        self,
        network: Network,
        *,
        max_memory: float = 2 * 2**30,
        flip: bool = False,
        passes: int = 1,
        detail: float = DETAIL,
    ) -> None:
        if passes < 1:
            raise ValueError(f"passes must be at least 1, got {passes}")
        check_detail(detail)
        self.network, self.flip, self.passes, self.detail = network, flip, passes, detail
        self.device = network.device
        affordable = math.isqrt(max(0, int(max_memory - BASE_BYTES)) // BYTES_PER_PIXEL)
        self.tile = max(SMALLEST_TILE, min(WHOLE, affordable // OVERLAP * OVERLAP))

    @classmethod
    def from_checkpoint(
        cls, path: str | Path | None = None, device: str = "auto", **settings: Any
    ) -> "Inpainter":
        """An inpainter with the network of a checkpoint file, or the bundled one.

        Args:
            settings: other arguments of `Inpainter`.

        Raises:
            UserError: if the file is missing, damaged, or another program's.
        """
        network, _ = load_network(path, select_device(device))
        return cls(network, **settings)

    def __call__(self, image: Any, mask: Any) -> Any:
        """Fill the hole; the result has the image's class, size and type, and shares no memory with it.

        PIL images of other modes than L, LA, RGB, RGBA and I;16 come back as RGB or RGBA.

        Args:
            image: a PIL image; an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4; the last is alpha and
                stays) of uint8, uint16 or float in [0, 1]; a tensor (1 or 3, H, W) or (B, 1 or 3, H, W),
                uint8 or float in [0, 1]; or a list of such.
            mask: a PIL image, array or tensor of the same height and width; for a list a list, or one for
                all; for a batch tensor (B, 1, H, W), or one for all. Missing are values from 0.5 up if none
                exceeds 1, else from half of the range up (32768 for uint16, 127.5 for other types).

        Raises:
            ValueError: naming the shape or type that cannot be filled.
        """
        if isinstance(image, list | tuple):
            masks = mask if isinstance(mask, list | tuple) else [mask] * len(image)
            if len(masks) != len(image):
                raise ValueError(f"{len(image)} images but {len(masks)} masks")
            return [self(*pair) for pair in zip(image, masks, strict=True)]
        if isinstance(image, Image.Image):
            return self._fill_pil(image, mask)
        if isinstance(image, torch.Tensor):
            return self._fill_tensor(image, mask)
        if isinstance(image, np.ndarray):
            return self.fill_array(image, as_mask(mask))
        raise ValueError(f"image must be a PIL image, an array or a tensor, got {type(image).__name__}")

    def _fill_pil(self, image: Image.Image, mask: Any) -> Image.Image:
        if image.mode in ("I", "F", "I;16B", "I;16L", "I;16N"):
            raise ValueError(f"a PIL image of mode {image.mode} would lose values: pass its array")
        if image.mode not in ("L", "LA", "RGB", "RGBA", "I;16"):
            return self._fill_pil(image.convert("RGBA" if image.has_transparency_data else "RGB"), mask)
        array = np.array(image)
        if image.mode == "LA":
            filled = np.dstack([self.fill_array(array[:, :, 0], as_mask(mask)), array[:, :, 1]])
        else:
            filled = self.fill_array(array, as_mask(mask))
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
            raise ValueError(
                f"a tensor must be (1 or 3, H, W) or (B, 1 or 3, H, W), got {tuple(image.shape)}"
            )
        array = image.detach().permute(1, 2, 0).cpu()
        if array.is_floating_point():
            array = array.float()
        missing = as_mask(mask)
        result = torch.from_numpy(self.fill_array(array.numpy(), missing)).permute(2, 0, 1)
        result = result.to(image.device, image.dtype)
        return torch.where(torch.from_numpy(missing).to(image.device), result, image)

    def fill_array(self, image: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Fill an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4); mask (H, W) bool; see `__call__`."""
        if image.dtype not in (np.uint8, np.uint16, np.float32, np.float64, np.float16):
            raise ValueError(f"an image must be uint8, uint16 or float, got {image.dtype}")
        if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3, 4)):
            raise ValueError(f"an image must be (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), got {image.shape}")
        if mask.shape != image.shape[:2]:
            raise ValueError(f"the mask is {mask.shape}, but the image is {image.shape[:2]}")
        if image.dtype.kind == "f":
            known = image[~mask]
            if known.size and not (known.min() >= 0 and known.max() <= 1):  # also catches NaN
                raise ValueError("a float image must be in [0, 1] outside the hole")
        filled = image.copy()
        color = filled[:, :, None] if filled.ndim == 2 else filled[:, :, :3]
        for region in self.regions(mask):
            color[region] = self.fill_region(color[region], mask[region])
        return filled

    def regions(self, mask: np.ndarray) -> list[Region]:
        """The parts of an image that `fill_region` takes one by one to fill a mask (H, W) bool."""
        return crops(mask, self.tile)

    @torch.inference_mode()
    def fill_region(self, image: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """A copy of one of the `regions` of an image, (h, w, 1 or 3), filled under its mask (h, w) bool."""
        tile = self.tile
        while True:
            filled = np.ascontiguousarray(image).copy()
            filled[mask] = 0  # NaN would survive even a weight of 0 in the blending
            try:
                self._fill_pyramid(filled, mask, tile)
                self._add_texture(filled, mask, TEXTURE_SIDE * tile)
                return filled
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error) or tile <= SMALLEST_TILE:
                    raise
            tile = max(SMALLEST_TILE, tile // 2)
            print(f"note: out of memory; going on with tiles of {tile} pixels", file=sys.stderr)

    def _fill_pyramid(self, image: np.ndarray, mask: np.ndarray, tile: int) -> None:
        """Fill an image (H, W, 1 or 3) in place: in one piece, or over the completion of its half size."""
        if not mask.any():
            return
        if max(mask.shape) <= tile:
            write_completion(image, mask, self._complete(image, mask))
            return
        half, half_mask = halve(image, mask)
        self._fill_pyramid(half, half_mask, tile)
        fill_tiles(
            image,
            mask,
            tile,
            lambda region: self._complete(image[region], mask[region], enlarge(half, region)),
        )

    def _add_texture(self, image: np.ndarray, mask: np.ndarray, side: int) -> None:
        """Add texture to a filled image (H, W, 1 or 3) in place, in tiles of at most `side` pixels."""
        if not self.detail or not mask.any():
            return
        filled = image.copy()

        def sharpened(region: Region) -> np.ndarray:
            missing = torch.from_numpy(mask[region].astype(np.float32))[None, None].to(self.device)
            tile = to_tensor(filled[region]).to(self.device)
            return add_texture(tile, missing, self.detail)[0].permute(1, 2, 0).cpu().numpy()

        fill_tiles(image, mask, side, sharpened)

    def _complete(self, image: np.ndarray, mask: np.ndarray, prefill: np.ndarray | None = None) -> np.ndarray:
        """The network's completion, (H, W, 3) float32 in [0, 1], over its own prefill or the one given."""
        missing = torch.from_numpy(mask.astype(np.float32))[None, None].to(self.device)
        known = to_tensor(image).to(self.device).expand(-1, 3, -1, -1).masked_fill(missing > 0, 0)
        guess = None if prefill is None else to_tensor(prefill).to(self.device).expand(-1, 3, -1, -1)
        refined = self._run_passes(known, missing, guess)
        if self.flip:
            mirrored_guess = None if guess is None else guess.flip(3)
            mirrored = self._run_passes(known.flip(3), missing.flip(3), mirrored_guess)
            refined = (refined + mirrored.flip(3)) / 2
        if self.after_run is not None:
            self.after_run()
        return refined[0].permute(1, 2, 0).cpu().numpy()

    def _run_passes(
        self, image: torch.Tensor, mask: torch.Tensor, prefill: torch.Tensor | None
    ) -> torch.Tensor:
        def complete_over(guess: torch.Tensor) -> torch.Tensor:
            guess = torch.where(mask > 0, guess, image)
            return self.network.complete_from_prefill(guess, image, mask)["refined"].clamp(0, 1)

        refined = self.network(image, mask)["output"] if prefill is None else complete_over(prefill)
        for _ in range(self.passes - 1):
            refined = complete_over(refined)
        return refined


def fill_tiles(
    image: np.ndarray, mask: np.ndarray, side: int, complete: Callable[[Region], np.ndarray]
) -> None:
    """Fill an image (H, W, 1 or 3) in place with the blended completions (h, w, 1 or 3) of its tiles."""
    for (rows, row_weights), columns in bands(mask, side):
        band = np.broadcast_to(to_unit(image[rows]), (*mask[rows].shape, 3)).copy()
        for span, weights in columns:
            weight = weights[:, None]
            band[:, span] = weight * complete((rows, span)) + (1 - weight) * band[:, span]
        write_completion(image[rows], mask[rows], band, row_weights)


def write_completion(
    image: np.ndarray, mask: np.ndarray, completion: np.ndarray, row_weights: np.ndarray | None = None
) -> None:
    """Write a completion (H, W, 3) into the hole of an image, weighted by row (H,) against its values."""
    values = completion[mask]
    if image.shape[2] == 1:
        values = values.mean(axis=1, keepdims=True)
    if image.dtype.kind == "u":
        values = values * np.iinfo(image.dtype).max
    if row_weights is not None:
        weight = np.broadcast_to(row_weights[:, None], mask.shape)[mask][:, None]
        values = weight * values + (1 - weight) * image[mask]
    image[mask] = values if image.dtype.kind == "f" else np.rint(values)


def inpaint(image: Any, mask: Any) -> Any:
    """Fill the hole with the bundled network, called like `cv2.inpaint`."""
    return _bundled()(image, mask)


@functools.cache
def _bundled() -> Inpainter:
    return Inpainter.from_checkpoint()


def as_mask(mask: Any) -> np.ndarray:
    """Convert a PIL image, an array or a tensor to a mask (H, W) bool, 1 = missing; see `Inpainter`.

    A PIL image is read like a mask file, by `binarise`.

    Raises:
        ValueError: naming the shape or type that is no mask.
    """
    if isinstance(mask, Image.Image):
        return binarise(*colors_of(mask))[0]
    if isinstance(mask, torch.Tensor):
        mask = mask.detach().cpu().numpy()
        mask = mask[0] if mask.ndim == 3 and mask.shape[0] == 1 else mask
    if not isinstance(mask, np.ndarray):
        raise ValueError(f"mask must be a PIL image, an array or a tensor, got {type(mask).__name__}")
    if mask.ndim == 3 and mask.shape[2] == 1:
        mask = mask[:, :, 0]
    if mask.ndim != 2:
        raise ValueError(f"mask must be (H, W), (H, W, 1) or, as a tensor, (1, H, W), got {mask.shape}")
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
