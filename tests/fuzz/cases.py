"""Which command meets which damage: every file, option, container and list in turn."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, cycle
from random import Random
from typing import Any

import typer

SHARES = {"option": 0.4, "file": 0.35, "image": 0.15, "table": 0.1}

Words = dict[str, str | None]

TRAIN = {"--data": "photos", "--epochs": "1", "--image-size": "16", "--batch-size": "6"}
OUT = {"--out": "new"}
COMMANDS: dict[str, Words] = {
    "train": {**TRAIN, **OUT},
    "predict": {"run": "run", "images": "photos"},
    "evaluate": {"run": "run"},
    "merge": {"run": "run", **OUT},
    "info": {"path": "run"},
    "methods": {"--backbone": "vitune/vit_micro_patch4_32"},
    "compare": {**TRAIN, **OUT, "--methods": "linear", "--seeds": "1"},
    "combine": {"adapters": "run stopped", "--weights": "1,1", **OUT},
    "analyze": {"runs": "run", "--num-images": "0", **OUT},
    "demo": {"--out": "photos", "--epochs": "0"},
    "bench run": {
        "--suite": "demo", "--methods": "linear", "--tasks": "digits", "--dry-run": None, **OUT,
    },
    "bench study": {"file": "study.yaml", **OUT},
    "bench table": {"folders": "study"},
    "bench defaults": {"folders": "study"},
    "bench presets": {"name": "rlrr-vtab1k"},
    "bench speed": {
        "--backbone": "vitune/vit_micro_patch4_32", "--methods": "linear", "--batch": "1",
        "--precision": "fp32", "--rounds": "1", "--no-memory": None, "--no-inference": None,
    },
    "data check": {"source": "photos"},
    "exits add": {"run": "run", "--at": "1", "--epochs": "1", **OUT},
    "exits calibrate": {"run": "run", "--data": "photos", "--risk": "0.5"},
    "data fake": {"root": "new", "--suite": "fgvc"},
    "export": {"run": "run", "--to": "pt2", **OUT},
    "push": {"run": "run", "name": "me/run", "--license": "mit", "--data-license": "mit"},
    "serve": {"adapters": "photos"},
    "audit leak": {"--data": "photos", "--method": "bitfit", "--iterations": "1", **OUT},
    "audit membership": {"run": "run", "--references": "0", "--beside": "none", **OUT},
    "audit backbone": {"checkpoint": "vitune/vit_micro_patch4_32"},
    "bench pareto": {"--suite": "demo", "--methods": "linear", "--epochs": "0", **OUT},
    "rebalance": {"run": "run", **OUT},
}  # fmt: skip
"""A quick command of every verb: arguments by name, options by their word.

