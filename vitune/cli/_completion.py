"""What the shell offers after an option when TAB is pressed.

Presets and bundled backbones are files, so they are listed without importing the code that reads
them. The methods need PEFT's list and therefore PyTorch: the first TAB takes as long as that
import.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

PACKAGE = Path(__file__).parents[1]


def backbones(incomplete: str) -> list[str]:
    """The bundled backbones; any other name of timm or transformers may be typed."""
    found = (PACKAGE / "backbones" / "weights").glob("*.json")
    return _starting(incomplete, (f"vitune/{path.stem}" for path in found))


def presets(incomplete: str) -> list[str]:
    """The published recipes."""
    found = (PACKAGE / "bench" / "presets").glob("[!_]*.yaml")
    return _starting(incomplete, (path.stem for path in found))


def suites(incomplete: str) -> list[str]:
    """The named suites."""
    from vitune.bench.suites.suite_names import SUITES

    return _starting(incomplete, SUITES)


def methods(incomplete: str) -> list[str]:
    """Everything that --method takes."""
    from vitune.methods import METHODS

    return _starting(incomplete, METHODS)


def several_suites(incomplete: str) -> list[str]:
    """The suite after the last comma, with the text before it."""
    return _after_comma(incomplete, suites)


def several_methods(incomplete: str) -> list[str]:
    """The method after the last comma, with the text before it."""
    return _after_comma(incomplete, methods)


def one_of(names: Iterable[str]) -> Callable[[str], list[str]]:
    """A fixed list of words."""
    known = tuple(names)

    def offered(incomplete: str) -> list[str]:
        return _starting(incomplete, known)

    return offered


def _after_comma(incomplete: str, offered: Callable[[str], list[str]]) -> list[str]:
    before, comma, last = incomplete.rpartition(",")
    return [f"{before}{comma}{name}" for name in offered(last)]


def _starting(incomplete: str, names: Iterable[str]) -> list[str]:
    return sorted(name for name in names if name.startswith(incomplete))
