"""The modules import each other downwards only."""

import ast
import subprocess
import sys

import pytest
from conftest import REPOSITORY

COMMANDS = {"train", "quick_train", "test", "ablation", "app", "export"}
FILES = [*REPOSITORY.glob("*.py"), *(REPOSITORY / "imaging").rglob("[!_]*.py")]
MODULES = {".".join(path.relative_to(REPOSITORY).with_suffix("").parts) for path in FILES}
WITHOUT_TORCH = {"metric_tracker", "config", "gallery", "utils"}


def imports_of(module: str) -> set[str]:
    """All that a module imports anywhere in it."""
    tree = ast.parse((REPOSITORY / f"{module.replace('.', '/')}.py").read_text())
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


EDGES = {module: imports_of(module) & MODULES for module in sorted(MODULES)}


def test_imports_do_not_go_round_in_circles() -> None:
    left = {module: set(edges) for module, edges in EDGES.items()}
    left["fill"].discard("inference")  # for the type checker alone
    while left:
        lowest = {module for module, edges in left.items() if not edges & left.keys()}
        assert lowest, left
        left = {module: edges for module, edges in left.items() if module not in lowest}


def test_image_files_know_nothing_of_the_network() -> None:
    for module, edges in EDGES.items():
        if module.startswith("imaging."):
            assert all(edge.startswith("imaging.") or edge == "utils" for edge in edges), module


def test_nothing_but_commands_imports_a_command() -> None:
    for module, edges in EDGES.items():
        assert edges & COMMANDS <= ({"train"} if module in ("quick_train", "ablation") else set()), module


def test_what_needs_no_torch_does_not_import_it() -> None:
    for module in MODULES:
        if module in WITHOUT_TORCH or module.startswith("imaging."):
            assert "torch" not in imports_of(module), module


@pytest.mark.parametrize(("script", "flag"), [("test", "--mask_path"), ("app", "--host")])
def test_help_comes_without_torch(script: str, flag: str) -> None:
    code = f"import sys, {script}\ntry: {script}.main(['--help'])\nexcept SystemExit: pass\nprint(int('torch' in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert done.stdout.endswith("0\n") and flag in done.stdout
