"""Who may look at whom: a row of rooms imports only rows below it, and nothing goes in a circle."""

from __future__ import annotations

import ast
import importlib
import re
from collections import defaultdict
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

import vitune

PACKAGE = Path(vitune.__file__).parent
ROWS = (
    ("cli", "testing"),
    ("serving",),
    ("bench", "privacy"),
    ("bench.tables",),
    ("bench.suites", "bench.speed"),
    ("bench.study",),
    ("export",),
    ("training", "inference"),
    ("privacy.dp",),
    ("analysis", "exits"),
    ("adapters", "counts"),
    ("methods",),
    ("methods.rlrr", "methods.fact"),
    ("methods.authoring", "methods.probe_authoring"),
    ("methods.core",),
    ("cards",),
    ("fewer_tokens",),
    ("backbones", "data"),
    ("objectives", "report"),
    ("ops",),
    ("runs",),
    ("run_summary",),
    ("files", "hub", "preprocessing", "result_files", "tensors"),
    ("environment", "extras", "late_imports", "machine", "processes", "seals"),
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


@cache
def tree_of(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text())


@cache
def imports_of(module: str) -> set[str]:
    return imported_modules(tree_of(module))


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
    rooms = {room_of(name) for name in imports_of(module) if name.startswith("vitune.")}
    wrong = {room for room in rooms if room != own and ROW_OF[room] <= ROW_OF[own]}
    assert not wrong, f"{own} may not import {sorted(wrong)}"


def test_circles_are_seen() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}
    assert circles(graph) == [["b", "c"]]


def test_nothing_is_imported_in_a_circle() -> None:
    assert circles({module: imports_of(module) for module in MODULES}) == []


CATALOGUE = [
    module
    for module in MODULES
    if room_of(module) in ("methods", "methods.rlrr", "methods.fact")
    and module not in ("vitune.methods", "vitune.methods.catalogue")
]


@pytest.mark.parametrize("module", CATALOGUE)
def test_a_method_reaches_the_core_only_through_authoring(module: str) -> None:
    assert not {name for name in imports_of(module) if name.startswith("vitune.methods.core")}


def test_the_door_for_authors_shows_all_that_it_imports_and_nothing_private() -> None:
    from vitune.methods import authoring

    assert len(CATALOGUE) >= 24
    handed_on = {
        alias.asname or alias.name
        for node in ast.walk(tree_of("vitune.methods.authoring"))
        if isinstance(node, ast.ImportFrom) and node.module != "__future__"
        for alias in node.names
    }
    assert set(authoring.__all__) == handed_on
    assert not any(name.startswith("_") for name in handed_on)
    assert len(authoring.__all__) == len(handed_on) <= 60


NAMES_A_METHOD = {
    "vitune.training.train_config": "the default method",
    "vitune.cli.compare": "the methods compared when none are named",
    "vitune.cli._pareto": "the methods compared when none are named",
    "vitune.cli.demo": "what the demo shows",
    "vitune.bench.speed.measuring": "the rows of the speed table",
    "vitune.bench.speed.references": "RLRR against its textbook version",
    "vitune.bench.speed.textbook": "RLRR's textbook version",
    "vitune.bench.speed.speed_table": "RLRR against its textbook version",
    "vitune.cli._speed": "RLRR against its textbook version",
    "vitune.cli._words": "an example of a list, for the help text",
    "vitune.inference.adding_exits": "a remedy: the method that trains exits",
    "vitune.training.tuning": "what a search tries where no method is named",
}
"""Where a method is chosen by name, and why that is no knowledge of the method."""

SHARED = [
    module
    for module in MODULES
    if module not in CATALOGUE and module not in ("vitune.methods", *NAMES_A_METHOD)
]


def texts(tree: ast.AST) -> list[str]:
    """The string constants of a file that are no docstrings."""
    bare = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr)}
    return [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in bare
    ]


def named_methods(tree: ast.AST) -> set[str]:
    """Methods that a file names in a text, or asks for with ==; common words count only there."""
    from vitune.methods import OWN

    common = {"linear", "full", "partial", "layernorm"}
    words = {word for text in texts(tree) for word in re.findall(r"\w+", text.lower())}
    compared = {
        constant.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Compare) and "method" in ast.unparse(node.left)
        for constant in ast.walk(node)
        if isinstance(constant, ast.Constant)
    }
    return (words & (set(OWN) - common)) | (compared & set(OWN))


def test_a_named_method_is_seen() -> None:
    code = "if config.method == 'linear':\n    raise ValueError('use --method rlrr')\n"
    assert named_methods(ast.parse(code)) == {"linear", "rlrr"}
    assert named_methods(ast.parse("'RLRR, as documented.'\nx = 'a linear layer'")) == set()


