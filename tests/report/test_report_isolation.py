"""The report room reads files: no torch, no drawing library, no other room."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import vitune

ROOM = Path(vitune.__file__).parent / "report"
GROUND_FLOOR = ("vitune.errors", "vitune.files", "vitune.result_files", "vitune.runs")
HEAVY = ("torch", "matplotlib", "numpy", "transformers", "pandas", "sklearn", "pyarrow", "jinja2")

SCRIPT = """
import sys, types
package = types.ModuleType("vitune")
package.__path__ = [{package!r}]
sys.modules["vitune"] = package
import vitune.report
print(*sorted(set({heavy!r}) & set(sys.modules)))
vitune.report.write_report({run!r})
vitune.report.write_comparison([{{"method": "x", "top1": [0.5]}}], {run!r} + "/compare.html")
print(*sorted(set({heavy!r}) & set(sys.modules)))
"""


def test_neither_importing_nor_writing_loads_torch(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("method: rlrr\n")
    script = SCRIPT.format(package=str(ROOM.parent), heavy=HEAVY, run=str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    on_import, at_the_end = done.stdout.split("\n")[:2]
    assert on_import == ""
    assert at_the_end == "jinja2"
    assert (tmp_path / "report.html").is_file()


def test_only_the_ground_floor_is_imported_from_outside_the_room() -> None:
    files = sorted(ROOM.glob("*.py"))
    assert len(files) >= 15
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0
                names = [node.module or ""]
                if names == ["vitune"]:
                    names = [f"vitune.{alias.name}" for alias in node.names]
            for name in names:
                inside = name.startswith("vitune.report") or not name.startswith("vitune")
                assert inside or name in GROUND_FLOOR, (path.name, name)
                assert name.split(".")[0] not in ("torch", "numpy", "matplotlib"), path.name


def test_templates_are_there() -> None:
    found = {path.name for path in (ROOM / "templates").iterdir()}
    assert {"base.html", "report.html", "comparison.html", "styles.css", "page.js"} <= found
