"""Runs a network that `export.py` wrote as an ONNX file, on the CPU, with onnxruntime."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from config import with_current_names
from utils import UserError

FORMAT = "msse-inpainting-export-1"  # what the metadata of a file that `export.py` wrote begins with


class OnnxNetwork:
    """A network in an ONNX file, called like `InpaintingNetwork`; it returns `output` alone.

    Shapes:
        image (B, 3, H, W) in [0, 1], any value under the hole; mask (B, 1, H, W), 1 = missing.

    Raises:
        UserError: naming `flag`, if onnxruntime is missing, or the file is, or is not one of `export.py`.
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
        options.log_severity_level = 4  # what is wrong is raised
        try:
            self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its errors share no other base
            if type(error).__module__.startswith("onnxruntime"):
                reason = str(error).splitlines()[0][:120]
                raise UserError(f"{flag}: not a readable ONNX file: {path} ({reason})") from None
            raise
        self.metadata = dict(self.session.get_modelmeta().custom_metadata_map)
        if self.metadata.get("format") != FORMAT:
            raise UserError(f"{flag}: not written by this version's export.py: {path}")
        self.trained = with_current_names(json.loads(self.metadata["trained"]))  # image_size and mask_ratio
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
        """Complete the hole over a guess (B, 3, H, W) of the whole instead of over smaller copies."""
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
