"""Who may look at whom: a row of rooms imports only rows below it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import vitune

PACKAGE = Path(vitune.__file__).parent
ROWS = (
    ("cli",),
    ("bench",),
    ("training", "inference"),
    ("analysis", "exits"),
    ("adapters", "counts", "runs"),
    ("methods",),
    ("backbones", "data"),
    ("objectives", "report"),
    ("ops",),
    ("files", "preprocessing"),
    ("environment",),
    ("errors",),
)
ROW_OF = {room: row for row, rooms in enumerate(ROWS) for room in rooms}
OUTSIDE = {"__init__", "__main__"}
"""The package's face hands names on from every room; nothing imports it."""

FILES = [
    path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.relative_to(PACKAGE).parts[0].removesuffix(".py") not in OUTSIDE
]


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_modules(tree: ast.AST) -> set[str]:
    """Every module imported anywhere in a file, inside functions too."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, "relative imports hide which room is meant"
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def test_every_room_has_a_row() -> None:
    assert {room_of(path) for path in FILES} <= set(ROW_OF)
    assert len(FILES) > 60


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_imports_only_rows_below_its_own(path: Path) -> None:
    own = room_of(path)
    rooms = {
        name.split(".")[1]
        for name in imported_modules(ast.parse(path.read_text()))
        if name.startswith("vitune.") and name.split(".")[1] in ROW_OF
    }
    wrong = {room for room in rooms if room != own and ROW_OF[room] <= ROW_OF[own]}
    if own in ("adapters", "counts", "runs"):
        wrong -= set(ROWS[ROW_OF[own]])
    assert not wrong, f"{own} may not import {sorted(wrong)}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_is_pickled_or_evaluated(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert not imported_modules(tree) & {"dill", "cloudpickle", "joblib"}
    used = {
        n.attr
        for n in ast.walk(tree)
        if ast.unparse(n).startswith("pickle.") and isinstance(n, ast.Attribute)
    }
    assert used <= {"UnpicklingError"}, "pickle may be named only to catch its error"
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    names = {call.func.id for call in calls if isinstance(call.func, ast.Name)}
    assert not names & {"eval", "exec"}
    for call in calls:
        if ast.unparse(call.func) == "torch.load":
            keywords = {keyword.arg: keyword.value for keyword in call.keywords}
            weights_only = keywords.get("weights_only")
            assert isinstance(weights_only, ast.Constant) and weights_only.value is True


def test_report_reads_files_and_never_torch() -> None:
    for path in FILES:
        if room_of(path) == "report":
            heavy = {n.split(".")[0] for n in imported_modules(ast.parse(path.read_text()))}
            assert not heavy & {"torch", "timm", "peft", "transformers"}, path


def test_only_bench_and_the_verbs_open_a_test_split() -> None:
    """Training asks for train and val (or both together); the word "test" is not in its code."""
    for path in FILES:
        if room_of(path) != "training":
            continue
        constants = {
            node.value
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
        assert "test" not in constants, path
        assert "vitune.data.load_labelled" not in imported_modules(ast.parse(path.read_text())), (
            path
        )
