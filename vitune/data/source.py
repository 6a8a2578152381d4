"""From the user's spec to a list of records: the registry of sources."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vitune.data.demo import DEMOS, open_demo
from vitune.data.folder import nearest_sibling, open_folder
from vitune.data.path_table import TABLE_SUFFIXES, open_table
from vitune.data.records import ImageList
from vitune.data.vtab import open_vtab
from vitune.errors import DataError, nearest


@dataclass(frozen=True)
class Source:
    """The syntax, recognition and opening of one kind of source.

    Args:
        prefix: the text before the path; None for a source without a path.
    """

    form: str
    claims: Callable[[str], bool]
    open: Callable[[str], ImageList]
    prefix: str | None = ""


SOURCES: dict[str, Source] = {
    "vtab": Source("vtab:ROOT/TASK", lambda spec: spec.startswith("vtab:"), open_vtab, "vtab:"),
    "demo": Source("demo:NAME", lambda spec: spec.startswith("demo:"), open_demo, None),
    "table": Source("FILE.csv or FILE.parquet", lambda spec: _is_table(spec), open_table),
    "folder": Source("FOLDER", lambda spec: Path(spec).expanduser().is_dir(), open_folder),
}


def open_source(spec: str | Path) -> ImageList:
    """List the images that a spec names, without decoding any.

    Args:
        spec: a folder of class folders (or of train, val, test folders above them), a `.csv` or
            `.parquet` file, `vtab:ROOT/TASK`, or `demo:NAME`.

    Raises:
        DataError: no source matches the spec, or it is unusable.
    """
    text = str(spec)
    for source in SOURCES.values():
        if source.claims(text):
            return source.open(text)
    forms = ", ".join(source.form for source in SOURCES.values())
    raise DataError(f"data: got {text!r}, expected one of: {forms}. {_nearest_spec(text)}")


def absolute_source(spec: str) -> str:
    """`spec` rewritten so that it names the same images in any working directory."""
    source = next((source for source in SOURCES.values() if source.claims(spec)), None)
    if source is None or source.prefix is None:
        return spec
    path = Path(spec.removeprefix(source.prefix)).expanduser()
    return source.prefix + os.path.abspath(path)


def is_source(spec: str) -> bool:
    """Whether `spec` has the form of a data source; nothing is opened."""
    return any(source.claims(spec) for source in SOURCES.values())


def spec_name(spec: str) -> str:
    """The last part of a spec without its options, used as the data's name in tables."""
    return spec.partition("?")[0].rstrip("/").replace(":", "/").rpartition("/")[2] or spec


def _is_table(spec: str) -> bool:
    path = Path(spec)
    return path.suffix.lower() in TABLE_SUFFIXES and not path.expanduser().is_dir()


def _nearest_spec(spec: str) -> str:
    """The closest scheme or demo, else the closest sibling of the path."""
    scheme = re.match(r"^(\w{2,}):", spec)
    if scheme:
        return nearest(scheme[1] + ":", ("vtab:", "demo:"))
    if spec in DEMOS:
        return f"Did you mean 'demo:{spec}'?"
    path = Path(spec).expanduser()
    if path.exists():
        return f"A file with the suffix {path.suffix!r} is not a data source."
    if path.is_symlink():
        return "It is a link that leads to no folder or file; correct it."
    return f"There is no such folder. {nearest_sibling(path)}"
