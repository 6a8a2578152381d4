"""The drawing of the house in docs/design.md: test_layers' rows and the rooms' docstrings.

`python tests/docs/house.py` writes it anew.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "design.md"
BEGIN, END = "<!-- rooms: made by tests/docs/house.py -->\n", "<!-- end of rooms -->\n"


def rows() -> tuple[tuple[str, ...], ...]:
    """ROWS of tests/test_layers.py, read as text so that nothing needs to be imported."""
    tree = ast.parse((ROOT / "tests" / "test_layers.py").read_text())
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "ROWS":
            return tuple(ast.literal_eval(node.value))
    raise LookupError("tests/test_layers.py: got no ROWS, expected the rows from roof to ground.")


def purpose(room: str) -> str:
    """The first line of the room's docstring; empty for a room that is planned but not built."""
    path = ROOT / "vitune" / room.replace(".", "/")
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    words = ast.get_docstring(ast.parse(file.read_text())) if file.is_file() else ""
    return words.splitlines()[0] if words else ""


def drawing() -> str:
    lines = ["| row | room | what it holds |", "|---:|---|---|"]
    floors = rows()
    for index, rooms in enumerate(floors):
        for room in rooms:
            if words := purpose(room):
                lines.append(f"| {len(floors) - index} | `{room}` | {words} |")
    return "\n".join(lines) + "\n"


def redrawn(text: str) -> str:
    """The page with the drawing of today's house."""
    before, rest = text.split(BEGIN)
    return before + BEGIN + "\n" + drawing() + "\n" + END + rest.split(END)[1]


if __name__ == "__main__":
    PAGE.write_text(redrawn(PAGE.read_text()))
    sys.stdout.write(f"{PAGE}\n")
