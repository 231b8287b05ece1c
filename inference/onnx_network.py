"""Runs an ONNX file of `export.py` on the CPU, with onnxruntime."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from config import with_current_names
from utils import UserError, first_line

FORMAT = "msse-inpainting-export-1"  # `format` in the metadata of an exported network


class OnnxNetwork:
    """A network in an ONNX file, called like `InpaintingNetwork`, that returns `output` alone.

    Attributes:
        settings: `image_size` and `mask_ratio` of the network's training.

    Shapes:
        image (B, 3, H, W) in [0, 1], any value under the hole; mask (B, 1, H, W), 1 = missing.

    Raises:
        UserError: naming `flag`, if onnxruntime or the file is missing, or `export.py` did not write it.
    """

    def __init__(self, path: Path, flag: str = "--checkpoint") -> None:
        try:
            import onnxruntime
        except ImportError:
            raise UserError(f"{flag}: an ONNX file needs onnxruntime: pip install onnxruntime") from None
        if not path.is_file():
            raise UserError(f"{flag}: no such file: {path}")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.add_session_config_entry("session.set_denormal_as_zero", "1")
        options.log_severity_level = 4  # errors are raised, not logged
        try:
            self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors share no other base
            if type(error).__module__.startswith("onnxruntime"):
                reason = first_line(error)
                raise UserError(f"{flag}: not a readable ONNX file: {path} ({reason})") from None
            raise
        self.metadata = dict(self.session.get_modelmeta().custom_metadata_map)
        if self.metadata.get("format") != FORMAT:
            raise UserError(f"{flag}: not written by this version's export.py: {path}")
        self.settings = with_current_names(json.loads(self.metadata["trained"]))
        self.device = torch.device("cpu")

    def __call__(
        self, image: torch.Tensor, mask: torch.Tensor, return_attention: bool = False
    ) -> dict[str, torch.Tensor]:
        if return_attention:
            raise ValueError("an ONNX file holds no attention maps")
        return {"output": self._run(image=image, mask=mask)}

    def complete_from_prefill(
        self, prefill: torch.Tensor, image: torch.Tensor, mask: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Complete the hole over a prefill (B, 3, H, W) instead of over the completion of smaller copies."""
        return {"refined": self._run(image=image, mask=mask, prefill=prefill)}

    def _run(self, **inputs: torch.Tensor) -> torch.Tensor:
        arrays: dict[str, Any] = {
            name: np.ascontiguousarray(value.detach().cpu().numpy(), np.float32)
            for name, value in inputs.items()
        }
        try:
            return torch.from_numpy(self.session.run(["output"], arrays)[0])
        except Exception as error:
            if "allocat" in str(error):
                raise MemoryError(str(error)) from None
            raise
