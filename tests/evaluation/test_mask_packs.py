"""Packs replay the same holes, and are refused if an image or a mask has changed."""

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
from conftest import photograph
from PIL import Image

import test as evaluation
from evaluation.mask_packs import BUCKETS, PackDataset, bucket_of, make_pack
from utils import UserError


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    (folder / "deep").mkdir(parents=True)
    for i, name in enumerate(("a.png", "b.png", "deep/c.png")):
        Image.fromarray(np.roll(photograph(40, 60), 7 * i, axis=1)).save(folder / name)
    return folder


def test_a_pack_holds_a_mask_a_bucket_with_its_exact_ratio(images: Path, tmp_path: Path) -> None:
    assert make_pack(str(images), tmp_path / "pack", 32, 42, None) == 3 * len(BUCKETS)
    manifest = json.loads((tmp_path / "pack" / "manifest.json").read_text())
    kinds = {}
    for item in manifest["items"]:
        mask = np.asarray(Image.open(tmp_path / "pack" / item["mask"])) > 0
        assert mask.mean() == item["ratio"] and bucket_of(item["ratio"]) == item["bucket"]
        if item["kind"] == "border":
            assert mask[[0, -1]].any() or mask[:, [0, -1]].any()
        kinds.setdefault(item["bucket"], set()).add(item["kind"])
    assert set(kinds) == {"1-10 %", "10-20 %", "20-30 %", "30-40 %", "40-50 %", "50-60 %"}
    assert all(len(each) == 3 for each in kinds.values())
    with pytest.raises(UserError, match="holds a pack already"):
        make_pack(str(images), tmp_path / "pack", 32, 42, None)


def test_a_pack_is_the_same_each_time_and_replays_its_masks(images: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        make_pack(str(images), tmp_path / name, 32, 7, None)
    texts = [(tmp_path / name / "manifest.json").read_text() for name in ("one", "two")]
    assert texts[0] == texts[1]
    data = PackDataset(tmp_path / "one", str(images), str(tmp_path / "cache"))
    assert len(data) == len({data[i]["name"] for i in range(18)}) == 18
    item = data[0]
    assert item["image"].shape == (3, 32, 32) and item["mask"].shape == (1, 32, 32)
    assert item["mask"].mean().item() == pytest.approx(data.items[0]["ratio"])


def test_a_changed_image_or_mask_is_refused_in_one_line(images: Path, tmp_path: Path) -> None:
    pack = tmp_path / "pack"
    make_pack(str(images), pack, 32, 7, None)
    mask = pack / "masks" / "10-20" / "a.png"
    content = mask.read_bytes()
    Image.fromarray(np.zeros((32, 32), np.uint8)).save(mask)
    with pytest.raises(UserError, match="--pack: the mask has changed since the pack was made"):
        PackDataset(pack, str(images))
    mask.write_text("text")
    with pytest.raises(UserError, match="--pack: not a readable mask"):
        PackDataset(pack, str(images))
    mask.write_bytes(content)
    Image.fromarray(photograph(40, 61)).save(images / "b.png")
    with pytest.raises(UserError, match="--pack: the file has changed since the pack was made"):
        PackDataset(pack, str(images))
    (images / "b.png").unlink()
    with pytest.raises(UserError, match="--pack: b is not in"):
        PackDataset(pack, str(images))
    with pytest.raises(UserError, match=r"--pack: no manifest\.json"):
        PackDataset(tmp_path, str(images))
    (pack / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match="--pack: not a manifest of this project"):
        PackDataset(pack, str(images))


def test_the_masks_of_a_pack_are_read_by_the_rule_for_all_mask_files(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pack = tmp_path / "pack"
    make_pack(str(images), pack, 32, 7, None)
    path = pack / "masks" / "10-20" / "a.png"
    mask = np.asarray(Image.open(path)) > 0
    strokes = np.full((32, 32, 4), 255, np.uint8)
    strokes[:, :, 3] = mask * 255
    data = PackDataset(pack, str(images))
    item = next(item for item in data.items if item["mask"].endswith("10-20/a.png"))
    for pixels in (
        mask.astype(np.uint8),
        mask,
        strokes,
    ):  # values 0 and 1, one bit, strokes on a transparent image
        Image.fromarray(pixels).save(path)
        assert np.array_equal(data.read_mask(item)[0], mask)
    PackDataset(pack, str(images))
    assert "10-20/a.png has transparency: its painted part" in capsys.readouterr().err


def test_images_whose_names_are_not_utf8_are_packed_scored_and_shown(images: Path, tmp_path: Path) -> None:
    odd = os.fsdecode(b"caf\xe9")
    (images / "a.png").rename(images / f"{odd}.png")
    pack, results = tmp_path / odd, tmp_path / "results"
    root = f"--test_root={images}"
    assert evaluation.main([root, f"--make_pack={pack}", "--image_size=32", "--test_subset=2"]) == 0
    assert (
        evaluation.main([root, "--checkpoint=fast", f"--pack={pack}", f"--save_dir={results}", "--gallery"])
        == 0
    )
    assert (results / "outputs" / "10-20" / f"{odd}.png").exists()
    table = (results / "metrics.csv").read_text(encoding="utf-8", errors="surrogateescape")
    assert f"10-20/{odd}" in [row["name"] for row in csv.DictReader(table.splitlines())]
    assert b"10-20/caf\xe9," in (results / "metrics.csv").read_bytes()  # the bytes of the file system
    assert "caf" in (results / "gallery.html").read_text(encoding="utf-8")
    manifest = json.loads((pack / "manifest.json").read_text())
    assert odd in {item["image"] for item in manifest["items"]}


def test_the_command_makes_a_pack_and_scores_it_by_bucket(images: Path, tmp_path: Path) -> None:
    pack, results = tmp_path / "pack", tmp_path / "results"
    root = f"--test_root={images}"
    assert evaluation.main([root, f"--make_pack={pack}", "--image_size=32"]) == 0
    assert evaluation.main([root, "--checkpoint=fast", f"--pack={pack}", f"--save_dir={results}"]) == 0
    summary = json.loads((results / "report.json").read_text())
    assert list(summary["buckets"]) == ["1-10 %", "10-20 %", "20-30 %", "30-40 %", "40-50 %", "50-60 %"]
    assert all(bucket["images"] == 3 for bucket in summary["buckets"].values())
    assert summary["holes"] == 18 and summary["images"] == 3
    mean = np.mean([bucket["methods"]["output"]["psnr"] for bucket in summary["buckets"].values()])
    assert mean == pytest.approx(summary["methods"]["output"]["psnr"], rel=1e-6)
    assert len(list((results / "outputs").rglob("*.png"))) == 18
    digest = summary["protocol"]["weights_sha256"]
    text = (results / "report.md").read_text()
    assert len(digest) == 64 and digest in text and text.count("| 3 |") == 6 and "pack, sha256" in text
    for flags in (["--pack=x", "--image_size=64"], ["--make_pack=x", "--image_path=y", "--box=1,1,2,2"]):
        assert evaluation.main([*([root] if "--pack=x" in flags else []), *flags]) == 2


def test_ratios_fall_into_their_buckets() -> None:
    assert [bucket_of(r) for r in (0.0, 0.01, 0.0999, 0.1, 0.35, 0.5999, 0.6, 1.0)] == [
        "other", "1-10 %", "1-10 %", "10-20 %", "30-40 %", "50-60 %", "other", "other",
    ]  # fmt: skip
