"""The import rules between the root's modules and the folders behind them."""

import ast

import pytest
from conftest import REPOSITORY

COMMANDS = {"train", "quick_train", "test", "ablation", "app", "export"}
# what each folder may import besides itself, `utils`, and the leaves that `LEAVES` allows it
FOLDERS = {
    "imaging": set(),
    "inference": {"imaging"},
    "training": {"imaging", "inference", "dataset"},
    "evaluation": {"imaging", "inference", "dataset"},
    "exporters": set(),
}
LEAVES = {"config", "layers", "losses", "metric_tracker", "metrics", "models", "msse", "prior", "texture"}
WITHOUT_LEAVES = {"imaging"}


def modules() -> dict[str, set[str]]:
    """By module of the project, the top-level names of the project that it imports."""
    files = [
        *REPOSITORY.glob("*.py"),
        *(path for folder in FOLDERS for path in (REPOSITORY / folder).rglob("*.py")),
    ]
    known = {path.stem for path in REPOSITORY.glob("*.py")} | FOLDERS.keys()
    edges = {}
    for path in files:
        names: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names.add(node.module.split(".")[0])
        name = ".".join(path.relative_to(REPOSITORY).with_suffix("").parts)
        edges[name] = names & known - {name.split(".")[0]}
    return edges


EDGES = modules()


@pytest.mark.parametrize("module", EDGES)
def test_imports_go_one_way(module: str) -> None:
    edges, folder = EDGES[module], module.split(".")[0]
    if folder == "utils":
        assert not edges
    elif folder in LEAVES:
        assert edges <= LEAVES | {"utils"}
    elif folder == "dataset":
        assert edges <= {"imaging", "utils"}
    elif folder in FOLDERS:
        assert edges <= FOLDERS[folder] | {"utils"} | (
            LEAVES - (LEAVES if folder in WITHOUT_LEAVES else set())
        )
    else:
        assert folder in COMMANDS
        assert edges & COMMANDS <= ({"train"} if module in ("quick_train", "ablation") else set())


def test_imports_do_not_go_round_in_circles() -> None:
    left = {module: {edge for edge in edges if edge in EDGES} for module, edges in EDGES.items()}
    while left:
        lowest = {module for module, edges in left.items() if not edges & left.keys()}
        assert lowest, left
        left = {module: edges for module, edges in left.items() if module not in lowest}
