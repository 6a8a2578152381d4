"""Every `vitune ...` command that README and docs print is one that the command line takes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer

from vitune.cli import ClickException, app
from vitune.methods import get_method
from vitune.training import TrainConfig

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
STANDS_FOR = {"RATE": "0.01"}
"""Words of the pages that stand for a number."""


def commands(text: str) -> list[tuple[str, bool]]:
    """Commands, and whether each is a whole one: a line of a block, or words in a code span."""
    joined = re.sub(r"\\\n\s*", " ", text)
    fenced = "\n".join(re.findall(r"^```\w*\n(.*?)^```", joined, re.S | re.M))
    indented = "\n".join(re.findall(r"^ {4,}(.*)$", joined, re.M))
    lines = re.findall(r"^(?:[A-Z_]+=\d )?(vitune [a-z].*)$", f"{fenced}\n{indented}", re.M)
    whole = [re.split(r"\s+#|\s{3,}\(|\s&&|\s>", line)[0] for line in lines]
    spans = [span.split(" > ")[0] for span in re.findall(r"`(vitune [a-z][^`]*)`", joined)]
    return [(line, True) for line in whole] + [(" ".join(span.split()), False) for span in spans]


FOUND = [
    (page.name, command, whole) for page in PAGES for command, whole in commands(page.read_text())
]


def parse(command: str) -> None:
    """Parse as the command line would, down to the verb, without running it."""
    words = [STANDS_FOR.get(word, word) for word in shlex.split(command)[1:]]
    here = typer.main.get_command(app)
    context = None
    while True:
        context = here.make_context(here.name, words, parent=context)
        words = [*context._protected_args, *context.args]
        if not hasattr(here, "commands"):
            return
        _, here, words = here.resolve_command(context, words)


def test_there_are_many_commands() -> None:
    assert len(FOUND) > 60
    assert {page for page, _, _ in FOUND} > {"README.md", "reproduce.md", "own-images.md"}


@pytest.mark.parametrize(
    ("page", "command", "whole"), FOUND, ids=[f"{page}-{words[:60]}" for page, words, _ in FOUND]
)
def test_the_command_line_takes_it(page: str, command: str, whole: bool) -> None:
    try:
        parse(command)
    except ClickException as error:
        told = error.format_message()
        # Running text may name a verb and one of its options without the others.
        assert "Missing" in told and not whole, f"{page}: {command}: {told}"


@pytest.mark.parametrize(
    "command", ["vitune train --no-such-option 1 --out x", "vitune trian --out x", "vitune merge r"]
)
def test_a_wrong_command_is_seen(command: str) -> None:
    with pytest.raises(ClickException):
        parse(command)


def test_the_pages_say_the_default_rate_that_trains() -> None:
    rate = get_method("rlrr").default_lr(TrainConfig.model_fields["backbone"].default)
    for page in ("results-small.md", "howto/choose-a-method.md"):
        text = " ".join((ROOT / "docs" / page).read_text().split())
        told = re.search(r"RLRR's default (?:there )?is ([\d.]+\d)", text)
        assert told and float(told[1]) == rate, page
