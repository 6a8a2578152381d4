"""Pages for people, made from result files alone: a run's report and a comparison of methods."""

from vitune.report.closing import ENOUGH_TO_BIN, closing_lines
from vitune.report.comparison import write_comparison
from vitune.report.evaluations import Evaluation, group_mark, is_test, score_marks
from vitune.report.formatting import count, counted, duration, percent, shorten
from vitune.report.intervals import mean_and_std, wilson_interval
from vitune.report.page import write_report
from vitune.report.parameters import role_words
from vitune.report.rendering import write_page
from vitune.report.results import RunResults, check_readable, read_run
from vitune.report.scales import Scale, Tick, nice_scale
from vitune.report.scatter import Measured, ScatterChart, scatter_chart

__all__ = [
    "ENOUGH_TO_BIN",
    "Evaluation",
    "Measured",
    "RunResults",
    "Scale",
    "ScatterChart",
    "Tick",
    "check_readable",
    "closing_lines",
    "count",
    "counted",
    "duration",
    "group_mark",
    "is_test",
    "mean_and_std",
    "nice_scale",
    "percent",
    "read_run",
    "role_words",
    "scatter_chart",
    "score_marks",
    "shorten",
    "wilson_interval",
    "write_comparison",
    "write_page",
    "write_report",
]
