"""Fills holes in arrays and files with trained weights."""

from inference.inpainter import Inpainter, inpaint

__all__ = ["Inpainter", "inpaint"]
