"""How options are written, shown and completed, whatever the verb does with them."""

from __future__ import annotations

import inspect
import re
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.models import ArgumentInfo

from vitune.cli import _completion, app, run
from vitune.cli._options import OTHER
from vitune.cli._settings import GROUP_OF
from vitune.cli._words import SYNTAX
from vitune.errors import VituneError
from vitune.training import TrainConfig

CPU_SECONDS = 1.0
"""What --help may take: twice the 0.5 s that a user is promised, since a machine that runs other
work counts more for the same instructions. 0.24 to 0.30 s were measured on a loaded machine."""


def commands(command: Any = None, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple, Any]]:
    """Every command with the words that call it, sets of commands too."""
    command = command or get_command(app)
    yield words, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, (*words, name))


COMMANDS = dict(commands())


def recorded(monkeypatch: pytest.MonkeyPatch, place: str) -> list[tuple[tuple, dict]]:
    """Calls of a function that is replaced by one that only ends the command."""
    calls: list[tuple[tuple, dict]] = []

    def replaced(*given: Any, **named: Any) -> None:
        calls.append((given, named))
        raise VituneError("recorded")

    monkeypatch.setattr(place, replaced)
    return calls


RUN = ("bench", "run", "--suite", "demo", "--out", "OUT")
COMPARE = ("compare", "--data", "demo:digits", "--out", "OUT")
SPEED = ("bench", "speed")
TRAIN = ("train", "--data", "demo:digits", "--out", "OUT")
LAUNCH, COMPARISON = "vitune.bench.launching.suite_study", "vitune.bench.comparing.comparison_study"
MEASURE, FIT = "vitune.bench.speed.measuring.bench_speed", "vitune.training.fitting.fit"
LEAK = ("audit", "leak", "--data", "demo:digits", "--method", "lora")
AUDIT = "vitune.privacy.leak.audit_leak"
PARETO = ("bench", "pareto", "--out", "OUT")
PARETO_DEMO = (*PARETO, "--suite", "demo")
FRONT = "vitune.bench.pareto.pareto_study"
Heard = Callable[[tuple, dict], Any]


def named(name: str) -> Heard:
    return lambda given, by_name: list(by_name[name])


def placed(place: int) -> Heard:
    return lambda given, by_name: list(given[place])


def plan(name: str) -> Heard:
    return lambda given, by_name: list(getattr(given[0], name))


def mapping(name: str) -> Heard:
    return lambda given, by_name: getattr(given[0], name)


def arguments(given: tuple, by_name: dict) -> Any:
    return by_name["method_args"]["lora"]


