"""docs/backbones.md from the results of the breadth test."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from results import ROOT, Results
from verdict import METHODS

PAGE = ROOT / "docs" / "backbones.md"
TITLES = {"right": "works", "refused": "-", "wrong": "WRONG"}


def write(results: Results) -> None:
    """Write the page from what is kept, unless the one that is there tells of more networks."""
    from test_breadth import NAMES

    kept = {name: record for name, record in results.kept().items() if name in NAMES}
    if len(kept) >= (num_run(PAGE.read_text()) if PAGE.exists() else 0):
        PAGE.write_text(page(kept, NAMES))
    if len(kept) == len(NAMES):
        results.forget()


def num_run(text: str) -> int:
    """How many networks a page says were run."""
    found = re.search(r"(\d+) of \d+ networks", text)
    return int(found[1]) if found else 0


def page(results: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> str:
    """The page.

    Args:
        results: by "library name", what a test of `test_breadth.py` recorded.
        names: every network; those without a result are listed as not run.
    """
    reasons: dict[str, int] = {}
    rows: dict[str, list[str]] = {"timm": [], "transformers": []}
    for library, name in sorted(key.split(" ", 1) for key in names):
        record = results.get(f"{library} {name}")
        rows[library].append(_row(name, record, reasons) if record else _not_run(name))
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
            f"{len(results)} of {len(names)} networks have run, {sum(counts.values())} cases: "
            f"{counts['right']} work, {counts['refused']} are refused, "
            f"{counts['wrong']} are wrong.",
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


def _not_run(name: str) -> str:
    return f"| {' | '.join((name, 'not run', *['' for _ in range(1 + len(METHODS))]))} |"


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


if __name__ == "__main__":
    write(Results())
