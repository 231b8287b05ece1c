"""The modules import each other downwards only, along the edges that the architecture has."""

import ast
import subprocess
import sys

import pytest
from conftest import REPOSITORY

EDGES = {
    "cli": set(),
    "msse": set(),
    "prior": set(),
    "optimizer": set(),
    "models": {"msse", "prior"},
    "files": {"cli"},
    "config": {"cli", "files"},
    "image_cache": {"cli", "files"},
    "augmentation": {"image_cache"},
    "dataset": {"augmentation", "cli", "files", "image_cache"},
    "shards": {"augmentation", "cli", "dataset", "files", "image_cache"},
    "data_scan": {"cli", "dataset", "files", "image_cache", "shards"},
    "pictures": {"cli", "files"},
    "masks": {"cli", "pictures"},
    "metric_tracker": {"cli", "files"},
    "gallery": {"files"},
    "utils": {"cli", "files"},
    "losses": {"utils"},
    "metrics": {"cli", "utils"},
    "onnx_network": {"cli"},
    "inference": {"cli", "models", "onnx_network", "utils"},
    "fill": {"cli", "files", "inference", "masks", "pictures"},
    "run_folder": {"cli", "config", "files", "utils"},
    "run": {"cli", "config", "inference", "losses", "metric_tracker", "models", "optimizer", "utils"},
    "preflight": {"cli", "config", "data_scan", "dataset", "files", "run", "utils"},
    "train": {
        "augmentation",
        "cli",
        "config",
        "dataset",
        "files",
        "losses",
        "metrics",
        "models",
        "preflight",
        "run",
        "run_folder",
        "shards",
        "utils",
    },
    "packs": {"cli", "dataset", "files", "image_cache"},
    "floors": {"models"},
    "paper_metrics": {"metrics"},
    "frechet": {"cli"},
    "report": {"floors", "metrics"},
    "scoring": {
        "files",
        "floors",
        "frechet",
        "gallery",
        "inference",
        "metrics",
        "models",
        "packs",
        "paper_metrics",
        "report",
        "utils",
    },
    "evaluation": {
        "cli",
        "dataset",
        "files",
        "fill",
        "floors",
        "frechet",
        "inference",
        "metrics",
        "models",
        "onnx_network",
        "packs",
        "scoring",
        "utils",
    },
    "test": {"cli", "evaluation", "fill"},
    "quick_train": {"train"},
    "ablation_table": {"files"},
    "ablation": {
        "ablation_table",
        "cli",
        "config",
        "dataset",
        "files",
        "inference",
        "losses",
        "packs",
        "scoring",
        "train",
        "utils",
    },
    "page": {"cli", "fill", "gallery", "inference", "masks", "models", "pictures"},
    "app": {"cli", "inference", "page", "utils"},
    "exportable": {"models", "prior"},
    "onnx_graph": {"exportable", "models"},
    "export": {
        "cli",
        "config",
        "exportable",
        "files",
        "inference",
        "models",
        "onnx_graph",
        "onnx_network",
        "utils",
    },
}


def imports_of(module: str) -> set[str]:
    tree = ast.parse((REPOSITORY / f"{module}.py").read_text())
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


def test_every_module_has_its_place() -> None:
    assert {path.stem for path in REPOSITORY.glob("*.py")} == set(EDGES)


def test_edges_lead_to_modules_that_stand_above() -> None:
    above: set[str] = set()
    for module, imported in EDGES.items():
        assert imported <= above, module
        above.add(module)


@pytest.mark.parametrize("module", EDGES)
def test_no_edge_was_added_in_passing(module: str) -> None:
    assert imports_of(module) & set(EDGES) == EDGES[module]


def test_what_remembers_and_draws_numbers_needs_no_torch() -> None:
    assert "torch" not in imports_of("metric_tracker") | imports_of("config") | imports_of("gallery")


@pytest.mark.parametrize(("script", "flag"), [("test", "--mask_path"), ("app", "--host")])
def test_help_comes_without_torch(script: str, flag: str) -> None:
    code = f"import sys, {script}\ntry: {script}.main(['--help'])\nexcept SystemExit: pass\nprint(int('torch' in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert done.stdout.endswith("0\n") and flag in done.stdout
