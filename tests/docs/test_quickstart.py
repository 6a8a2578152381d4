"""The quick-start notebook runs as it is printed, and what it prints still holds."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).resolve().parents[2] / "docs" / "quickstart.ipynb"


def _outputs(notebook: Any) -> str:
    return "".join(
        output.text
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if output.output_type == "stream" and output.name == "stdout"
    )


def _accuracy(text: str) -> float:
    found = re.search(r"1,597 test images, accuracy ([\d.]+)%", text)
    assert found, text
    return float(found[1])


def test_the_notebook_runs_as_printed(tmp_path: Path) -> None:
    reason = "is not installed: pip install 'vitune[docs]'"
    nbformat = pytest.importorskip("nbformat", reason=f"nbformat {reason}")
    nbclient = pytest.importorskip("nbclient", reason=f"nbclient {reason}")
    pytest.importorskip("ipykernel", reason=f"ipykernel {reason}")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    printed = _accuracy(_outputs(notebook))
    client = nbclient.NotebookClient(
        notebook,
        kernel_name="python3",
        startup_timeout=180,
        timeout=300,
        resources={"metadata": {"path": str(tmp_path)}},
    )
    client.execute()
    assert abs(_accuracy(_outputs(notebook)) - printed) < 5  # other processors round otherwise
    assert (tmp_path / "runs" / "quickstart" / "report.html").is_file()
