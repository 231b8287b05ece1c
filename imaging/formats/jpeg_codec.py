"""Reading and coding the quantised coefficients of a JPEG, through jpeglib's libjpeg builds."""

import contextlib
import ctypes
import functools
import importlib.metadata
import os
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jpeglib  # type: ignore[import-untyped,unused-ignore]
import numpy as np

from imaging.formats.jpeg_segments import (
    DHT,
    DQT,
    SOF,
    SOS,
    Frame,
    Segment,
    read_frame,
    read_segments,
    write_segments,
)

JPEGLIB = "1.0.2"  # its functions have the signatures that are called here
STANDARD_TABLES = 208  # bytes of one pair of the standard's example Huffman tables (T.81, annex K.3)
OPTIMISE = 64  # jpeglib's flag OPTIMIZE_CODING
STDERR_LOCK = threading.Lock()
installed = functools.cache(importlib.metadata.version)


@contextlib.contextmanager
def silent_stderr() -> Iterator[None]:
    """Silence the process's stderr, including that of other threads."""
    with STDERR_LOCK:
        try:
            saved = os.dup(2)
        except OSError:  # closed
            yield
            return
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)


@functools.cache
def null_file() -> int | None:
    """/dev/null, opened by C's `fopen`; None if that fails."""
    fopen = ctypes.CDLL(None).fopen
    fopen.restype = ctypes.c_void_p
    opened: int | None = fopen(b"/dev/null", b"w")
    return opened


@contextlib.contextmanager
def silent_libjpeg() -> Iterator[None]:
    """Silence libjpeg's warnings on stderr, which no setting turns off.

    C's variable `stderr` points to /dev/null meanwhile, so that Python's other threads keep theirs.
    """
    try:
        stream = ctypes.c_void_p.in_dll(ctypes.CDLL(None), "stderr")
        nowhere = null_file()
    except (ValueError, AttributeError, OSError, TypeError):  # not the GNU C library
        nowhere = None
    if nowhere is None:
        with silent_stderr():
            yield
        return
    with STDERR_LOCK:
        saved, stream.value = stream.value, nowhere
        try:
            yield
        finally:
            stream.value = saved


def is_supported() -> bool:
    """Whether jpeglib has the known version: a call of another one's functions may crash the process."""
    return installed("jpeglib") == JPEGLIB


@functools.cache
def library(version: str) -> ctypes.CDLL:
    """One of the libjpeg builds in the package jpeglib.

    Its functions are called directly: jpeglib's own classes decode the whole image to learn its size, hold
    at most 50 segments, and leave their temporary files behind when they fail.

    Raises:
        OSError: if jpeglib has another version.
    """
    found = sorted((Path(jpeglib.__file__).parent / "cjpeglib").glob(f"cjpeglib_{version}.*"))
    if not is_supported() or not found:
        raise OSError(f"jpeglib {JPEGLIB} with {version} is needed")
    return ctypes.CDLL(str(found[0]))


