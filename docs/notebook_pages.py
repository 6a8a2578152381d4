"""A hook of mkdocs: every notebook in docs/ becomes a page, with the outputs it was saved with."""

from __future__ import annotations

from pathlib import Path

import nbformat
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add NAME.md for every NAME.ipynb."""
    for notebook in sorted(Path(config.docs_dir).glob("*.ipynb")):
        files.append(File.generated(config, f"{notebook.stem}.md", content=page(notebook)))
    return files


def page(notebook: Path) -> str:
    """The notebook as Markdown; pictures are refused, since a page would lose them."""
    return "\n\n".join(
        cell.source if cell.cell_type == "markdown" else code_block(cell)
        for cell in nbformat.read(notebook, as_version=4).cells
    )


def code_block(cell: nbformat.NotebookNode) -> str:
    text = "".join(shown(output) for output in cell.outputs).strip()
    result = f'\n\n```text title="Output"\n{text}\n```' if text else ""
    return f"```python\n{cell.source}\n```{result}"


def shown(output: nbformat.NotebookNode) -> str:
    if output.output_type == "stream":
        return output.text if output.name == "stdout" else ""
    data = output.get("data", {})
    if set(data) != {"text/plain"}:
        raise ValueError(f"output of a notebook: got {sorted(data)!r}, expected text. Print it.")
    return data["text/plain"]
