"""Intervals, scales, ticks and shown numbers against known answers."""

from __future__ import annotations

import math
import re
from itertools import pairwise

import pytest

from vitune.errors import VituneError
from vitune.report import formatting
from vitune.report.confusion import most_confused, taken_for
from vitune.report.curves import curve_charts
from vitune.report.evaluations import ConfusionCounts, Evaluation
from vitune.report.heat_map import heat_map, level
from vitune.report.intervals import mean_and_std, wilson_interval
from vitune.report.parameters import NUM_SQUARES, parameter_picture
from vitune.report.results import Epoch
from vitune.report.scales import log_scale, nice_scale, whole_ticks
from vitune.report.scatter import Measured, place_labels, scatter_chart
from vitune.report.spectrum import figure_table
from vitune.runs import RunSummary


@pytest.mark.parametrize(
    ("share", "trials", "low", "high"),
    [
        (0.5, 10, 0.2366, 0.7634),
        (0.0, 10, 0.0, 0.2775),
        (1.0, 10, 0.7225, 1.0),
        (0.9, 100, 0.8256, 0.9448),
    ],
)
def test_wilson_interval(share: float, trials: int, low: float, high: float) -> None:
    assert wilson_interval(share, trials) == pytest.approx((low, high), abs=5e-5)


def test_wilson_interval_solves_its_equation() -> None:
    for end in wilson_interval(0.3, 40):
        assert abs(0.3 - end) == pytest.approx(1.959964 * math.sqrt(end * (1 - end) / 40), rel=1e-6)


def test_intervals_refuse_what_is_no_share() -> None:
    with pytest.raises(VituneError, match=r"share: got 83\.0, expected a number in \[0, 1\]"):
        wilson_interval(83.0, 10)
    with pytest.raises(VituneError, match="num_trials: got 0"):
        wilson_interval(0.5, 0)
    with pytest.raises(VituneError, match="values: got none"):
        mean_and_std([])


def test_mean_and_std() -> None:
    assert mean_and_std([0.1, 0.2, 0.6]) == pytest.approx((0.3, math.sqrt(0.07)))
    assert mean_and_std([0.25]) == (0.25, None)


@pytest.mark.parametrize(
    ("show", "value", "shown"),
    [
        (formatting.percent, 0.8327, "83.3 %"),
        (formatting.percent, 0.99964, "99.96 %"),
        (formatting.percent, 0.00004, "0.004 %"),
        (formatting.percent, 1.0, "100.0 %"),
        (formatting.percent, 0.0, "0.0 %"),
        (formatting.percent, None, "–"),
        (formatting.number, 0.0123412, "0.01234"),
        (formatting.number, 3.2e-05, "3.2e-5"),
        (formatting.number, -2.0, "−2"),
        (formatting.count, 288768, "288,768"),
        (formatting.short_count, 85798656, "85.8 M"),
        (formatting.short_count, 102912, "103 k"),
        (formatting.short_count, 7, "7"),
        (formatting.duration, 3.14159, "3.1 s"),
        (formatting.duration, 59.7, "1 min 00 s"),
        (formatting.duration, 7505, "2 h 05 min"),
        (formatting.size, 512, "512 bytes"),
        (formatting.size, 1191000, "1.14 MiB"),
        (formatting.memory, 3412.5, "3.33 GiB"),
        (formatting.moment, "2026-07-01T12:34:56+00:00", "2026-07-01 12:34 UTC"),
        (formatting.moment, "yesterday", "yesterday"),
        (formatting.setting, {"r": 8, "on": True}, "r=8, on=yes"),
        (formatting.setting, [1, None], "1, none"),
        (formatting.setting, 1e-05, "1e-05"),
    ],
)
def test_numbers_as_shown(show, value, shown) -> None:  # type: ignore[no-untyped-def]
    assert show(value).replace("\xa0", " ") == shown


def test_shortened_names_keep_both_ends() -> None:
    short = formatting.shorten("photos/2024/holiday/IMG_0001.jpg", 20)
    assert len(short) <= 20 and short.startswith("photos/") and short.endswith("1.jpg")
    assert formatting.shorten("short", 20) == "short"


def test_nice_scale_has_round_ticks_around_the_values() -> None:
    scale, ticks = nice_scale([0.12, 3.97], 200, 0, zero=True)
    assert ticks == [0, 1, 2, 3, 4]
    assert (scale(0), scale(4), scale(1)) == (200, 0, 150)
    scale, ticks = nice_scale([0.93, 0.99], 0, 100, top=1.0)
    assert scale.high == pytest.approx(1.0) and ticks[-1] <= 1.0 + 1e-9