@pytest.mark.parametrize("module", SHARED)
def test_shared_code_names_no_method(module: str) -> None:
    assert named_methods(tree_of(module)) == set()


@pytest.mark.parametrize("module", NAMES_A_METHOD)
def test_no_reason_to_name_a_method_is_kept_in_vain(module: str) -> None:
    assert named_methods(tree_of(module))


def test_a_files_name_says_one_thing_in_the_whole_house() -> None:
    homes = defaultdict(list)
    for module, path in MODULES.items():
        if path.stem != "__init__" and room_of(module) not in VERBS:
            homes[path.stem].append(module)
    assert {stem: found for stem, found in homes.items() if len(found) > 1} == {}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_is_pickled_or_evaluated(path: Path) -> None:
    tree = tree_of(module_of(path))
    assert not imports_of(module_of(path)) & {"dill", "cloudpickle", "joblib"}
    used = {
        n.attr
        for n in ast.walk(tree)
        if isinstance(n, ast.Attribute) and ast.unparse(n).startswith("pickle.")
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
            heavy = {n.split(".")[0] for n in imports_of(module_of(path))}
            assert not heavy & {"torch", "timm", "peft", "transformers"}, path


def test_only_bench_and_the_verbs_open_a_test_split() -> None:
    """Training asks for train and val (or both together); the word "test" is not in its code."""
    for path in FILES:
        if room_of(module_of(path)) != "training":
            continue
        constants = {
            node.value
            for node in ast.walk(tree_of(module_of(path)))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
        assert "test" not in constants, path
        assert "vitune.data.load_labelled" not in imports_of(module_of(path)), path


MODULE_DOORS = (
    "bench", "bench.study", "bench.suites", "bench.tables", "bench.speed", "methods.core",
)  # fmt: skip
NAME_DOORS = (
    "analysis", "backbones", "data", "exits", "export", "fewer_tokens", "inference", "objectives",
    "ops", "privacy", "privacy.dp", "report", "serving", "training",
)  # fmt: skip


def door_of(room: str) -> list[str]:
    """What a room's `__init__` names in `__all__`: names, or of some rooms their files."""
    for node in tree_of(f"vitune.{room}").body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    return []


DOORS = {room: door_of(room) for room in (*MODULE_DOORS, *NAME_DOORS)}


def names_past_the_door(importer: str, tree: ast.AST) -> list[str]:
    """What a file imports from another room that the room's door does not name."""
    wrong = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("vitune."):
            continue
        assert node.module is not None
        room = room_of(node.module)
        if room == room_of(importer) or room not in DOORS:
            continue
        file = node.module.removeprefix(f"vitune.{room}").removeprefix(".")
        for alias in node.names:
            if (file if room in MODULE_DOORS and file else alias.name) not in DOORS[room]:
                wrong.append(f"{node.module}.{alias.name}")
    return wrong


def test_what_passes_the_door_is_seen() -> None:
    code = "from vitune.ops import hardware\nfrom vitune.bench.study.store import Store\n"
    code += (
        "from vitune.ops.hardware import cpu_multiplies_bf16\nfrom vitune.ops import attention\n"
    )
    found = names_past_the_door("vitune.cli.x", ast.parse(code))
    assert found == ["vitune.ops.hardware", "vitune.bench.study.store.Store"]


@pytest.mark.parametrize("module", MODULES)
def test_a_file_imports_only_what_doors_name(module: str) -> None:
    """A file outside a room takes only what the room's `__init__` lists.

    It may take a listed name from the file that holds it, `from vitune.training.observer import
    Observer`: importing a whole door can load PyTorch, which the command line must not do before
    it knows that it needs it. The catalogue (`vitune.methods`) has its own tests.
    """
    assert names_past_the_door(module, tree_of(module)) == []


@pytest.mark.parametrize("room", DOORS)
def test_a_door_names_what_there_is(room: str) -> None:
    named = DOORS[room]
    assert len(named) == len(set(named)) > 0
    door = importlib.import_module(f"vitune.{room}")
    for name in named:
        if room in MODULE_DOORS:
            assert f"vitune.{room}.{name}" in MODULES
        else:
            assert not isinstance(getattr(door, name), ModuleType)


def test_every_room_with_a_door_is_checked() -> None:
    """A folder that is a row of the house has a door, but for the roof and the catalogue."""
    folders = {room for room in ROW_OF if (PACKAGE / room.replace(".", "/")).is_dir()}
    assert folders - set(DOORS) == {"cli", "methods", "methods.rlrr", "methods.fact", "testing"}
