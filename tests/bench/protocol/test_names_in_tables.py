"""What rows and differences are called, whatever characters a name holds."""

from __future__ import annotations

from collections.abc import Callable

from vitune.bench.study.cells import CellResult
from vitune.bench.tables.study_table import make_table
from vitune.bench.tables.table_formats import formatted

Make = Callable[..., CellResult]


def test_differences_name_what_their_rows_differ_in(result: Make) -> None:
    results = [
        result(label, "t", top1, config={"method": label, "backbone": backbone}, identity=backbone)
        for backbone, gain in (("small", 0.2), ("large", -0.2))
        for label, top1 in (("a", 0.5 + gain), ("b", 0.5))
    ]
    found = make_table(results, split_columns=True).differences
    assert [(one.first, one.second) for one in found] == [
        ("a small", "b small"), ("a large", "b large")
    ]  # fmt: skip


def test_latex_escapes_every_special_character(result: Make) -> None:
    text = formatted(make_table([result(r"a\b^2~{<x|", "t_1")]), "latex")
    assert r"a\textbackslash{}b\textasciicircum{}2\textasciitilde{}\{\textless{}x\textbar{}" in text
    assert r"t\_1" in text
