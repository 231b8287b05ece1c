import dataclasses

import pytest

from config import PRESETS, Config, get_config, parse_config
from utils import OneLineParser, UserError

ROOTS = ["--train_root", "sample", "--val_root", "sample"]


def test_the_presets_are_the_specified_ones() -> None:
    table = {
        name: (c.base_channels, c.epochs, c.batch_size, c.use_structure_encoder)
        for name in PRESETS
        for c in [get_config(name)]
    }
    assert table == {
        "default": (40, 60, 8, True),
        "high_quality": (40, 100, 16, True),
        "fast": (24, 30, 16, False),
        "large": (40, 60, 4, True),
        "small_gpu": (24, 60, 4, False),
        "debug": (16, 5, 2, True),
    }
    assert get_config("fast").val_interval == 2
    assert get_config("high_quality").use_lpips and get_config("high_quality").lambda_perceptual > 0
    default, large = get_config(), get_config("large")
    assert large.bottleneck_depth == 2 * default.bottleneck_depth
    assert large.refinement_depth == 2 * default.refinement_depth


def test_every_field_is_a_flag_and_a_flag_overrides_the_preset() -> None:
    for field in dataclasses.fields(Config):
        if field.type is bool:
            argv, value = [f"--no_{field.name.removeprefix('use_')}"], False
        elif field.name == "mask_ratio":
            argv, value = ["--mask_ratio", "0.2", "0.3"], (0.2, 0.3)
        elif field.name in ("train_root", "val_root"):
            argv, value = [], "sample"
        else:
            chosen = {"progressive": "64:0.5", "device": "cpu", "optimizer": "muon", "reconstruction": "rms"}
            value = chosen.get(field.name, field.type(0.5) if field.type is float else field.type(16))
            argv = [f"--{field.name}", str(value)]
        config = parse_config([*ROOTS, *argv], "train.py")
        assert getattr(config, field.name) == value, field.name
    assert parse_config(["--config", "debug", "--epochs", "7"], "train.py").epochs == 7
    assert parse_config([*ROOTS, "--use_structure_encoder"], "train.py").use_structure_encoder


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--config", "huge"], "--config: no such preset: huge"),
        (["--config", "debug", "--epoch", "7"], "unrecognized arguments: --epoch"),
        (["--config", "debug", "--lr", "fast"], "argument --lr: invalid float value"),
        (["--config", "debug", "--lr", "0"], "--lr: must be above 0, got 0.0"),
        (["--config", "debug", "--batch_size", "0"], "--batch_size: must be at least 1"),
        (["--config", "debug", "--base_channels", "17"], "--base_channels: must be even"),
        (["--config", "debug", "--mask_ratio", "0.5", "0.2"], "--mask_ratio: must be two shares"),
        (["--config", "debug", "--progressive", "64:0.5,128:0.5"], "--progressive: must be sizes"),
        (["--config", "debug", "--progressive", "64"], "--progressive: must be sizes"),
        (["--config", "debug", "--lambda_edge", "-1"], "--lambda_edge: must be 0 or more"),
        (["--config", "default"], "--train_root: no such folder: ./data/train"),
        (["--config", "default", "--train_root", "/none"], "--train_root: no such folder: /none"),
    ],
)
def test_a_user_error_names_the_flag(argv: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        parse_config(argv, "quick_train.py")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_the_earlier_name_of_a_flag_is_a_hidden_alias(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert parse_config([*ROOTS, "--mask_coverage", "0.2", "0.3"], "train.py").mask_ratio == (0.2, 0.3)
    monkeypatch.setattr("sys.argv", ["train.py", "--old=1", "--older", "--set=--old", "old"])
    parser = OneLineParser({"old": "new"})
    parser.add_argument("--new", type=int)
    parser.add_argument("--older", action="store_true")
    parser.add_argument("--set")
    parser.add_argument("name")
    assert vars(parser.parse_args()) == {"new": 1, "older": True, "set": "--old", "name": "old"}
    with pytest.raises(SystemExit):
        parse_config(["--help"], "train.py")
    assert "coverage" not in capsys.readouterr().out


def test_help_has_one_line_per_boolean_and_every_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_config(["--help"], "train.py")
    text = " ".join(capsys.readouterr().out.partition("options:")[2].split())
    assert text.count("--no_") == sum(field.type is bool for field in dataclasses.fields(Config)) == 8
    assert (
        "--use_structure_encoder, --no_structure_encoder bias the attention by structure (MSSE) (default: on)"
        in text
    )
    assert "(default: )" not in text and text.count("(default: ") == len(dataclasses.fields(Config)) + 1


def test_an_unknown_setting_is_an_error() -> None:
    with pytest.raises(UserError, match="no such setting: epoch"):
        get_config("debug", epoch=3)


def test_sizes_and_batch_sizes_follow_the_stages() -> None:
    config = get_config("default", progressive="64:0.5,128:0.25")
    assert [config.stage_at(p)[0] for p in (0.0, 0.49, 0.5, 0.74, 0.75, 1.0)] == [64, 64, 128, 128, 256, 256]
    config = get_config("default", progressive="32:0.5:64,64:0.25", batch_size=4)
    assert [config.stage_at(p) for p in (0.0, 0.6, 0.9)] == [(32, 64), (64, 4), (256, 4)]
