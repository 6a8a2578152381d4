"""The comparison page: means, spreads, single seeds, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from report_files import Page

from vitune.errors import VituneError
from vitune.report import write_comparison

Parser = Callable[[Path], Page]

LINEAR = {
    "method": "linear",
    "title": "Linear probe",
    "top1": [0.61, 0.62, 0.6],
    "num_trainable_without_head": 0,
    "seconds": 41.2,
    "cpu_seconds": 12.0,
    "lr": 0.01,
    "lr_from": "best of 3 on validation",
    "peak_mib": 812.0,
}
RLRR = {
    "method": "rlrr",
    "title": "RLRR",
    "top1": [0.84, 0.85, 0.89],
    "num_trainable_without_head": 288768,
    "seconds": 191.0,
    "cpu_seconds": 100.0,
    "lr": 0.03,
    "lr_from": "default",
    "peak_mib": 3112.0,
    "step_ms": 39.25,
}
SINGLE = {"method": "<b>lora</b>", "top1": (0.8,), "num_trainable_without_head": 294912}


def test_means_spreads_and_costs_are_shown(tmp_path: Path, page_of: Parser) -> None:
    out = write_comparison(
        [LINEAR, RLRR], tmp_path / "x.html", heading="Two <ways>", note="Why & how"
    )
    page = page_of(out)
    for shown in (
        "Two <ways>",
        "Why & how",
        "61.00 % ± 1.00",
        "86.00 % ± 2.65",
        "288,768",
        "3 min 11 s",
        "812 MiB",
        "3.04 GiB",
        "39.2 ms",
        "best of 3 on validation",
        "0.03",
        "1 min 40 s",
        "The differences were not tested: the order of the methods may be chance.",
    ):
        assert shown in page.text, shown
    assert "one seed" not in page.text
    assert page.count("tr", "kept") == 0
    assert page.count("g", "dot") == 4
    assert page.count("g", "best") == 0
    assert "processor seconds of training, waiting left out" in page.text
    assert page.count("line", "seed") == 6
    assert page.fetched() == []
    titles = [data.replace("\xa0", " ") for tag, data in page.texts if tag == "title"]
    assert "RLRR: 86.00 % ± 2.65 %, 288,768 parameters" in titles
    values = page.attributes("td", "data-value")
    assert float(values[0]) == pytest.approx(0.61) and "288768" in values


def test_a_single_seed_is_labelled(tmp_path: Path, page_of: Parser) -> None:
    page = page_of(write_comparison([RLRR, SINGLE], tmp_path / "x.html"))
    assert page.count("span", "badge") == 1
    assert "80.00 % one seed" in page.text
    assert "Not every method was run with several seeds" in page.text
    assert "<b>lora</b>" in page.text
    alone = page_of(write_comparison([SINGLE], tmp_path / "y.html"))
    assert "No method was run with several seeds" in alone.text
    assert alone.count("tr", "kept") == 0
    assert "None" not in alone.text


def gap(first: str, second: str, mean: float, **given: float) -> dict[str, Any]:
    return {"first": first, "second": second, "mean": mean, **given}


CLEAR = gap("linear", "rlrr", -0.25, low=-0.3, high=-0.2)


@pytest.mark.parametrize(
    ("differences", "highlighted", "told"),
    [
        ([CLEAR], 1, "RLRR is better than every other method by more than chance."),
        ([CLEAR | {"p_value": 0.2}], 0, "No method is better than all others by more than chance."),
        ([gap("rlrr", "linear", 0.002, low=-0.01, high=0.014)], 0, "No method is better than all"),
        ([gap("rlrr", "linear", 0.002, p_value=0.01)], 1, "RLRR is better than every other method"),
        ([gap("rlrr", "linear", 0.002)], 0, "No method is better than all others"),
    ],
)
def test_only_a_lead_beyond_chance_is_highlighted(
    tmp_path: Path,
    page_of: Parser,
    differences: list[dict[str, Any]],
    highlighted: int,
    told: str,
) -> None:
    page = page_of(
        write_comparison(
            [LINEAR, RLRR],
            tmp_path / "x.html",
            differences=differences,
            explanation=["How it was <tested>."],
        )
    )
    assert told in page.text and "How it was <tested>." in page.text
    assert page.count("tr", "kept") == highlighted
    assert page.count("g", "best") == 2 * highlighted
    assert f"{100 * differences[0]['mean']:+.2f}" in page.text


def test_a_lead_over_some_but_not_all_is_no_lead(tmp_path: Path, page_of: Parser) -> None:
    third = RLRR | {"method": "ssf", "title": "SSF"}
    page = page_of(
        write_comparison([LINEAR, RLRR, third], tmp_path / "x.html", differences=[CLEAR])
    )
    assert page.count("tr", "kept") == 0


def test_time_by_the_clock_is_told_and_not_drawn(tmp_path: Path, page_of: Parser) -> None:
    entries = [{k: v for k, v in entry.items() if k != "cpu_seconds"} for entry in (LINEAR, RLRR)]
    page = page_of(write_comparison(entries, tmp_path / "x.html"))
    assert "Wall-clock time" in page.text and "3 min 11 s" in page.text
    assert page.count("g", "dot") == 2 and "processor" not in page.text.lower()


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ({"title": "x"}, r"entries\[0\]: top1: got None"),
        ({"top1": [0.5]}, r"entries\[0\]: method: got None"),
        ({"method": "x", "top1": []}, r"top1: got \[\], expected an accuracy per seed"),
        ({"method": "x", "top1": [0.5, None]}, r"top1: got \[0\.5, None\]"),
        ({"method": "x", "top1": [83.2]}, r"top1: got 83\.2, expected a number in \[0, 1\]"),
        ({"method": "x", "top1": 0.5}, r"top1: got 0\.5, expected a list"),
        ({"method": "x", "top1": [0.5], "seconds": "1"}, r"seconds: got '1', expected a number"),
    ],
)
def test_wrong_entries_are_refused(tmp_path: Path, entry: dict[str, Any], told: str) -> None:
    with pytest.raises(VituneError, match=told):
        write_comparison([entry], tmp_path / "x.html")
    assert not (tmp_path / "x.html").exists()


def test_nothing_to_compare(tmp_path: Path) -> None:
    with pytest.raises(VituneError, match="entries: got none"):
        write_comparison([], tmp_path / "x.html")
