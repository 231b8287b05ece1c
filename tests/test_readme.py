"""The README's commands parse, its flags and files exist, and its tables hold figures that a file holds."""

import re
import shlex

import pytest
from conftest import REPOSITORY

import ablation
import app
import export
import metric_tracker
import test as evaluation
from config import PRESETS, parse_config
from utils import UserError

README = (REPOSITORY / "README.md").read_text()


def commands(name: str) -> list[list[str]]:
    """The arguments of every call of a script inside the README's shell blocks."""
    blocks = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    lines = [
        line.split("#")[0].strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()
    ]
    calls = [shlex.split(line) for line in lines if f" {name}.py" in line]
    return [call[call.index(f"{name}.py") + 1 :] for call in calls]


@pytest.mark.parametrize("name", ["quick_train", "train"])
def test_every_training_command_parses(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.path.isdir", lambda _: True)
    calls = commands(name)
    assert len(calls) >= (9 if name == "quick_train" else 1)
    for argv in calls:
        parse_config(argv, f"{name}.py")


def test_every_evaluation_command_parses() -> None:
    calls = commands("test")
    assert len(calls) >= 4
    for argv in calls:
        evaluation.parse_args(argv)


def test_every_drawing_command_parses() -> None:
    calls = commands("metric_tracker")
    assert len(calls) >= 2
    for argv in calls:
        metric_tracker.parse_args(argv)


def test_every_ablation_command_parses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.path.isdir", lambda _: True)
    calls = commands("ablation")
    assert len(calls) >= 2
    for argv in calls:
        ablation.parse_args(argv)


def test_every_command_that_serves_the_page_parses() -> None:
    calls = commands("app")
    assert len(calls) >= 2
    for argv in calls:
        app.parse_args(argv)


def test_every_export_command_parses() -> None:
    calls = commands("export")
    assert len(calls) >= 2
    for argv in calls:
        export.parse_args(argv)


def test_the_parser_used_here_does_refuse() -> None:
    with pytest.raises(UserError):
        parse_config(["--config", "default", "--no_such_flag"], "quick_train.py")


def test_every_flag_that_is_mentioned_exists() -> None:
    known = set()
    for script in ("ablation", "app", "export", "metric_tracker", "test", "train"):
        source = (REPOSITORY / f"{script}.py").read_text() + (REPOSITORY / "config.py").read_text()
        known |= set(re.findall(r"\b[a-z_]+\b", source))
    foreign = {"nproc_per_node", "nnodes", "rdzv_backend", "rdzv_endpoint", "rdzv_id"}  # of torchrun
    foreign |= {"nodes", "ntasks", "gpus", "cpus", "signal", "filter"}  # of Slurm and split
    foreign |= {"logdir", "cov", "check", "rounds"}  # of other programs
    mentioned = set(re.findall(r"--([a-z_]+)", README)) - foreign - {"no_structure_encoder", "no_cache"}
    assert len(mentioned) > 20 and not mentioned - known


def test_every_file_and_picture_that_is_named_exists() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert links
    for link in links:
        assert (REPOSITORY / link).exists(), link


def test_every_preset_is_described() -> None:
    for preset in PRESETS:
        assert f"| `{preset}` |" in README


@pytest.mark.parametrize("heading", ["## Results", "The cost of every preset"])
def test_tables_of_figures_stand_where_they_were_recorded(heading: str) -> None:
    section = README.split(heading, 1)[1].split("\n## ", 1)[0]
    rows = [line for line in section.splitlines() if line.startswith("|") and re.search(r"\d", line)]
    files = [*(REPOSITORY / "docs").glob("*.md"), *(REPOSITORY / "weights").glob("*.md")]
    recorded = "".join(path.read_text() for path in files)
    assert len(rows) >= 3
    for row in rows:
        assert row in recorded, row
