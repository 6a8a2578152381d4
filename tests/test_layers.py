"""Who may look at whom: a row of rooms imports only rows below it, and nothing goes in a circle."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

import pytest

import vitune

PACKAGE = Path(vitune.__file__).parent
ROWS = (
    ("cli",),
    ("bench",),
    ("bench.tables",),
    ("bench.suites", "bench.speed"),
    ("bench.study",),
    ("training", "inference"),
    ("analysis", "exits"),
    ("adapters", "counts"),
    ("methods",),
    ("methods.rlrr", "methods.fact"),
    ("methods.authoring",),
    ("methods.core",),
    ("cards",),
    ("backbones", "data"),
    ("objectives", "report"),
    ("ops",),
    ("runs",),
    ("files", "preprocessing", "tensors"),
    ("environment", "machine", "processes"),
    ("errors",),
)
"""From the roof to the ground. A folder inside a room is a room of its own."""

ROW_OF = {room: row for row, rooms in enumerate(ROWS) for room in rooms}
OUTSIDE = {"__init__", "__main__"}
"""The package's face hands names on from every room; nothing imports it."""

VERBS = {"cli"}
"""A verb's file is named after the verb, whatever the room that does its work calls its own."""


def module_of(path: Path) -> str:
    return ".".join(("vitune", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(
        ".__init__"
    )


FILES = [
    path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.relative_to(PACKAGE).parts[0].removesuffix(".py") not in OUTSIDE
]
MODULES = {module_of(path): path for path in FILES}


def room_of(module: str) -> str:
    """The innermost room that a module belongs to: `bench.study` for vitune.bench.study.cells."""
    parts = module.split(".")[1:]
    inner = ".".join(parts[:2])
    return inner if inner in ROW_OF else parts[0]


def imported_modules(tree: ast.AST) -> set[str]:
    """Every module imported anywhere in a file, inside functions and TYPE_CHECKING too."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, "relative imports hide which room is meant"
            found.update(
                name if (name := f"{node.module}.{alias.name}") in MODULES else node.module
                for alias in node.names
            )
    return found


IMPORTS = {
    module: imported_modules(ast.parse(path.read_text())) for module, path in MODULES.items()
}


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that reach each other."""
    reached: dict[str, set[str]] = {}
    for start in graph:
        seen: set[str] = set()
        waiting = [start]
        while waiting:
            for further in graph[waiting.pop()] & graph.keys():
                if further not in seen:
                    seen.add(further)
                    waiting.append(further)
        reached[start] = seen
    groups = {
        tuple(sorted(other for other in reached[one] if one in reached[other]))
        for one in graph
        if one in reached[one]
    }
    return [list(group) for group in sorted(groups)]


def test_every_room_has_a_row() -> None:
    assert {room_of(module) for module in MODULES} <= set(ROW_OF)
    assert len(FILES) > 60


@pytest.mark.parametrize("module", MODULES)
def test_a_file_imports_only_rows_below_its_own(module: str) -> None:
    own = room_of(module)
    rooms = {room_of(name) for name in IMPORTS[module] if name.startswith("vitune.")}
    wrong = {room for room in rooms if room != own and ROW_OF[room] <= ROW_OF[own]}
    assert not wrong, f"{own} may not import {sorted(wrong)}"


def test_circles_are_seen() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}
    assert circles(graph) == [["b", "c"]]


def test_nothing_is_imported_in_a_circle() -> None:
    assert circles(IMPORTS) == []


def test_a_files_name_says_one_thing_in_the_whole_house() -> None:
    homes = defaultdict(list)
    for module, path in MODULES.items():
        if path.stem != "__init__" and room_of(module) not in VERBS:
            homes[path.stem].append(module)
    assert {stem: found for stem, found in homes.items() if len(found) > 1} == {}


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
        if room_of(module_of(path)) == "report":
            heavy = {n.split(".")[0] for n in imported_modules(ast.parse(path.read_text()))}
            assert not heavy & {"torch", "timm", "peft", "transformers"}, path


def test_only_bench_and_the_verbs_open_a_test_split() -> None:
    """Training asks for train and val (or both together); the word "test" is not in its code."""
    for path in FILES:
        if room_of(module_of(path)) != "training":
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
