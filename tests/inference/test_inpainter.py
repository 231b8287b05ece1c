"""Any image, any hole: known pixels stay, small images get the network's completion, large ones are tiled."""

from typing import Any

import numpy as np
import pytest
import torch
from conftest import photograph
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from inference.inpainter import SMALLEST_TILE, Inpainter, as_mask
from inference.tiling import WHOLE, count_runs, to_unit
from models import InpaintingNetwork
from texture import add_texture


@pytest.fixture(scope="module")
def network() -> InpaintingNetwork:
    torch.manual_seed(0)
    network = InpaintingNetwork(4, bottleneck_depth=1)
    generator = torch.Generator().manual_seed(0)
    for layer in (network.coarse_decoder.to_rgb, network.refinement_decoder.to_rgb):
        layer.weight.data.normal_(0, 0.02, generator=generator)  # away from zero: the output is the network's
    return network.eval()


@pytest.fixture(scope="module")
def inpainter(network: InpaintingNetwork) -> Inpainter:
    inpainter = Inpainter(network)
    inpainter.tile = 128  # so that small images exercise tiles
    return inpainter


def image_and_mask(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    hole = np.zeros((height, width), bool)
    hole[height // 4 : height // 2 + 1, width // 3 : 2 * width // 3 + 1] = True
    return photograph(height, width), hole


KINDS: list[Any] = [
    lambda p: p,
    lambda p: p[:, :, 0],
    lambda p: p[:, :, :1],
    lambda p: np.dstack([p, p[:, :, 0]]),
    lambda p: p.astype(np.uint16) * 257,
    lambda p: p[:, :, 0].astype(np.uint16) * 257,
    lambda p: p.astype(np.float32) / 255,
    lambda p: p.astype(np.float64) / 255,
    lambda p: torch.from_numpy(p).permute(2, 0, 1),
    lambda p: torch.from_numpy(p / 255).permute(2, 0, 1)[None].repeat(2, 1, 1, 1),
    lambda p: Image.fromarray(p),
    lambda p: Image.fromarray(p).convert("L"),
    lambda p: Image.fromarray(p).convert("LA"),
    lambda p: Image.fromarray(np.dstack([p, p[:, :, 0]])),
    lambda p: Image.fromarray(p[:, :, 0].astype(np.uint16) * 257),
]


@pytest.mark.parametrize("kind", range(len(KINDS)))
def test_the_result_is_of_the_images_kind_and_equal_outside_the_hole(kind: int, inpainter: Inpainter) -> None:
    pixels, hole = image_and_mask(40, 50)
    image = KINDS[kind](pixels)
    result = inpainter(image, hole)
    assert type(result) is type(image)
    if isinstance(image, Image.Image):
        assert result.mode == image.mode
    before, after = (np.asarray(each) for each in (image, result))
    if isinstance(image, torch.Tensor):
        before, after = (np.moveaxis(each, -3, -1) for each in (before, after))
    assert before.shape == after.shape and before.dtype == after.dtype
    outside, inside = (np.s_[..., ~hole, :], np.s_[..., hole, :]) if before.ndim > 2 else (~hole, hole)
    assert np.array_equal(before[outside], after[outside])
    assert not np.array_equal(before[inside], after[inside])
    if before.shape[-1] == 4 and before.ndim == 3:
        assert np.array_equal(before[:, :, 3], after[:, :, 3])  # alpha stays


def test_all_depths_agree(network: InpaintingNetwork) -> None:
    inpainter = Inpainter(network, detail=0)  # texture is added to the rounded completion
    pixels, hole = image_and_mask(48, 40)
    eight = inpainter(pixels, hole) / 255
    sixteen = inpainter(pixels.astype(np.uint16) * 257, hole) / 65535
    single = inpainter(pixels.astype(np.float32) / 255, hole)
    assert np.abs(eight - single).max() <= 0.5 / 255 + 1e-6
    assert np.abs(sixteen - single).max() <= 0.5 / 65535 + 1e-6


def completion(network: InpaintingNetwork, pixels: np.ndarray, hole: np.ndarray) -> tuple[torch.Tensor, ...]:
    """The image (1, 3, H, W) in [0, 1], its mask, and the network's output."""
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
    mask = torch.from_numpy(hole)[None, None].float()
    with torch.no_grad():
        return image, mask, network(image, mask)["output"]


def noise_and_mask(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """An image with texture everywhere, which a hole has to get too."""
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return pixels, image_and_mask(height, width)[1]


def contrast(image: np.ndarray, hole: np.ndarray) -> float:
    """Mean difference of neighbouring pixels in the hole, in [0, 1]."""
    values = to_unit(np.atleast_3d(image))
    return float(np.abs(np.diff(values, axis=1))[hole[:, 1:] & hole[:, :-1]].mean())


def test_without_detail_a_small_picture_gets_exactly_what_the_network_gives(
    network: InpaintingNetwork,
) -> None:
    image, mask, output = completion(network, *image_and_mask(60, 70))
    assert torch.equal(Inpainter(network, detail=0)(image, mask), output)


def test_detail_adds_texture_to_what_the_network_gives(network: InpaintingNetwork) -> None:
    image, mask, output = completion(network, *noise_and_mask(100, 140))
    assert torch.equal(Inpainter(network, detail=0)(image, mask), output)
    textured = Inpainter(network)(image, mask)
    assert torch.equal(textured, add_texture(output, mask)) and not torch.equal(textured, output)
    half = Inpainter(network, detail=0.5)(image, mask)
    assert torch.equal(half, add_texture(output, mask, 0.5)) and not torch.equal(half, textured)


@pytest.mark.parametrize("detail", [2, -0.1, float("nan")])
def test_a_detail_that_is_no_share_is_refused(network: InpaintingNetwork, detail: float) -> None:
    with pytest.raises(ValueError, match=r"detail must be in \[0, 1\], got "):
        Inpainter(network, detail=detail)


@pytest.mark.parametrize("kind", [1, 2, 4, 5, 7, 9, 11, 14])
def test_every_kind_of_image_gets_texture(kind: int, network: InpaintingNetwork) -> None:
    pixels, hole = noise_and_mask(80, 110)
    smooth, textured = (
        np.asarray(Inpainter(network, detail=detail)(KINDS[kind](pixels), hole)) for detail in (0, 1)
    )
    if smooth.ndim == 4:
        smooth, textured = smooth[0].transpose(1, 2, 0), textured[0].transpose(1, 2, 0)
    assert np.array_equal(smooth[~hole], textured[~hole])
    assert contrast(textured, hole) > 2 * contrast(smooth, hole)


def test_texture_in_tiles_keeps_known_pixels_and_reaches_all_of_the_hole(
    network: InpaintingNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inference.inpainter.TEXTURE_SIDE", 1)
    sizes = []

    def counted(tile: torch.Tensor, *arguments: Any) -> torch.Tensor:
        sizes.append(tuple(tile.shape))
        return add_texture(tile, *arguments)

    monkeypatch.setattr("inference.inpainter.add_texture", counted)
    pixels = np.random.default_rng(0).integers(0, 256, (200, 260, 3), np.uint8)
    hole = np.zeros((200, 260), bool)
    hole[40:160:20, 30:230] = hole[40:160, 30:230:20] = True  # a lattice, so that all tiles know enough
    hole[80:110, 100:160] = True
    results = []
    for detail in (0, 1):
        inpainter = Inpainter(network, detail=detail)
        inpainter.tile = 128
        results.append(inpainter(pixels, hole))
    smooth, textured = results
    assert len(sizes) > 4 and set(sizes) == {(1, 3, 128, 128)}
    assert np.array_equal(textured[~hole], pixels[~hole])
    inner = np.zeros_like(hole)
    inner[84:106, 104:156] = True
    assert contrast(textured, inner) > 2 * contrast(smooth, inner)


def test_texture_of_neighbouring_tiles_is_blended(
    network: InpaintingNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inference.inpainter.TEXTURE_SIDE", 1)
    shades = iter(range(10**6))
    monkeypatch.setattr(
        "inference.inpainter.add_texture", lambda tile, *_: torch.full_like(tile, next(shades) % 3 / 2)
    )
    inpainter = Inpainter(network)
    inpainter.tile = 128
    filled = inpainter(np.zeros((300, 400, 3), np.float32), np.ones((300, 400), bool))[:, :, 0]
    assert next(shades) > 8 and filled.max() - filled.min() > 0.9
    assert max(np.abs(np.diff(filled, axis=axis)).max() for axis in (0, 1)) < 0.05


def test_texture_is_added_once_over_the_completion_of_all_tiles(
    network: InpaintingNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Texture of a small size never becomes the prefill of a larger one."""
    tiles = []

    def unchanged(tile: torch.Tensor, *_: Any) -> torch.Tensor:
        tiles.append(tile.clone())
        return tile

    monkeypatch.setattr("inference.inpainter.add_texture", unchanged)
    pixels, hole = image_and_mask(200, 300)
    plain, once = Inpainter(network, detail=0), Inpainter(network)
    plain.tile = once.tile = 128
    image = pixels.astype(np.float32) / 255
    expected = plain(image, hole)
    assert np.array_equal(once(image, hole), expected)
    assert len(tiles) == 1 and np.array_equal(tiles[0][0].permute(1, 2, 0), expected)


def test_lists_and_masks_for_all(inpainter: Inpainter) -> None:
    pixels, hole = image_and_mask(30, 40)
    one = inpainter(pixels, hole)
    for masks in (hole, [hole, hole]):
        both = inpainter([pixels, Image.fromarray(pixels)], masks)
        assert np.array_equal(both[0], one) and np.array_equal(np.asarray(both[1]), one)
    with pytest.raises(ValueError, match="2 images but 1 masks"):
        inpainter([pixels, pixels], [hole])


@pytest.mark.parametrize(
    "mask",
    [
        lambda h: h,
        lambda h: h.astype(np.uint8),
        lambda h: h.astype(np.uint8) * 255,
        lambda h: h.astype(np.uint16) * 65535,
        lambda h: h.astype(np.float32)[:, :, None],
        lambda h: torch.from_numpy(h)[None].float(),
        lambda h: Image.fromarray(h),
        lambda h: Image.fromarray(h.astype(np.uint8) * 255).convert("RGB"),
        lambda h: Image.fromarray(h.astype(np.uint8)).convert("RGB"),  # only 0 and 1
        lambda h: Image.fromarray(h.astype(np.uint16)),
        lambda h: Image.fromarray(h.astype(np.int32) * 65535),
        lambda h: Image.fromarray(h.astype(np.float32)),
        lambda h: Image.fromarray(h.astype(np.float32) * 255),
        lambda h: Image.fromarray(np.dstack([np.full((*h.shape, 3), 255), h * 255]).astype(np.uint8)),
        lambda h: Image.fromarray(np.dstack([np.full((*h.shape, 3), 70), ~h * 255]).astype(np.uint8)),
    ],
)
def test_masks_of_every_kind(mask: Any) -> None:
    hole = image_and_mask(20, 30)[1]
    assert np.array_equal(as_mask(mask(hole)), hole)


@pytest.mark.parametrize(
    ("image", "mask", "message"),
    [
        (
            np.zeros((4, 4, 3), np.uint8),
            np.zeros((4, 5), bool),
            r"mask is \(4, 5\), but the image is \(4, 4\)",
        ),
        (np.zeros((4, 4, 3), np.int32), np.zeros((4, 4), bool), "uint8, uint16 or float, got int32"),
        (np.zeros((4, 4, 2), np.uint8), np.zeros((4, 4), bool), r"got \(4, 4, 2\)"),
        (np.full((4, 4, 3), np.nan, np.float32), np.zeros((4, 4), bool), r"in \[0, 1\]"),
        (np.full((4, 4, 3), 255.0), np.zeros((4, 4), bool), r"in \[0, 1\]"),
        (torch.zeros(2, 4, 4), np.zeros((4, 4), bool), r"got \(2, 4, 4\)"),
        (torch.zeros(2, 3, 4, 4), torch.zeros(3, 1, 4, 4), "2 images but 3 masks"),
        (np.zeros((4, 4, 3), np.uint8), np.full((4, 4), np.nan), "finite"),
        (np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4, 2)), r"got \(4, 4, 2\)"),
        (np.zeros((4, 4, 3), np.uint8), "mask.png", "got str"),
        ("image.png", np.zeros((4, 4), bool), "got str"),
    ],
)
def test_what_cannot_be_taken_is_refused_by_name(
    image: Any, mask: Any, message: str, inpainter: Inpainter
) -> None:
    with pytest.raises(ValueError, match=message):
        inpainter(image, mask)


@pytest.mark.parametrize("size", [(1, 1), (1, 700), (3, 10), (300, 300), (129, 401)])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.9, 1.0])
def test_any_size_and_share(size: tuple[int, int], share: float, inpainter: Inpainter) -> None:
    hole = np.random.default_rng(0).random(size) < share
    pixels = photograph(*size)
    result = inpainter(pixels, hole)
    assert np.array_equal(result[~hole], pixels[~hole])
    assert result.shape == pixels.shape


@pytest.mark.parametrize("junk", [np.nan, np.inf, 1e9])
def test_nothing_under_the_hole_is_read_in_tiles_either(junk: float, inpainter: Inpainter) -> None:
    pixels, hole = image_and_mask(200, 300)
    clean = pixels.astype(np.float32) / 255
    dirty = clean.copy()
    dirty[hole] = junk
    assert np.array_equal(inpainter(dirty, hole), inpainter(clean, hole))


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(data=st.data())
def test_any_array_comes_back_as_it_was_outside_any_hole(data: st.DataObject) -> None:
    torch.manual_seed(0)
    inpainter = Inpainter(InpaintingNetwork(2, bottleneck_depth=0).eval())
    inpainter.tile = 128
    height, width = (data.draw(st.integers(1, 200)) for _ in range(2))
    channels = data.draw(st.sampled_from([(), (1,), (3,), (4,)]))
    kind = np.dtype(data.draw(st.sampled_from(["uint8", "uint16", "float16", "float32", "float64"])))
    generator = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    pixels = generator.random((height, width, *channels))
    pixels = (pixels * np.iinfo(kind).max if kind.kind == "u" else pixels).astype(kind)
    hole = np.zeros((height, width), bool)
    for _ in range(data.draw(st.integers(0, 4))):
        top, left = data.draw(st.integers(0, height)), data.draw(st.integers(0, width))
        hole[top : top + data.draw(st.integers(0, 150)), left : left + data.draw(st.integers(0, 150))] = True
    if kind.kind == "f":
        pixels[hole] = data.draw(st.sampled_from([np.nan, np.inf, 6e4, 0.5]))  # never read
    original = pixels.copy()
    filled = inpainter(pixels, hole)
    assert np.array_equal(pixels, original, equal_nan=kind.kind == "f")  # untouched
    assert filled.shape == pixels.shape and filled.dtype == kind
    assert np.array_equal(filled[~hole], original[~hole])
    color = filled[..., :3] if channels == (4,) else filled
    assert np.isfinite(color[hole]).all()
    if kind.kind == "f":
        assert color[hole].size == 0 or (color[hole].min() >= 0 and color[hole].max() <= 1)


def test_bands_and_tiles_blend_in_both_directions(monkeypatch: pytest.MonkeyPatch) -> None:
    inpainter = Inpainter(InpaintingNetwork(4, bottleneck_depth=1).eval())
    inpainter.tile = 128
    shades = iter(range(10**6))
    monkeypatch.setattr(
        inpainter,
        "_complete",
        lambda pixels, *_: np.full((*pixels.shape[:2], 3), next(shades) % 3 / 2, np.float32),
    )
    filled = inpainter(np.zeros((500, 400, 3), np.float32), np.ones((500, 400), bool))[:, :, 0]
    assert filled.max() - filled.min() > 0.9
    assert max(np.abs(np.diff(filled, axis=axis)).max() for axis in (0, 1)) < 0.05


def test_tiled_equals_whole_where_the_network_is_its_prefill() -> None:
    """An untrained network returns its prefill: in tiles that is the same image, without a seam."""
    untrained = InpaintingNetwork(4, bottleneck_depth=1).eval()
    pixels, hole = image_and_mask(400, 480)
    tiled, whole = Inpainter(untrained, detail=0), Inpainter(untrained, detail=0)
    tiled.tile = 128
    assert np.abs(tiled(pixels, hole).astype(int) - whole(pixels, hole)).max() <= 2


def test_flip_and_passes_change_the_result_and_a_mirrored_picture_gets_a_mirrored_one(
    network: InpaintingNetwork,
) -> None:
    pixels, hole = image_and_mask(48, 64)
    plain = Inpainter(network, detail=0)(pixels, hole)
    flip = Inpainter(network, flip=True, detail=0)
    assert not np.array_equal(flip(pixels, hole), plain)
    mirrored = flip(pixels[:, ::-1], hole[:, ::-1])[:, ::-1]
    assert np.abs(mirrored.astype(int) - flip(pixels, hole)).max() <= 1
    assert not np.array_equal(Inpainter(network, passes=2, detail=0)(pixels, hole), plain)
    with pytest.raises(ValueError, match="passes must be at least 1"):
        Inpainter(network, passes=0)


def test_less_memory_means_smaller_tiles(network: InpaintingNetwork) -> None:
    sides = [Inpainter(network, max_memory=gib * 2**30).tile for gib in (0.1, 0.6, 1, 8)]
    assert sides == sorted(sides) and sides[0] == SMALLEST_TILE and sides[-1] == WHOLE
    assert len(set(sides)) > 2


@pytest.mark.parametrize("boxes", [[], [np.s_[3:9, 4:20]], [np.s_[40:700, 30:650], np.s_[880:890, 900:1100]]])
def test_runs_are_counted_before_they_are_run(network: InpaintingNetwork, boxes: list[Any]) -> None:
    hole = np.zeros((901, 1203), bool)
    for box in boxes:
        hole[box] = True
    inpainter, runs = Inpainter(network, max_memory=0, detail=0), []
    inpainter.after_run = lambda: runs.append(1)
    inpainter.fill_array(photograph(*hole.shape), hole)
    assert len(runs) == count_runs(hole, inpainter.tile) and bool(runs) == bool(boxes)


def test_out_of_memory_halves_the_tile_and_goes_on(
    network: InpaintingNetwork, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pixels, hole = image_and_mask(300, 300)
    expected = Inpainter(network)
    expected.tile = 128
    scarce = Inpainter(network)
    complete = Inpainter._complete

    def limited(self: Inpainter, image: np.ndarray, *arguments: Any) -> np.ndarray:
        if max(image.shape) > 150:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        return complete(self, image, *arguments)

    monkeypatch.setattr(Inpainter, "_complete", limited)
    assert np.array_equal(scarce(pixels, hole), expected(pixels, hole))
    assert "out of memory; going on with tiles of 128 pixels" in capsys.readouterr().err
    assert scarce.tile == Inpainter(network).tile  # the next image is tried in tiles of full size
    monkeypatch.setattr(Inpainter, "_complete", lambda *_: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(MemoryError):
        scarce(pixels, hole)


def test_texture_that_runs_out_of_memory_is_added_in_smaller_tiles(
    network: InpaintingNetwork, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pixels, hole = noise_and_mask(140, 180)
    expected = Inpainter(network)
    expected.tile = 128
    result = expected(pixels, hole)

    def limited(tile: torch.Tensor, *arguments: Any) -> torch.Tensor:
        limited.calls += 1  # type: ignore[attr-defined]
        if limited.calls < 3:  # type: ignore[attr-defined]
            raise MemoryError
        return add_texture(tile, *arguments)

    limited.calls = 0  # type: ignore[attr-defined]
    monkeypatch.setattr("inference.inpainter.add_texture", limited)
    assert np.array_equal(Inpainter(network)(pixels, hole), result)
    assert capsys.readouterr().err.count("out of memory; going on with tiles of") == 2


@pytest.mark.parametrize("mode", ["I", "F", "I;16B"])
def test_a_pil_image_whose_values_would_be_lost_is_refused(inpainter: Inpainter, mode: str) -> None:
    with pytest.raises(ValueError, match=f"mode {mode} would lose values"):
        inpainter(Image.new(mode, (20, 20)), np.eye(20, dtype=bool))


def test_tiles_never_become_smaller_than_the_smallest(
    network: InpaintingNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiles = []

    def run_out(self: Inpainter, image: np.ndarray, mask: np.ndarray, tile: int) -> None:
        tiles.append(tile)
        raise MemoryError

    monkeypatch.setattr(Inpainter, "_fill_pyramid", run_out)
    inpainter = Inpainter(network)
    inpainter.tile = 192
    with pytest.raises(MemoryError):
        inpainter(photograph(40, 40), np.eye(40, dtype=bool))
    assert tiles == [192, SMALLEST_TILE]