@pytest.mark.parametrize("values", [[0.0], [0.001] * 3, [-2.0, -2.0], [1.0, 1.0], [1e-12, 3e9]])
def test_nice_scale_of_odd_values(values: list[float]) -> None:
    scale, ticks = nice_scale(values, 0, 100)
    assert 1 <= len(ticks) <= 8
    assert all(-1e-6 <= scale(value) <= 100 + 1e-6 for value in values)


def test_whole_ticks() -> None:
    assert whole_ticks(1, 7, 6) == [1, 2, 3, 4, 5, 6, 7]
    assert whole_ticks(1, 50, 6) == [1, 10, 20, 30, 40, 50]
    assert whole_ticks(1, 12, 6) == [1, 4, 6, 8, 10, 12]
    assert whole_ticks(3, 3, 6) == [3]


def test_log_scale_marks_powers_of_ten() -> None:
    scale, ticks = log_scale([1e5, 1e8], 0, 300)
    assert [tick.label.replace("\xa0", " ") for tick in ticks] == ["100 k", "1 M", "10 M", "100 M"]
    spaces = [after.at - before.at for before, after in pairwise(ticks)]
    assert max(spaces) - min(spaces) < 0.05
    assert 0 < scale(1e5) < scale(1e8) < 300
    assert len(log_scale([40.0], 0, 300)[1]) >= 1
    narrow, ticks = log_scale([1040.0, 1223.0], 0, 300)
    assert [tick.label for tick in ticks] == ["1\xa0k", "1.1\xa0k", "1.2\xa0k", "1.3\xa0k"]
    assert narrow(1223.0) - narrow(1040.0) > 100, "a third of the width"


def _epochs(losses: list[float | None]) -> list[Epoch]:
    return [
        Epoch(number, None, loss, None, None, None, None, None)
        for number, loss in enumerate(losses, start=1)
    ]


def test_curves_pass_through_their_values() -> None:
    (chart,) = curve_charts(_epochs([4.0, 2.0, 0.0]), reported=2)
    (line,) = chart.lines
    assert [point.y for point in line.points] == pytest.approx([14, 110, 206])
    assert chart.marked_x == line.points[1].x
    assert re.findall(r"[ML]", line.path) == ["M", "L", "L"]
    assert curve_charts(_epochs([1.0]), None) == []
    assert curve_charts(_epochs([None, None]), None) == []


def _evaluation(confusion: list[list[int]]) -> Evaluation:
    names = tuple(f"c{index}" for index in range(len(confusion)))
    cells = tuple(
        (true, predicted, number)
        for true, line in enumerate(confusion)
        for predicted, number in enumerate(line)
        if number
    )
    counts = ConfusionCounts(len(confusion), cells)
    total = sum(map(sum, confusion))
    return Evaluation("t", None, total, 0.5, None, None, None, None, names, counts, (), (), ())


def test_heat_map_squares_are_the_counts() -> None:
    found = heat_map(_evaluation([[9, 1, 0], [0, 0, 0], [2, 2, 4]]))
    assert found is not None and found.numbered and found.num_squares == 3
    assert {(cell.y, cell.x): cell.count for cell in found.cells} == {
        (0, 0): 9, (0, 38): 1, (76, 0): 2, (76, 38): 2, (76, 76): 4,
    }  # fmt: skip
    assert [cell.level for cell in found.cells] == [9, 4, 5, 5, 5]


def test_heat_map_sums_blocks_of_many_classes() -> None:
    num_classes = 301
    confusion = [[0] * num_classes for _ in range(num_classes)]
    for index in range(num_classes):
        confusion[index][index] = 3
    confusion[0][1] = 1
    confusion[0][300] = 3
    found = heat_map(_evaluation(confusion))
    assert found is not None and found.classes_per_square == 3 and found.num_squares == 101
    diagonal = [cell for cell in found.cells if cell.correct]
    assert [cell.count for cell in diagonal] == [9] * 100 + [3]
    assert diagonal[0].level == 7, "9 right answers of 13 images; the mistake inside is not right"
    assert diagonal[1].level == 10
    assert [cell.count for cell in found.cells if not cell.correct] == [3]
    drawn = [found.path(right, strength) for right in (True, False) for strength in range(1, 11)]
    assert sum(path.count("M") for path in drawn) == len(found.cells)


def test_levels() -> None:
    assert [level(share, True) for share in (0.01, 0.1, 0.95, 1.0)] == [1, 1, 10, 10]
    assert [level(share, False) for share in (0.001, 0.01, 0.09, 0.25, 1.0)] == [1, 1, 3, 5, 10]


