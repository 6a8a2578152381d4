"""docs/backbones.md from the results of the breadth test."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from verdict import METHODS

TITLES = {"right": "works", "refused": "-", "wrong": "WRONG"}


def page(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The page.

    Args:
        results: by "library name", what a test of `test_breadth.py` recorded.
    """
    reasons: dict[str, int] = {}
    rows = {
        library: [
            _row(name, record, reasons)
            for (its, name), record in sorted(
                (tuple(key.split(" ", 1)), value) for key, value in results.items()
            )
            if its == library
        ]
        for library in ("timm", "transformers")
    }
    counts = {kind: 0 for kind in TITLES}
    for record in results.values():
        for verdict in record["verdicts"].values():
            counts[verdict["kind"]] += 1
    head = f"| model | class | RLRR adapts | {' | '.join(METHODS)} |"
    rule = "|---" * (3 + len(METHODS)) + "|"
    return "\n".join(
        (
            "# Backbones",
            "",
            "Which method works on which network. `make test-breadth` makes this page: it builds",
            f"{len(rows['timm'])} timm models and {len(rows['transformers'])} transformers models",
            "with random weights and small sizes, and puts each method on each. **works** means:",
            "the start is the pre-trained function where the method says so; exactly the declared",
            "parameters get gradients; disabling, saving and loading give the same logits; merged",
            "and un-merged logits agree. A number is the reason why the method refuses the network",
            "at injection. Nothing else may happen.",
            "",
            f"{sum(counts.values())} cases: {counts['right']} work, {counts['refused']} are "
            f"refused, {counts['wrong']} are wrong.",
            "",
            "*RLRR adapts* is the share of linear and convolution weights outside the head that",
            "RLRR adapts by default; `RLRRConfig().coverage(model)` gives it for any network.",
            "",
            "## timm",
            "",
            head,
            rule,
            *rows["timm"],
            "",
            "## transformers",
            "",
            head,
            rule,
            *rows["transformers"],
            "",
            "## Reasons",
            "",
            *(f"{number}. {text}" for text, number in reasons.items()),
            "",
        )
    )


def _row(name: str, record: Mapping[str, Any], reasons: dict[str, int]) -> str:
    share = record["coverage"]
    cells = [name, record["class"], "-" if share is None else f"{100 * share:.1f} %"]
    for method in METHODS:
        verdict = record["verdicts"][method]
        if verdict["kind"] == "refused":
            text = reason(verdict["text"])
            cells.append(str(reasons.setdefault(text, len(reasons) + 1)))
        else:
            cells.append(TITLES[verdict["kind"]])
    return f"| {' | '.join(cells)} |"


def reason(text: str) -> str:
    """A refusal without the names and sizes of one network, and without its remedy."""
    text = re.sub(r"^.*?: got ", "got ", text)
    text = re.sub(r" at '[^']*'", "", text)
    text = text.partition(". ")[0]
    text = re.sub(r"got \w+ with no block .*", "no block that is recognised", text)
    text = re.sub(r"got \[[^\]]*\], expected roles .*", "no layer of a role that it acts on", text)
    text = re.sub(r"got \w+ \(.*?\) with a child called", "a child is called", text)
    text = re.sub(r"got blocks that fail with .*", "blocks do not take more tokens", text)
    text = re.sub(r"got tokens of shape .*", "tokens are no grid with prefix, or not last", text)
    text = re.sub(r"got a block without .*", "no transformer block with all parts", text)
    text = re.sub(r"got a backbone with positions .*", "positions inside attention", text)
    return text.removeprefix("got ")
