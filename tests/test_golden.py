"""The bundled weights give the stored values on `examples/`, inside the network as well as in its output.

The stored values notice a change of how the parts of the network are connected, which no test of one part
can. After an intended change of the results, write them anew: `python tests/test_golden.py`.
"""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

REPOSITORY = Path(__file__).parents[1]
sys.path[:0] = [str(REPOSITORY)]  # for the use as a script

from imaging.read import read_image  # noqa: E402
from inference.checkpoints import load_network  # noqa: E402
from losses import InpaintingLoss  # noqa: E402
from metrics import psnr, sharpness  # noqa: E402
from texture import add_texture  # noqa: E402

FILE = Path(__file__).with_name("golden.npz")
PSNR = {"default": 22.318, "fast": 21.978}  # dB in the hole of the example
SHARPNESS = {"default": 0.741, "fast": 0.746}  # with texture, in the hole of the example
NUM_SAMPLES = 1000  # values per tensor
TOLERANCE = 1e-4  # relative to the largest value of a tensor


def example() -> tuple[torch.Tensor, torch.Tensor]:
    """The image (1, 3, H, W) in [0, 1] and the mask (1, 1, H, W) of `examples/`."""
    image, mask = (
        torch.tensor(read_image(REPOSITORY / "examples" / name)).permute(2, 0, 1)[None]
        for name in ("astronaut.png", "astronaut_mask.png")
    )
    return image.float() / 255, (mask[:, :1] > 127).float()


def summarise(x: torch.Tensor) -> np.ndarray:
    """Mean, standard deviation, minimum and maximum of a tensor, and values at `NUM_SAMPLES` places of it."""
    values = x.detach().contiguous().flatten().double().numpy()
    places = np.random.default_rng(0).integers(values.size, size=NUM_SAMPLES)
    statistics = [values.mean(), values.std(), values.min(), values.max()]
    return np.concatenate([statistics, values[places]]).astype(np.float32)


def compute(name: str) -> dict[str, np.ndarray]:
    """Summaries of the network's results in evaluation mode, and the losses of a crop in training mode."""
    network, _ = load_network(name, torch.device("cpu"))
    image, mask = example()
    with torch.no_grad():
        outputs = network(image, mask, return_attention=True)
        window = np.s_[..., 100:189, 170:241]  # odd sides, across the border of the hole
        crop, hole = image[window], mask[window]
        losses = InpaintingLoss()(network.train()(crop, hole), crop, hole, epoch=1, total_epochs=4)
    attention = outputs.pop("attention")
    tensors = outputs | {f"attention{i}": attention[i] for i in range(3)}
    results = {key: summarise(x) for key, x in tensors.items()}
    results["psnr"] = psnr(outputs["output"], image, mask)[0].numpy()
    return results | {f"loss_{key}": loss.numpy() for key, loss in losses.items()}


@pytest.mark.parametrize("name", PSNR)
def test_the_bundled_weights_give_the_stored_values(name: str) -> None:
    computed = compute(name)
    stored = {
        key.removeprefix(f"{name}/"): x for key, x in np.load(FILE).items() if key.startswith(f"{name}/")
    }
    assert computed.keys() == stored.keys()
    for key, expected in stored.items():
        tolerance = TOLERANCE * np.abs(expected).max()
        np.testing.assert_allclose(computed[key], expected, rtol=0, atol=tolerance, err_msg=key)
    assert computed["psnr"] == pytest.approx(PSNR[name], abs=0.005)


@pytest.mark.parametrize("name", PSNR)
def test_texture_makes_the_example_sharp_for_less_than_a_decibel(name: str) -> None:
    network, _ = load_network(name, torch.device("cpu"))
    image, mask = example()
    with torch.no_grad():
        completed = network(image, mask)["output"]
    textured = add_texture(completed, mask)
    before, after = (sharpness(pred, image, mask).item() for pred in (completed, textured))
    assert before < 0.12 and after == pytest.approx(SHARPNESS[name], abs=0.05)
    loss = psnr(completed, image, mask) - psnr(textured, image, mask)
    assert 0 < loss.item() < 1


if __name__ == "__main__":
    np.savez_compressed(FILE, **{f"{name}/{key}": x for name in PSNR for key, x in compute(name).items()})