All are right but for those that would listen, call or train for long: no hub is reached, no
adapter lies in `photos`, which has too few images for an attacker, and nothing is trained for 0
epochs.
"""

WORK = {
    "--epochs", "--seeds", "--trials", "--rounds", "--jobs", "--batch", "--image-size", "--shots",
    "--num-images", "--along", "--top-k", "--iterations", "--local-steps", "--tune",
    "--references",
}  # fmt: skip
"""Options that rightly make a command take longer: no number between 4 and 10,000 for them."""

SLOW = (
    "methods", "bench speed", "data fake", "exits add", "export", "push", "serve", "audit leak",
    "audit membership", "audit backbone", "bench pareto",
)  # fmt: skip
"""Verbs that take seconds: each of their options comes once."""

PROBE_FILES = (
    "probe/vitune.json", "probe/adapter_config.json", "probe/adapter_model.safetensors",
    "probe/probe.json", "probe",
)  # fmt: skip
RUN_FILES = (
    "config.yaml", "metrics.jsonl", "images.npz", "summary.json", "report.html",
    "adapter/vitune.json", "adapter/adapter_config.json", "adapter/adapter_model.safetensors",
    "checkpoint/state.json", "checkpoint/tensors.safetensors", "evaluation/photos-val.json",
    "adapter", "checkpoint", "evaluation", *PROBE_FILES, ".",
)  # fmt: skip
STOPPED_FILES = (
    "config.yaml", "metrics.jsonl", "images.npz", "checkpoint/state.json",
    "checkpoint/tensors.safetensors", "checkpoint", *PROBE_FILES, ".",
)  # fmt: skip
STUDY_FILES = ("study.yaml", "study.jsonl", "compare.html", "cells/*", "logits/*", "cells", ".")
MERGED_FILES = ("vitune.json", "model.safetensors", ".")

READ_RUN = (
    "info run", "info run --json", "evaluate run", "evaluate run --force", "predict run photos",
    "merge run --out new", "analyze run --num-images 0", "combine run stopped --weights 1,1 "
    "--out new", "train --out run --resume", "train --out run --resume --epochs 2",
    "evaluate run/adapter --data photos --split all", "merge run --out new --force",
)  # fmt: skip
ON_FILES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "run": (RUN_FILES, READ_RUN),
    "stopped": (
        STOPPED_FILES,
        ("train --out stopped --resume", "train --out stopped --resume", "info stopped"),
    ),
    "study": (
        STUDY_FILES,
        (
            "bench table study", "bench table study --format csv", "bench defaults study",
            "compare --data photos --methods linear --epochs 1 --image-size 16 --seeds 1 "
            "--lrs 1e-2,1e-3 --out study",
            "analyze study --out new",
        ),
    ),
    "merged": (
        MERGED_FILES,
        (
            "info merged", "predict merged photos", "evaluate merged --data photos",
            "predict merged photos --force", "analyze merged --out new --num-images 0",
        ),
    ),
    "": (
        ("train.yaml", "study.yaml"),
        ("train --config train.yaml --out new", "bench study study.yaml --out new"),
    ),
}  # fmt: skip
ON_IMAGES = (
    "predict run photos", "predict run photos --skip-bad-images", "data check photos",
    "data check photos --json", "evaluate run --data photos --skip-bad-images",
    "train --data photos --epochs 1 --image-size 16 --batch-size 4 --out new --skip-bad-images",
    "train --data photos --epochs 1 --image-size 16 --batch-size 4 --out new",
    "train --out stopped --resume", "evaluate run", "predict run photos/blue/odd{suffix}",
)  # fmt: skip
ON_TABLES = (
    "data check {table}", "train --data {table} --epochs 1 --image-size 16 --batch-size 4 "
    "--out new", "evaluate run --data {table} --skip-bad-images",
    "compare --data {table} --methods linear --epochs 1 --image-size 16 --seeds 1 --out new",
)  # fmt: skip
TABLES = ("photos.csv", "photos.parquet", "split.csv", "split.parquet")


@dataclass(frozen=True)
class Case:
    """One command, and what was done before it.

    Args:
        kind: option, file, image or table.
        target: the option, file, container or list that is mutated.
        argv: the command.
        draw: what is done to the target; none for options, where the command holds it.
        unchecked: the checksums of the adapter's card are taken out first.
    """

    kind: str
    target: str
    argv: list[str]
    draw: list[Any] = field(default_factory=list)
    unchecked: bool = False

    def __str__(self) -> str:
        more = ", without checksums" if self.unchecked else ""
        command = shlex.join(self.argv).encode("utf-8", "backslashreplace").decode()
        return f"{self.kind} {self.target}{more}: {str(self.draw)[:300]}\nvitune {command[:600]}"


def counts_of(num_cases: int) -> dict[str, int]:
    """Cases by kind; the largest kind takes the rest."""
    counts = {kind: int(share * num_cases) for kind, share in SHARES.items()}
    counts["option"] += num_cases - sum(counts.values())
    return counts


def options() -> dict[str, dict[str, Any]]:
    """Every parameter of every verb, from the application itself."""
    from vitune.cli import app

    return dict(_verbs(typer.main.get_command(app), ""))


def _verbs(command: Any, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for word, inner in getattr(command, "commands", {}).items():
        yield from _verbs(inner, f"{name} {word}".strip())
    if not hasattr(command, "commands"):
        yield name, {_word(p): p for p in command.params}


def _word(parameter: Any) -> str:
    return str(parameter.name if parameter.param_type_name == "argument" else parameter.opts[0])


def cases(drawn: dict[str, list[Any]], start: int, containers: list[str]) -> list[Case]:
    """All cases, the kinds mixed, so that any part of them holds every kind."""
    makers = {
        "option": (_option_case, [(v, o) for v, found in options().items() for o in found]),
        "file": (_file_case, [(f, n) for f, (names, _) in ON_FILES.items() for n in names]),
        "image": (_image_case, containers),
        "table": (_table_case, list(TABLES)),
    }
    found = []
    for kind, draws in drawn.items():
        maker, targets = makers[kind]
        Random(f"{start} {kind}").shuffle(targets)
        _once_each(targets)
        again = [target for target in targets if target[0] not in SLOW]
        order = chain(targets, cycle(again))
        found += [maker(target, *each) for target, each in zip(order, draws, strict=False)]
    Random(start).shuffle(found)
    return found


def _once_each(targets: list[Any]) -> None:
    """Every verb and every folder comes once before any comes again: few cases meet all."""
    firsts = {target[0]: target for target in reversed(targets) if isinstance(target, tuple)}
    targets.sort(key=lambda target: target not in firsts.values())


def _option_case(target: tuple[str, str], word: str, other: str, flags: list[Any]) -> Case:
    verb, option = target
    known = options()[verb]
    words = dict(COMMANDS[verb])
    _put(words, option, known[option], word)
    if flags[0]:  # a second option, so that pairs contradict each other
        second = sorted(known)[flags[1] % len(known)]
        if second != option:
            _put(words, second, known[second], other)
    argv = verb.split()
    for name, value in words.items():
        argv += [name] if name.startswith("--") else []
        if value is not None and value == COMMANDS[verb].get(name) and " " in value:
            argv += value.split()
        elif value is not None:
            argv.append(value)
    return Case("option", f"{verb} {option}", argv)


def _put(words: Words, option: str, parameter: Any, word: str) -> None:
    if getattr(parameter, "is_flag", False):
        opposite = [*parameter.secondary_opts, *parameter.opts]
        words.pop(next((name for name in opposite if name in words), ""), None)
        words[opposite[0] if word < "a" else parameter.opts[0]] = None
    elif option.startswith("--"):
        words[option] = _harmless(word) if option not in WORK else _brief(_harmless(word))
    else:
        words[option] = _harmless(word)


def _harmless(word: str) -> str:
    """No path that leads out of the case's folder."""
    return f"x{word}" if word.startswith("/") or ".." in word else word


def _brief(word: str) -> str:
    """No order for work that rightly takes long."""
    try:
        numbers = [float(part) for part in word.split(",") if part.strip()]
    except ValueError:
        return word
    return f"-{word}" if any(4 < number < 10_000 for number in numbers) else word


def _file_case(target: tuple[str, str], draw: list[Any], flags: list[Any]) -> Case:
    folder, name = target
    commands = ON_FILES[folder][1]
    if not folder:
        commands = [command for command in commands if name in command]
    argv = commands[flags[1] % len(commands)].split()
    path = f"{folder}/{name}" if folder and name != "." else folder or name
    return Case("file", path, argv, draw, unchecked=flags[0])


def _image_case(container: str, draw: list[Any], flags: list[Any]) -> Case:
    from images import CONTAINERS

    command = ON_IMAGES[flags[1] % len(ON_IMAGES)]
    return Case("image", container, command.format(suffix=CONTAINERS[container]).split(), draw)


def _table_case(table: str, draw: list[Any], flags: list[Any]) -> Case:
    argv = ON_TABLES[flags[1] % len(ON_TABLES)].format(table=table).split()
    return Case("table", table, argv, draw)
