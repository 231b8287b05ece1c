"""README.md and docs/ are true: commands parse, flags, files, links and imports exist, figures were recorded."""

import ast
import importlib
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY

import ablation
import app
import export
import metric_tracker
import test as evaluation
from config import PRESETS, get_config, parse_config
from utils import UserError

README = REPOSITORY / "README.md"
PAGES = sorted((REPOSITORY / "docs").glob("*.md"))
MODEL_CARD = REPOSITORY / "weights" / "MODEL_CARD.md"
DOCUMENTS = [README, *PAGES, *sorted((REPOSITORY / "docs").glob("results/*/README.md")), MODEL_CARD]
PARSERS: dict[str, Callable[[list[str]], Any]] = {
    "quick_train": lambda argv: parse_config(argv, "quick_train.py"),
    "train": lambda argv: parse_config(argv, "train.py"),
    "test": evaluation.parse_args,
    "ablation": ablation.parse_args,
    "metric_tracker": metric_tracker.parse_args,
    "app": app.parse_args,
    "export": export.parse_args,
}
AT_LEAST = dict(quick_train=20, train=6, test=17, ablation=4, metric_tracker=2, app=3, export=2)  # commands
MENTIONS = ([], ["--help"], ["--image_path"])  # in prose, not to be run
# flags of torchrun, Slurm, split, ruff, pytest and TensorBoard
TORCHRUN = {"nproc_per_node", "nnodes", "rdzv_backend", "rdzv_endpoint", "rdzv_id", "standalone"}
SLURM = {"nodes", "ntasks-per-node", "gpus-per-node", "cpus-per-task", "signal"}
FOREIGN = TORCHRUN | SLURM | {"filter", "check", "cov", "logdir"}


def commands(script: str) -> list[list[str]]:
    """The arguments of every call of a script, in shell blocks and in code spans of all documents."""
    lines = []
    for path in DOCUMENTS:
        text = path.read_text()
        for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL):
            lines += [line.split("#")[0].strip() for line in block.splitlines()]
        lines += [span.replace("\n", " ") for span in re.findall(r"`(python [^`]*)`", text)]
    calls = [shlex.split(line) for line in lines if re.search(rf"(^| ){script}\.py\b", line)]
    return [call[call.index(f"{script}.py") + 1 :] for call in calls]


def code_blocks(language: str) -> list[tuple[Path, str]]:
    """Every code block in a language, with the document that holds it."""
    pattern = rf"```{language}\n(.*?)```"
    return [(path, block) for path in DOCUMENTS for block in re.findall(pattern, path.read_text(), re.DOTALL)]


def prose(path: Path) -> str:
    return re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)