SEVERAL: dict[tuple[str, str], tuple[tuple[str, ...], list[str], str, Heard, Any]] = {
    ("bench run", "--methods"): (RUN, ["lora", "rlrr", "ssf"], LAUNCH, placed(1), None),
    ("bench run", "--lrs"): (RUN, ["1e-3", "2e-3", "3"], LAUNCH, named("lrs"), [1e-3, 2e-3, 3.0]),
    ("bench run", "--shots"): (RUN, ["1", "2", "4"], LAUNCH, named("shots"), [1, 2, 4]),
    ("bench run", "--tasks"): (RUN, ["a", "b", "c"], LAUNCH, named("only"), None),
    ("bench run", "--keep"): (RUN, ["a", "b", "c"], LAUNCH, named("keep"), None),
    ("bench run", "--method-arg"): (
        (*RUN, "--methods", "lora"), ["lora:r=8", "lora_alpha=4", "lora:target_modules=q,v"],
        LAUNCH, arguments, {"r": "8", "lora_alpha": "4", "target_modules": "q,v"},
    ),
    ("compare", "--methods"): (COMPARE, ["lora", "rlrr", "ssf"], COMPARISON, placed(1), None),
    ("compare", "--lrs"): (COMPARE, ["1", "2", "3"], COMPARISON, named("lrs"), [1.0, 2.0, 3.0]),
    ("compare", "--keep"): (COMPARE, ["a", "b", "c"], COMPARISON, named("keep"), None),
    ("compare", "--method-arg"): (
        COMPARE, ["lora:r=8", "lora:lora_alpha=4", "lora:use_dora=1"], COMPARISON, arguments,
        {"r": "8", "lora_alpha": "4", "use_dora": "1"},
    ),
    ("bench speed", "--methods"): (SPEED, ["lora", "rlrr", "ssf"], MEASURE, plan("methods"), None),
    ("bench speed", "--batch"): (SPEED, ["1", "2", "8"], MEASURE, plan("batches"), [1, 2, 8]),
    ("bench speed", "--precision"): (
        SPEED, ["fp32", "bf16", "fp16"], MEASURE, plan("precisions"), None,
    ),
    ("bench pareto", "--suite"): (PARETO, ["a", "b", "c"], FRONT, placed(0), None),
    ("bench pareto", "--tasks"): (PARETO_DEMO, ["a", "b", "c"], FRONT, named("only"), None),
    ("bench pareto", "--methods"): (
        PARETO_DEMO, ["lora", "rlrr", "ssf"], FRONT, placed(1), None,
    ),
    ("bench pareto", "--speeds"): (
        PARETO_DEMO, ["exact", "fast", "fastest"], FRONT, named("speeds"), None,
    ),
    ("bench pareto", "--epochs"): (
        PARETO_DEMO, ["1", "2", "8"], FRONT, named("epochs"), [1, 2, 8],
    ),
    ("audit leak", "--method-arg"): (
        LEAK, ["r=8", "alpha=4", "roles=q,v"], AUDIT, mapping("method_args"),
        {"r": "8", "alpha": "4", "roles": "q,v"},
    ),
    ("audit leak", "--attack"): (LEAK, ["labels", "honest", "head"], AUDIT, plan("attacks"), None),
    ("audit leak", "--batch"): (LEAK, ["1", "8", "32"], AUDIT, plan("batches"), [1, 8, 32]),
    ("audit leak", "--local-steps"): (
        LEAK, ["1", "2", "5"], AUDIT, plan("local_steps"), [1, 2, 5],
    ),
    ("audit membership", "--beside"): (
        ("audit", "membership", "RUN"), ["linear", "full", "lora"],
        "vitune.privacy.audit_membership", plan("beside"), None,
    ),
    ("combine", "--weights"): (
        ("combine", "a", "b", "c", "--out", "OUT"), ["0.7", "-0.3", "1e-1"],
        "vitune.adapters.combine_adapters", placed(1), [0.7, -0.3, 0.1],
    ),
    ("evaluate", "--beside"): (
        ("evaluate", "RUN"), ["a", "b", "c"], "vitune.inference.evaluate_run", named("beside"),
        None,
    ),
    ("rebalance", "--shares"): (
        ("rebalance", "RUN", "--out", "OUT"), ["a=1", "b=2", "d=0.5"],
        "vitune.inference.rebalance_run", lambda given, by_name: given[2],
        {"a": 1.0, "b": 2.0, "d": 0.5},
    ),
    ("train", "--method-arg"): (
        TRAIN, ["r=8", "alpha=4", "roles=q,v"], FIT, mapping("method_args"),
        {"r": "8", "alpha": "4", "roles": "q,v"},
    ),
    ("train", "--objective-arg"): (
        TRAIN, ["a=8", "b=4", "c=1"], FIT, mapping("objective_args"),
        {"a": "8", "b": "4", "c": "1"},
    ),
}  # fmt: skip
"""By command and option: a call, three values, the function that hears them, and what it hears."""

ELSEWHERE = {("bench study", "--keep"), ("bench defaults", "--against")}
"""Tested below: they are read after files."""

EVERYWHERE = {"--plugin"}
"""Declared once, in `vitune.cli._plugins`; see tests/cli/test_plugins.py."""


def spellings(option: str, values: list[str]) -> list[list[str]]:
    one, two, three = values
    return [
        [option, ",".join(values)],
        [option, one, option, two, option, three],
        [option, f"{one}, {two}", option, three],
    ]


