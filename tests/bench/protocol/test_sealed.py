"""Training cannot reach a test split: by what it imports, by what it names, by what it decodes."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import vitune
from vitune.bench.study import as_published, course
from vitune.data.procedural import Scene
from vitune.training import TrainConfig
from vitune.training.fitting import fit

PACKAGE = Path(vitune.__file__).parent
TRAINING = sorted((PACKAGE / "training").glob("*.py"))

FORBIDDEN = {"load_labelled", "load_unlabelled", "read_splits"}
FORBIDDEN_ROOMS = ("vitune.bench", "vitune.inference")


def trees() -> Iterator[tuple[Path, ast.Module]]:
    for path in TRAINING:
        yield path, ast.parse(path.read_text())


def docstrings(tree: ast.Module) -> set[int]:
    """Ids of the constants that are documentation."""
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef
    owners = [node for node in ast.walk(tree) if isinstance(node, kinds)]
    firsts = [owner.body[0] for owner in owners if owner.body]
    return {id(f.value) for f in firsts if isinstance(f, ast.Expr)}


def test_the_room_is_not_empty() -> None:
    assert len(TRAINING) >= 8 and "fitting.py" in {path.name for path in TRAINING}


def test_training_imports_nothing_that_opens_a_test_split() -> None:
    for path, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                names = {alias.name for alias in node.names}
                assert not names & FORBIDDEN, f"{path.name} imports {names & FORBIDDEN}"
                assert not (node.module or "").startswith(FORBIDDEN_ROOMS), path.name
            if isinstance(node, ast.Import):
                assert not any(a.name.startswith(FORBIDDEN_ROOMS) for a in node.names), path.name


def test_training_never_names_the_test_split() -> None:
    for path, tree in trees():
        documentation = docstrings(tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and id(node) not in documentation:
                assert node.value != "test", f"{path.name}, line {node.lineno}: 'test'"


def test_training_reads_test_only_to_refuse_it() -> None:
    found = [
        (path.name, function.name)
        for path, tree in trees()
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.Attribute) and node.attr == "test"
    ]
    assert found == [("ingredients.py", "_sealed")]


def test_every_load_in_training_says_which_splits() -> None:
    calls = [
        node
        for _, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "load_splits"
    ]
    assert len(calls) == 1  # the default of load_splits includes the test split
    for call in calls:
        assert "include" in {keyword.arg for keyword in call.keywords}


@pytest.mark.parametrize("refit", [False, True])
def test_fit_draws_no_test_picture(refit: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: set[str] = set()
    pixels = Scene.pixels

    def told(self: Scene, height: int, width: int) -> object:
        drawn.add(self.split)
        return pixels(self, height, width)

    monkeypatch.setattr(Scene, "pixels", told)
    data = "demo:count?train=16&val=8&test=16"
    fit(TrainConfig(data=data, method="linear_sgd", epochs=1, batch_size=8, refit=refit))
    assert drawn == {"train", "val"}


def test_one_file_alone_looks_while_a_network_trains() -> None:
    """Only `as_published` and the workbench's opening of it take part before training ends.

    `course` writes down what training says of its epochs: it has neither images nor the network.
    """
    users = {
        path.name for path in (PACKAGE / "bench").rglob("*.py") if "epoch_ended" in path.read_text()
    }
    assert users == {Path(as_published.__file__).name, Path(course.__file__).name}
    tree = ast.parse(Path(course.__file__).read_text())
    nodes = list(ast.walk(tree))
    assert not any(isinstance(node, ast.Import) for node in nodes)
    rooms = {node.module: node.names for node in nodes if isinstance(node, ast.ImportFrom)}
    assert set(rooms) == {"__future__", "typing", "vitune.training"}
    assert {alias.name for alias in rooms["vitune.training"]} == {"Observer", "Running"}
    assert "loop" not in {node.id for node in nodes if isinstance(node, ast.Name)}
