"""The strips and tiles of a TIFF file: their place in the image, and their encoding."""

from itertools import product

import imagecodecs
import numpy as np
import tifffile

Box = tuple[slice, slice, slice]  # channels, rows and columns


def boxes(page: tifffile.TiffPage) -> list[Box]:
    """The box of each strip or tile, in order; tiles may extend beyond the image."""
    height, width, channels = page.imagelength, page.imagewidth, page.samplesperpixel
    planes = [slice(0, channels)]
    if page.planarconfig == 2:
        planes = [slice(i, i + 1) for i in range(channels)]
    step_y, step_x = (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, width)
    bottom = height + step_y if page.is_tiled else height
    return [
        (plane, slice(y, min(y + step_y, bottom)), slice(x, x + step_x))
        for plane, y, x in product(planes, range(0, height, step_y), range(0, width, step_x))
    ]


def uncompressed_size(page: tifffile.TiffPage, box: Box) -> int:
    """The bytes of the samples of a strip or tile."""
    channels, rows, columns = (part.stop - part.start for part in box)
    return rows * ((columns * channels * page.bitspersample + 7) // 8)


def encode(page: tifffile.TiffPage, samples: np.ndarray, box: Box, deflate: bool) -> bytes:
    """The content of a strip or tile of `samples` (H, W, C).

    Args:
        deflate: compress by deflate without a predictor, instead of the page's compression.
    """
    channels, rows, columns = box
    block = samples[rows, columns, channels]
    lacking = rows.stop - rows.start - block.shape[0], columns.stop - columns.start - block.shape[1]
    if any(lacking):
        block = np.pad(block, ((0, lacking[0]), (0, lacking[1]), (0, 0)), mode="edge")
    predictor = 1 if deflate else page.predictor
    if page.bitspersample not in (8, 16, 32, 64):
        content = pack_rows(block.reshape(len(block), -1), page.bitspersample)
    elif predictor == 3:
        content = imagecodecs.floatpred_encode(np.ascontiguousarray(block), axis=-2).tobytes()
    else:
        block = block.view(f"u{block.itemsize}")
        if predictor == 2:
            block = np.concatenate([block[:, :1], block[:, 1:] - block[:, :-1]], axis=1)
        content = block.astype(block.dtype.newbyteorder(page.parent.byteorder), copy=False).tobytes()
    encoded = compress(content, 8 if deflate else page.compression, len(content) // len(block))
    if page.fillorder == 2 and not deflate:
        encoded = bytes(imagecodecs.bitorder_encode(encoded))
    return encoded


def compress(content: bytes, compression: int, row: int) -> bytes:
    """`content`, of `row` bytes per line of pixels, in one of the compressions of `tiff.ENCODED`."""
    if compression == 5:
        return bytes(imagecodecs.lzw_encode(content))
    if compression in (8, 32946):
        return bytes(imagecodecs.deflate_encode(content, level=8))
    if compression == 32773:  # line by line: TIFF 6.0, page 42
        lines = range(0, len(content), row)
        return b"".join(imagecodecs.packbits_encode(content[start : start + row]) for start in lines)
    if compression == 34925:
        return bytes(imagecodecs.lzma_encode(content))
    if compression in (34926, 50000):
        return bytes(imagecodecs.zstd_encode(content, level=9))
    return content


def pack_rows(samples: np.ndarray, bits: int) -> bytes:
    """Rows (N, M) of unsigned samples in `bits` bits each, the highest first; each row starts a byte."""
    lines = []
    for row in samples:  # one by one, to save memory
        whole = row.astype(f">u{row.itemsize}").view(np.uint8).reshape(len(row), -1)
        lines.append(np.packbits(np.unpackbits(whole, axis=1)[:, -bits:]).tobytes())
    return b"".join(lines)
