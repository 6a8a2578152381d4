"""Every command that README, docs and examples print is one that its program takes."""

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
OUTSIDE_THE_SITE = [
    ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md",
    *(ROOT / "examples").glob("*/README.md"),
]  # fmt: skip
PAGES = sorted([*OUTSIDE_THE_SITE, *(ROOT / "docs").rglob("*.md")])
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


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_studies_that_a_page_names_take_its_options(page: Path) -> None:
    """Read, not run: some need minutes to import what they measure."""
    joined = re.sub(r"\\\n\s*", " ", page.read_text())
    for script, arguments in re.findall(r"(studies/\w+\.py)([^\n`#;&]*)", joined):
        source = (ROOT / script).read_text()
        for option in re.findall(r"(?<!\S)--[a-z][\w-]*", arguments):
            assert f'"{option}"' in source, f"{page.name}: {script} {option}"


@pytest.mark.parametrize("page", OUTSIDE_THE_SITE, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_outside_the_site_lead_somewhere(page: Path) -> None:
    """Those inside it are checked when the site is built."""
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        path, _, heading = link.partition("#")
        if link.startswith("http"):
            continue
        target = page.parent / path if path else page
        assert target.exists(), f"{page.name}: {link}"
        headings = re.findall(r"^#+ (.+)$", target.read_text(), re.M) if heading else []
        slugs = {re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", head).lower()) for head in headings}
        assert not heading or heading in slugs, f"{page.name}: {link}"


def test_the_pages_say_the_default_rate_that_trains() -> None:
    rate = get_method("rlrr").default_lr(TrainConfig.model_fields["backbone"].default)
    for page in ("results-small.md", "howto/choose-a-method.md"):
        text = " ".join((ROOT / "docs" / page).read_text().split())
        told = re.search(r"RLRR's default (?:there )?is ([\d.]+\d)", text)
        assert told and float(told[1]) == rate, page
