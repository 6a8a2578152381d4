"""Results of the breadth test, one JSON line each, kept until every network has run."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RESULT = "breadth"
HERE = ROOT / ".cache" / "breadth.jsonl"


@cache
def code() -> str:
    """A fingerprint of all that a result depends on: our code, the cases and the libraries."""
    digest = hashlib.sha256()
    cases = [Path(__file__).with_name(f"{name}.py") for name in ("timm_zoo", "hf_zoo", "verdict")]
    for path in (*sorted((ROOT / "vitune").rglob("*.py")), *cases):
        digest.update(path.read_bytes())
    for library in ("torch", "timm", "transformers", "peft"):
        digest.update(version(library).encode())
    return digest.hexdigest()[:16]


class Results:
    """What was found with the code as it is now.

    Args:
        path: the file that keeps it.
    """

    def __init__(self, path: Path = HERE) -> None:
        self.path = path
        self.new = 0

    def kept(self) -> dict[str, dict[str, Any]]:
        """The last record of each network, by "library name"."""
        if not self.path.exists():
            return {}
        records = [json.loads(line) for line in self.path.read_text().splitlines()]
        return {record.pop("name"): record for record in records if record["code"] == code()}

    def keep(self, record: dict[str, Any]) -> None:
        """Add one record; a process that is killed loses none that came before."""
        self.path.parent.mkdir(exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps({**record, "code": code()}) + "\n")
        self.new += 1

    def forget(self) -> None:
        """Begin anew with the next run."""
        self.path.unlink(missing_ok=True)