def test_every_option_with_several_values_is_tested() -> None:
    found = {
        (" ".join(words), option.opts[0])
        for words, command in COMMANDS.items()
        for option in command.params
        if option.param_type_name == "option"
        and option.multiple
        and option.opts[0] not in EVERYWHERE
    }
    assert found == set(SEVERAL) | ELSEWHERE


def test_no_option_with_a_list_takes_one_text_only() -> None:
    """ "separated by ," was how a list in one text was announced."""
    for command in COMMANDS.values():
        for option in command.params:
            assert "separated by" not in (getattr(option, "help", None) or "")


@pytest.mark.parametrize(("command", "option"), SEVERAL)
@pytest.mark.parametrize("way", ["commas", "repeated", "both"])
def test_several_values_by_commas_and_repetition(
    command: str, option: str, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call, values, place, heard, expected = SEVERAL[command, option]
    written = spellings(option, values)[["commas", "repeated", "both"].index(way)]
    monkeypatch.chdir(tmp_path)
    calls = recorded(monkeypatch, place)
    assert run([*call, *written]) == 2
    ((given, by_name),) = calls
    assert heard(given, by_name) == (values if expected is None else expected)


@pytest.mark.parametrize("way", [0, 1, 2])
def test_bench_study_keeps_several(
    way: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vitune.bench.study.plan import Study

    variant, task = {"label": "linear", "method": "linear"}, {"name": "d", "data": "demo:digits"}
    asked = Study.make({"name": "s", "variants": [variant], "tasks": [task], "epochs": 1})
    monkeypatch.setattr(Study, "read", lambda file: asked)
    calls = recorded(monkeypatch, "vitune.bench.study.plan.Study.make")
    monkeypatch.chdir(tmp_path)
    words = spellings("--keep", ["a", "b", "c"])[way]
    assert run(["bench", "study", "file.yaml", "--out", "OUT", *words]) == 2
    assert calls[0][0][0]["keep"] == ("a", "b", "c")


@pytest.mark.parametrize("way", [0, 1, 2])
def test_bench_defaults_against_several(
    way: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    monkeypatch.setattr("vitune.bench.defaults.defaults_of", lambda folders: ([], []))
    monkeypatch.setattr(
        "vitune.bench.study.protocol.read_results", lambda folder: read.append(folder) or []
    )
    recorded(monkeypatch, "vitune.bench.defaults.choices_table")
    monkeypatch.chdir(tmp_path)
    Path("a,b").mkdir()  # a folder that exists is one folder, whatever its name
    assert run(["bench", "defaults", "S", *spellings("--against", ["x", "y", "a,b"])[way]]) == 2
    expected = ["x", "y", "a,b"] if way else ["x", "y", "a", "b"]
    assert read == [*expected, "S"]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_help_fits_80_columns_and_cuts_nothing(
    words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert run([*words, "--help"]) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    assert "…" not in shown
    told = "".join(shown.split())
    for parameter in COMMANDS[words].params:
        assert "".join((getattr(parameter, "help", None) or "").split()) in told
        assert all(name in told for name in parameter.opts if name.startswith("--"))
    for declared in inspect.signature(COMMANDS[words].callback or tuple).parameters.values():
        if isinstance(declared.default, ArgumentInfo):
            assert "".join(declared.default.help.split()) in told
    assert "\\[" not in shown
    # An indented line within a paragraph would be shown as a gap.
    assert not re.search(r"\S\n +\S", inspect.cleandoc(COMMANDS[words].help or ""))
    for inner in getattr(COMMANDS[words], "commands", {}).values():
        first = inner.help.split("\n\n")[0].split(". ")[0]
        assert "".join(first.split()).rstrip(".") in told


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_long_helps_are_grouped(
    words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [p for p in COMMANDS[words].params if p.param_type_name == "option"]
    panels = {option.rich_help_panel for option in options if "--help" not in option.opts}
    if len(options) > 4:
        assert None not in panels and OTHER not in panels and len(panels) > 1
    assert run([*words, "--help"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert all(shown.count(f"{panel}:") == 1 for panel in panels - {None})


def test_every_training_setting_has_a_group() -> None:
    assert set(GROUP_OF) == set(TrainConfig.model_fields)


def test_the_list_syntax_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    assert SYNTAX in " ".join(capsys.readouterr().out.split())


def completed(monkeypatch: pytest.MonkeyPatch, capsys: Any, *words: str) -> list[str]:
    """What bash offers for the last of the words, through click's protocol."""
    monkeypatch.setenv("_VITUNE_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", " ".join(("vitune", *words)))
    monkeypatch.setenv("COMP_CWORD", str(len(words)))
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        run([])
    assert stop.value.code == 0
    return str(capsys.readouterr().out).split()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("train", "--method", "rl"), ["rlrr"]),
        (("train", "--method", "arc"), ["arc", "arc_att"]),
        (("train", "--backbone", "vit"), ["vitune/vit_micro_patch4_32"]),
        (("train", "--optimiser", "s"), ["sgd"]),
        (("compare", "--methods", "lora,rl"), ["lora,rlrr"]),
        (("bench", "run", "--suite", "f"), ["fewshot", "fgvc"]),
        (("bench", "run", "--preset", "rlrr-v"), ["rlrr-vtab1k"]),
        (("bench", "run", "--backbone", "vitune/"), ["vitune/vit_micro_patch4_32"]),
        (("bench", "run", "--protocol", "a"), ["as-published"]),
        (("bench", "speed", "--methods", "ssf,bitf"), ["ssf,bitfit"]),
        (("bench", "pareto", "--suite", "demo,f"), ["demo,fewshot", "demo,fgvc"]),
        (("audit", "leak", "--method", "rl"), ["rlrr"]),
        (("serve", "--backbone", "vit"), ["vitune/vit_micro_patch4_32"]),
        (("bench", "presets", "hta-f"), ["hta-fgvc"]),
        (("data", "check", "DIR", "--suite", "vt"), ["vtab1k"]),
        (("methods", "--backbone", ""), ["vitune/vit_micro_patch4_32"]),
        (("be",), ["bench"]),
    ],
    ids=" ".join,
)
def test_values_are_completed(
    words: tuple[str, ...],
    offered: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert completed(monkeypatch, capsys, *words) == offered


@pytest.mark.parametrize("name", ["method", "methods", "backbone", "suite", "preset"])
def test_wherever_there_is_such_an_option_it_is_completed(name: str) -> None:
    found = [
        option
        for command in COMMANDS.values()
        for option in command.params
        if f"--{name}" in option.opts
    ]
    assert found and all(option._custom_shell_complete is not None for option in found)


def test_files_listed_are_what_their_readers_know() -> None:
    from vitune.backbones import bundled_names
    from vitune.bench.presets import preset_names

    assert tuple(_completion.backbones("")) == bundled_names()
    assert tuple(_completion.presets("")) == preset_names()


def test_completion_installs_itself(tmp_path: Path) -> None:
    environment = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "SHELL": "/bin/bash"}
    code = "import sys; from vitune.cli import run; sys.exit(run(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, "--install-completion", "bash"],
        env={**environment, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (script,) = (tmp_path / ".bash_completions").iterdir()
    assert "_VITUNE_COMPLETE=complete_bash" in script.read_text()
    assert str(script) in (tmp_path / ".bashrc").read_text()


def cpu_seconds(*arguments: str) -> float:
    """User and system time of a Python process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


SCRIPT = "from vitune.cli import main; main()"


@pytest.mark.parametrize("call", [("-m", "vitune"), ("-c", SCRIPT)], ids=["module", "script"])
@pytest.mark.parametrize("verb", [(), ("train",), ("bench", "run")], ids=" ".join)
def test_help_is_cheap(call: tuple[str, ...], verb: tuple[str, ...]) -> None:
    assert min(cpu_seconds(*call, *verb, "--help") for _ in range(2)) < CPU_SECONDS