def read_coefficients(
    segments: list[Segment], frame: Frame, size: tuple[int, int]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The coefficients of a JPEG that Pillow has decoded: libjpeg crashes the process on a broken header.

    Args:
        size: height and width to read, which may include blocks beyond the image's edge.

    Returns:
        The coefficients of each component, one or three, (rows, columns, 64) int16, and its quantisation
        steps (64,) float32, both in row-major order within a block.

    Raises:
        OSError: if libjpeg refuses, or there is no room for temporary files.
    """
    planes = [np.zeros((*shape, 64), np.int16) for shape in frame.blocks(size)]
    tables, numbers = np.zeros((4, 64), np.uint16), np.zeros(4, np.int16)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "source.jpg")
        source.write_bytes(write_segments([_resized(segment, size) for segment in segments]))
        with silent_libjpeg():
            read = library("turbo210").read_jpeg_dct(
                os.fsencode(source), *_pointers(planes), None, _pointer(tables), _pointer(numbers)
            )
    if not read:
        raise OSError("libjpeg cannot read the coefficients")
    return planes, [tables[n].astype(np.float32) for n in numbers[: len(planes)]]


def code_coefficients(planes: list[np.ndarray], segments: list[Segment], frame: Frame) -> list[Segment]:
    """The Huffman tables and scans of coefficients, for the frame header of `segments`.

    Restart intervals are lost: jpeglib writes none, and the coefficients are the same without them.

    Raises:
        OSError: if libjpeg refuses, or there is no room for temporary files.
    """
    planes = [np.ascontiguousarray(plane) for plane in planes]
    with tempfile.TemporaryDirectory() as folder, silent_libjpeg():
        if frame.process != 0xC2:
            return _code_baseline(planes, segments, frame, Path(folder, "target.jpg"))
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            scans = pool.map(
                lambda i: _code_progressive(planes[i], segments, frame, i, Path(folder, str(i))),
                range(len(planes)),
            )
            # the coarse scans of all components before the fine ones
            return [segment for group in zip(*scans, strict=True) for scan in group for segment in scan]


def _code_baseline(
    planes: list[np.ndarray], segments: list[Segment], frame: Frame, target: Path
) -> list[Segment]:
    """Code by libjpeg-turbo, the fastest build, which writes no progressive files."""
    sampling = [factor for _, h, v, _ in frame.components for factor in (v, h)]
    kind = (1, 1) if len(planes) == 1 else (3, 3)  # grey or YCbCr; it selects the Huffman tables
    standard = sum(len(s.content) for s in segments if s.marker == DHT) % STANDARD_TABLES == 0
    size = (frame.height, frame.width)
    written = _write("turbo210", None, target, planes, size, sampling, kind, not standard)
    return [part for scan in _scans(written, [c[0] for c in frame.components]) for part in scan]


def _code_progressive(
    plane: np.ndarray, segments: list[Segment], frame: Frame, index: int, target: Path
) -> list[list[Segment]]:
    """The scans of one component by mozjpeg, which writes progressive files if it is given a source file.

    It tries 64 scans for three components and 23 for one, which takes four times as long. For more than four
    components it writes the usual scans, each of one component: four empty ones are added, then left out.
    """
    name, size = frame.components[index][0], (8 * plane.shape[0], 8 * plane.shape[1])
    names = [name, *[unused for unused in range(256) if unused != name][:4]]
    factors = [0x44, 0x11, 0x11, 0x11, 0x11]
    header = bytes([8, *size[0].to_bytes(2, "big"), *size[1].to_bytes(2, "big"), 5])
    header += b"".join(bytes([n, f, 0]) for n, f in zip(names, factors, strict=True))
    steps = Segment(DQT, bytes([0]) + bytes([1] * 64))
    code = Segment(DHT, bytes([0, 1] + [0] * 15 + [0]))
    empty = Segment(SOS, bytes([1, name, 0, 0, 0, 0]))
    source = target.with_suffix(".source")
    source.write_bytes(write_segments([steps, Segment(0xC2, header), code, empty]))
    written = _write("mozjpeg403", source, target, [plane], size, None, (0, 5), True)
    return _scans(written, [name])


def _write(
    version: str,
    source: Path | None,
    target: Path,
    planes: list[np.ndarray],
    size: tuple[int, int],
    sampling: list[int] | None,
    kind: tuple[int, int],
    optimise: bool,
) -> list[Segment]:
    """The segments of the file that libjpeg writes; `kind` is its colour space and number of components."""
    blocks = [count for plane in planes for count in plane.shape[:2]]
    defaults = (None, ctypes.c_short(-1), None, 0, None, None, None)  # tables, quality, further segments
    written = library(version).write_jpeg_dct(
        *(source and os.fsencode(source), os.fsencode(target)),
        *(*_pointers(planes), None, (ctypes.c_int * 2)(*size), (ctypes.c_int * 6)(*blocks)),
        *(sampling and (ctypes.c_int * 6)(*sampling), *kind, *defaults),
        *(ctypes.c_uint(OPTIMISE if optimise else 0), ctypes.c_uint(0xFFFFFFFF)),
    )
    if not written:
        raise OSError("libjpeg cannot write the coefficients")
    return read_segments(target.read_bytes())[0]


def _scans(written: list[Segment], names: list[int]) -> list[list[Segment]]:
    """The scans of the first components, renamed to `names`, each with its Huffman tables before it."""
    frame = read_frame(written)
    if frame is None:
        raise OSError("libjpeg has written no JPEG")
    renamed = dict(zip((c[0] for c in frame.components), names, strict=False))
    result: list[list[Segment]] = []
    tables: list[Segment] = []
    for segment in written:
        if segment.marker == DHT:
            tables.append(segment)
        elif segment.marker == SOS:
            content = bytearray(segment.content)
            own = [at for at in range(1, 1 + 2 * content[0], 2) if content[at] in renamed]
            for at in own:
                content[at] = renamed[content[at]]
            if own:
                result.append([*tables, Segment(SOS, bytes(content), segment.scan)])
            tables = []
    return result


def _resized(segment: Segment, size: tuple[int, int]) -> Segment:
    """The segment, with another height and width if it is a frame header."""
    if segment.marker not in SOF:
        return segment
    sides = b"".join(side.to_bytes(2, "big") for side in size)
    return Segment(segment.marker, segment.content[:1] + sides + segment.content[5:])


def _pointer(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def _pointers(planes: list[np.ndarray]) -> list[ctypes.c_void_p | None]:
    return [_pointer(planes[i]) if i < len(planes) else None for i in range(3)]
