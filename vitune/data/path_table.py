"""A CSV or Parquet table with the columns path, label and, optionally, split and group."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from pathlib import Path

from vitune.data.folder import nearest_sibling
from vitune.data.records import SPLIT_ALIASES, ImageList, Record, require_records
from vitune.errors import DataError, nearest

TABLE_SUFFIXES = (".csv", ".parquet")

Line = tuple[str, str, str, str | None]

OTHER_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "vertical bars"}
"""What spreadsheets write instead of commas."""


def open_table(spec: str) -> ImageList:
    """List the images of a table: one line per image, paths relative to the table's folder.

    Class names are the label texts over all splits at once: in numeric order if every label is a
    whole number (1-based or sparse ids leave no unused class), else in sorted order.

    Args:
        spec: path of a `.csv` (UTF-8, comma) or `.parquet` file with the columns path, label and,
            if the table has splits, split (train, val, valid, validation or test). A column
            group names what an image shows, for example a patient: see `vitune.data.grouping`.

    Raises:
        DataError: no such file, a missing, unknown or repeated column, an empty cell, more cells
            than columns, a NUL byte, an unknown split.
    """
    path = Path(spec).expanduser()
    if not path.is_file():
        raise DataError(
            f"data table: got {spec!r}, expected an existing file. {nearest_sibling(path)}"
        )
    lines = list(_csv_lines(path, spec) if path.suffix.lower() == ".csv" else _parquet(path, spec))
    if not lines:
        raise DataError(f"data table {spec}: got no lines, expected lines with path and label.")
    classes = _class_names({label for _, label, *_ in lines})
    index = {name: label for label, name in enumerate(classes)}
    splits: dict[str, list[Record]] = {}
    for image, label, split, group in lines:
        splits.setdefault(split, []).append(Record(path.parent / image, index[label], group))
    checked = {name: require_records(found, spec, name) for name, found in splits.items()}
    return ImageList(spec, checked, classes)


def _csv_lines(path: Path, spec: str) -> Iterator[Line]:
    """(path, label, split, group) of every non-empty line; the reader handles quotes and a BOM."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            header = [cell.strip() for cell in next(reader, [])]
            places = _columns(header, spec)
            for cells in reader:
                if any(cell.strip() for cell in cells):
                    _require_no_more(cells, header, f"{spec}, line {reader.line_num}")
                    padded = cells + [""] * (len(header) - len(cells))
                    values = {name: padded[place].strip() for name, place in places.items()}
                    yield _line(values, f"{spec}, line {reader.line_num}")
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"data table: got {spec!r} ({error}), expected comma-separated UTF-8 text."
        ) from None


def _require_no_more(cells: list[str], header: list[str], where: str) -> None:
    """Refuse a line longer than the heading, which has an unintended comma."""
    if any(cell.strip() for cell in cells[len(header) :]):
        raise DataError(
            f"data table {where}: got {len(cells)} cells, expected the {len(header)} of the "
            'heading. Put text that contains a comma in double quotes: "Siamese, seal point".'
        )


def _parquet(path: Path, spec: str) -> Iterator[Line]:
    """(path, label, split, group) of every line of a Parquet file."""
    from pyarrow import ArrowException, parquet

    try:
        table = parquet.read_table(path)
    except (ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"data table: got {spec!r} ({reason}), expected a Parquet file.") from None
    names = list(_columns(table.column_names, spec))
    columns = [[_cell(value) for value in table.column(name).to_pylist()] for name in names]
    for number, cells in enumerate(zip(*columns, strict=True), start=1):
        yield _line(dict(zip(names, cells, strict=True)), f"{spec}, line {number}")


def _columns(header: list[str], spec: str) -> dict[str, int]:
    """Positions of the known columns; path and label are required, others are ignored."""
    known = [name for name in ("path", "label", "split", "group") if name in header]
    places: dict[str, int] = {name: header.index(name) for name in known}
    _require_commas(header, spec)
    for name in known:
        if header.count(name) > 1:
            raise DataError(
                f"columns of {spec}: got {header.count(name)} columns called {name!r}, expected "
                "one. Remove or rename the others."
            )
    for needed in ("path", "label"):
        if needed not in places:
            raise DataError(
                f"columns of {spec}: got {', '.join(header) or 'none'}, expected path, label and "
                f"optionally split and group. Column {needed!r} is missing; "
                f"{_remedy(needed, header)}"
            )
    return places


def _remedy(needed: str, header: list[str]) -> str:
    """A name in the heading that may be meant, else where the names belong."""
    meant = nearest(needed, header)
    if meant.startswith("Did you mean"):
        return meant
    return "the first line must name the columns: path,label."


def _require_commas(header: list[str], spec: str) -> None:
    """Refuse a heading in one cell whose names are separated by something else."""
    for separator, name in OTHER_SEPARATORS.items():
        if len(header) == 1 and separator in header[0]:
            raise DataError(
                f"data table {spec}: got columns separated by {name}, expected commas. Save it as "
                "CSV with commas; spreadsheets ask for the separator."
            )


def _line(values: dict[str, str], where: str) -> Line:
    """One checked line; a table without a split column is a single split."""
    for name, value in values.items():
        if not value:
            raise DataError(f"column {name!r} in {where}: got an empty cell, expected a value.")
        if "\0" in value:
            raise DataError(f"column {name!r} in {where}: got {value!r}, expected no NUL byte.")
    split = values.get("split", "all")
    if split != "all" and split.lower() not in SPLIT_ALIASES:
        raise DataError(
            f"split in {where}: got {split!r}, expected one of {', '.join(SPLIT_ALIASES)}. "
            f"{nearest(split, SPLIT_ALIASES)}"
        )
    known = SPLIT_ALIASES.get(split.lower(), split)
    return values["path"], values["label"], known, values.get("group")


def _cell(value: object) -> str:
    """A cell as text, '' for a gap; 3.0, as pandas writes whole numbers beside gaps, becomes 3."""
    if value is None or value != value:  # not a number
        return ""
    if isinstance(value, bytes):
        return os.fsdecode(value).strip()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def _class_names(labels: set[str]) -> tuple[str, ...]:
    try:
        return tuple(sorted(labels, key=lambda label: (int(label), label)))
    except ValueError:
        return tuple(sorted(labels))
