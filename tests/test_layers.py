"""The modules import each other downwards only, along the edges that the architecture has."""

import ast

import pytest
from conftest import REPOSITORY

EDGES = {
    "utils": set(),
    "msse": set(),
    "metric_tracker": set(),
    "models": {"msse"},
    "optimizer": set(),
    "inference": {"models", "utils"},
    "pictures": {"utils"},
    "masks": {"pictures", "utils"},
    "fill": {"dataset", "inference", "masks", "pictures", "utils"},
    "config": {"utils"},
    "losses": {"utils"},
    "metrics": {"utils"},
    "dataset": {"utils"},
    "train": {"config", "dataset", "losses", "metric_tracker", "metrics", "models", "optimizer", "utils"},
    "test": {"config", "dataset", "fill", "inference", "metrics", "models", "utils"},
    "quick_train": {"train"},
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


@pytest.mark.parametrize("module", EDGES)
def test_no_edge_was_added_in_passing(module: str) -> None:
    assert imports_of(module) & set(EDGES) == EDGES[module]


def test_what_remembers_and_draws_numbers_needs_no_torch() -> None:
    assert "torch" not in imports_of("metric_tracker") | imports_of("config")
