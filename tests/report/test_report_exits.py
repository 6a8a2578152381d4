"""The exits' part of a report: figures, pictures, and files that are not what they should be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from report_files import THUMBNAIL, Page, evaluation

from vitune.errors import VituneError
from vitune.report import write_report
from vitune.report.formatting import TIE


def with_exits(**changed: Any) -> dict[str, Any]:
    """An evaluation of a run with exits after 2 and 4 blocks."""
    image = {
        "path": "a.png", "label": "cat", "predicted": "<b>dog</b>", "confidence": 0.5,
        "thumbnail": THUMBNAIL,
    }  # fmt: skip
    exits = {
        "exits": [
            {"name": "2", "share": 0.6, "accuracy_of_leaving": 0.97, "gflops": 0.03},
            {"name": "4", "share": 0.3, "accuracy_of_leaving": 0.83, "gflops": 0.06},
            {"name": "last", "share": 0.1, "accuracy_of_leaving": 0.71, "gflops": 0.09},
        ],
        "systems": [
            {"name": name, "kind": kind, "accuracy": 0.9, "gflops": 0.05, "ms_per_image": time,
             "num_timed": 96}
            for name, kind, time in (("with exits", "exits", 2.125), ("full", "full", 4.5))
        ],
        "mean_gflops": 0.04,
        "disagreement": 0.0125,
        "error_gap": 0.005,
        "is_calibrated": True,
        "on_calibration_images": False,
        "certificate": {"definition": "disagreement", "risk": 0.02, "delta": 0.05,
                        "num_images": 1197},
        "budget": None,
        "by_confidence": [{"from": 0.9, "share": 1.0, "exits": [0.6, 0.3, 0.1]}],
        "examples": {"first": [image], "last": [image]},
        **changed,
    }  # fmt: skip
    return {**evaluation(["cat", "dog"]), "exits": exits}


def test_the_page_tells_exits_rivals_and_certificate(
    run_dir: Callable[..., Path], page_of: Callable[[Path], Page]
) -> None:
    path = write_report(run_dir(evaluations=[with_exits()]))
    page_of(path)
    html = path.read_text().replace(TIE, " ")
    for text in (
        "Certified: at most 2.0 % of images", "probability 95.0 % (1,197 images)", "1.25 %",
        "Accuracy against time", "2.125 ms per image", "60.0 % left at exit 2",
        "Left first, most confident", "&lt;b&gt;dog&lt;/b&gt;",
    ):  # fmt: skip
        assert text in html, text
    assert "calibrated on. Score others" not in html


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"certificate": None, "budget": 0.6}, "mean cost of 0.6: their risk is not certified"),
        ({"certificate": None, "is_calibrated": False}, "not calibrated: no image leaves early"),
        ({"on_calibration_images": True}, "Score others to check the certificate"),
    ],
)
def test_what_is_not_proven_is_said(
    run_dir: Callable[..., Path], changed: dict[str, Any], text: str
) -> None:
    assert text in write_report(run_dir(evaluations=[with_exits(**changed)])).read_text()


def test_a_page_without_exits_has_no_such_part(run_dir: Callable[..., Path]) -> None:
    html = write_report(run_dir(evaluations=[evaluation(["cat", "dog"])])).read_text()
    assert "Early exits" not in html


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"disagreement": 2}, r"exits: disagreement: got 2.0, expected a number in \[0, 1\]"),
        ({"systems": [{"kind": "full"}]}, r"exits: systems\[0\]: name: got None"),
        ({"certificate": {"risk": 0.1}}, r"certificate: definition: got None"),
    ],
)
def test_damaged_exits(run_dir: Callable[..., Path], changed: dict[str, Any], text: str) -> None:
    with pytest.raises(VituneError, match=text):
        write_report(run_dir(evaluations=[with_exits(**changed)]))