def test_most_confused_pairs() -> None:
    found = _evaluation([[5, 4, 1], [2, 9, 0], [4, 4, 0]])
    pairs = [(pair.label, pair.predicted, pair.count) for pair in most_confused(found, 3)]
    assert pairs == [("c2", "c0", 4), ("c2", "c1", 4), ("c0", "c1", 4)]
    assert {name: pair.predicted for name, pair in taken_for(found).items()} == {
        "c0": "c1", "c1": "c0", "c2": "c0",
    }  # fmt: skip


def _summary(inside: int, head: int, total: int) -> RunSummary:
    return RunSummary(
        method="m", num_trainable=inside + head, num_trainable_without_head=inside, num_head=head,
        num_total=total,
    )  # fmt: skip


@pytest.mark.parametrize(("inside", "head"), [(288, 77), (0, 500), (99_000, 1_000), (1, 0)])
def test_squares_cover_the_shares(inside: int, head: int) -> None:
    picture = parameter_picture(_summary(inside, head, 100_000))
    assert picture is not None
    trained, in_head, frozen = picture.shares
    assert _area(trained.path) == pytest.approx(NUM_SQUARES * inside / 1e5, abs=2e-3 * NUM_SQUARES)
    assert _area(in_head.path) == pytest.approx(NUM_SQUARES * head / 1e5, abs=2e-3 * NUM_SQUARES)
    assert frozen.num_parameters == 100_000 - inside - head
    assert _area(picture.frozen_path) == NUM_SQUARES


def _area(path: str) -> float:
    """Squares that a path of rectangles covers, from its signed widths."""
    return sum(map(float, re.findall(r"\dh([\d.e-]+?)v", path))) / 10


def test_crowded_scatter_names_the_line_and_what_else_has_room() -> None:
    """Nine dots in a knot, three of them on the line, and one apart."""
    knot = [
        Measured(f"method {index}", 100.0 + index, 0.8 + index / 500, None, "", index % 4 == 0)
        for index in range(9)
    ]
    apart = Measured("apart", 400.0, 0.3, None, "")
    chart = scatter_chart("t", "x", [*knot, apart], crowded=True)
    assert chart is not None
    named = {dot.label.text for dot in chart.dots} - {""}
    assert {"method 0", "method 4", "method 8", "apart"} <= named and len(named) < 10
    assert [dot.title.split(":")[0] for dot in chart.dots] == [m.name for m in (*knot, apart)]
    boxes = [dot.label.box for dot in chart.dots if dot.label.text]
    assert not any(one.overlap(two) for i, one in enumerate(boxes) for two in boxes[i + 1 :])
    every = scatter_chart("t", "x", [*knot, apart])
    assert every is not None and all(dot.label.text for dot in every.dots)


def test_names_stay_clear_of_the_line() -> None:
    places = [(200.0, 200.0), (320.0, 196.0)]
    beside = place_labels(["a name", "another"], places)
    assert beside[0].anchor == "start", "where the line would be"
    clear = place_labels(["a name", "another"], places, [True, True])
    assert clear[0].anchor == "end" and clear[1].anchor == "start"


def test_scatter_names_cover_nothing() -> None:
    measured = [
        Measured(f"method {index}", 1000.0 * (1 + index / 50), 0.8 + index / 2000, 0.001, "")
        for index in range(4)
    ]
    chart = scatter_chart("t", "x", [*measured, Measured("linear", 0.0, 0.6, None, "0")])
    assert chart is not None and chart.zero_x is not None
    boxes = [dot.label.box for dot in chart.dots]
    overlaps = [
        one.overlap(other) for index, one in enumerate(boxes) for other in boxes[index + 1 :]
    ]
    assert max(overlaps) == 0
    assert chart.dots[-1].x == chart.zero_x
    assert chart.dots[0].y_low > chart.dots[0].y > chart.dots[0].y_high
    assert "one seed" in chart.dots[-1].title
    assert place_labels(["at the edge"], [(450.0, 100.0)])[0].anchor == "end"
    assert scatter_chart("t", "x", []) is None


def test_figure_table_takes_any_summary() -> None:
    by_name = figure_table({"summary": {"a": {"x_y": 0.5, "n": {"k": 1200}}, "b": {"x_y": None}}})
    assert by_name is not None and by_name.headings == ("", "x y", "n k")
    assert by_name.lines == (("a", "0.5", "1,200"), ("b", "–", "–"))
    flat = figure_table({"summary": {"mean_angle": 1.25, "exact": True}})
    assert flat is not None and flat.lines == (("mean angle", "1.25"), ("exact", "yes"))
    listed = figure_table({"summary": [{"role": "q", "v": [1, 2]}]})
    assert listed is not None and listed.lines == (("1", "q", "1, 2"),)
    assert figure_table({"runs": {}}) is None