def anchors(path: Path) -> set[str]:
    """The anchors that GitHub makes of a document's headings."""
    titles = re.findall(r"^#+ (.*)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def table_rows(path: Path) -> list[dict[str, str]]:
    """Every row of every table of a document, cells by column title."""
    rows: list[dict[str, str]] = []
    for block in re.findall(r"(?:^\|.*\n)+", prose(path), re.MULTILINE):
        header, _, *lines = ([cell.strip() for cell in line.split("|")[1:-1]] for line in block.splitlines())
        rows += [dict(zip(header, cells, strict=True)) for cells in lines]
    return rows


@pytest.mark.parametrize("script", PARSERS)
def test_every_command_parses(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.path.isdir", lambda _: True)
    calls = commands(script)
    assert len(calls) >= AT_LEAST[script]
    for argv in calls:
        if argv not in MENTIONS:
            PARSERS[script](argv)


@pytest.mark.parametrize("script", PARSERS)
def test_the_parsers_used_here_do_refuse(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.path.isdir", lambda _: True)
    with pytest.raises(UserError, match="no_such_flag"):
        PARSERS[script]([*commands(script)[0], "--no_such_flag"])


def test_every_script_that_is_named_exists() -> None:
    scripts = {path.name for path in REPOSITORY.rglob("*.py") if ".venv" not in path.parts}
    for path in DOCUMENTS:
        text = path.read_text()
        for script in re.findall(r"python ([\w/]+\.py)", text):
            assert (REPOSITORY / script).exists(), f"{path.name}: {script}"
        for script in re.findall(r"`(?:python )?([\w/]+\.py)", text):
            assert Path(script).name in scripts, f"{path.name}: {script}"


def test_every_flag_that_is_mentioned_exists(capsys: pytest.CaptureFixture[str]) -> None:
    for parse in PARSERS.values():
        with pytest.raises(SystemExit):
            parse(["--help"])
    sources = [capsys.readouterr().out]
    scripts = [*(REPOSITORY / "benchmarks").glob("*.py"), REPOSITORY / "tests/imaging/test_file_table.py"]
    sources += re.findall(r"\"(--\w+)\"", "".join(path.read_text() for path in scripts))
    known = set(re.findall(r"--(\w[\w-]*)", " ".join(sources))) | FOREIGN
    known |= {f"no_{name.removeprefix('use_')}" for name in known}
    for path in DOCUMENTS:
        mentioned = set(re.findall(r"(?<![\w|-])--([a-z][\w-]*)", path.read_text()))
        unknown = mentioned - known
        assert not unknown, path.name


def test_every_link_leads_to_a_file_and_a_heading() -> None:
    for path in DOCUMENTS:
        for link in re.findall(r"\]\(([^)]+)\)", prose(path)):
            if "://" not in link:
                file, _, anchor = link.partition("#")
                target = path.parent / file if file else path
                assert target.exists(), f"{path.name}: {link}"
                assert not anchor or anchor in anchors(target), f"{path.name}: {link}"


def test_every_recorded_run_and_weights_file_that_is_named_exists() -> None:
    for path in DOCUMENTS:
        for name in re.findall(r"`((?:results|weights)/\w+\.(?:csv|pth))`", path.read_text()):
            assert (path.parent / name).exists() or (REPOSITORY / name).exists(), f"{path.name}: {name}"


def test_every_page_and_image_is_linked() -> None:
    assert not {path.name for path in PAGES} - set(re.findall(r"\]\(docs/([\w.]+)", README.read_text()))
    shown = re.findall(r"(images/\w+\.png)\)", "".join(path.read_text() for path in DOCUMENTS))
    assert {f"images/{path.name}" for path in (REPOSITORY / "docs" / "images").iterdir()} == set(shown)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_page_begins_with_what_it_answers(path: Path) -> None:
    title, first = path.read_text().split("\n\n", 2)[:2]
    assert title.startswith("# ") and "This page" in first.replace("\n", " "), first


def test_every_python_block_compiles_and_imports_what_exists() -> None:
    blocks = [(path, code) for path, code in code_blocks("python") if "import" in code]
    assert len(blocks) >= 4
    for path, code in blocks:
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and node.module:
                module = importlib.import_module(node.module)
                for alias in node.names:
                    assert hasattr(module, alias.name), f"{path.name}: {node.module}.{alias.name}"


def test_every_preset_is_described_as_it_is() -> None:
    rows = {row["preset"].strip("`"): row for row in table_rows(README) if "preset" in row}
    assert list(rows) == list(PRESETS)
    for name, row in rows.items():
        assert f"| `{name}` |" in README.read_text()
        config = get_config(name)
        figures = [str(config.base_channels), str(config.epochs), str(config.batch_size)]
        assert [row["channels C"], row["epochs"], row["batch"]] == figures, name
        assert row["MSSE"] == ("on" if config.use_structure_encoder else "off"), name


def test_figures_of_the_readme_and_the_model_card_were_recorded() -> None:
    recorded = [row for path in PAGES for row in table_rows(path)]
    for path, count in ((README, 5), (MODEL_CARD, 12)):
        rows = [row for row in table_rows(path) if {"PSNR, dB", "PSNR in the hole, dB"} & row.keys()]
        assert len(rows) == count
        for row in rows:
            assert any(row.items() <= other.items() for other in recorded), f"{path.name}: {row}"


def test_the_layout_names_what_is_there() -> None:
    block = README.read_text().split("## Layout", 1)[1].split("```")[1]
    names = {name for line in block.splitlines() for name in line[:33].split()}
    assert len(block.strip().splitlines()) <= 20
    assert not {name for name in names if not (REPOSITORY / name).exists()}
    unnamed = {path.name for path in REPOSITORY.glob("*.py")} - names
    assert not unnamed


def test_the_readme_is_short_and_says_first_what_fails() -> None:
    text = README.read_text()
    assert len(text.splitlines()) <= 220 and len(text.encode()) <= 14_000
    start = " ".join(text.splitlines()[:30])
    assert "MSSE has brought nothing that three seeds could show" in start and "blurred" in start
