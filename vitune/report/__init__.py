"""Pages for people, made from result files alone: a run's report and a comparison of methods."""

from vitune.report.comparison import write_comparison
from vitune.report.evaluations import Evaluation, is_test, score_marks
from vitune.report.intervals import wilson_interval
from vitune.report.page import write_report
from vitune.report.parameters import role_words
from vitune.report.results import RunResults, Summary, read_run

__all__ = [
    "Evaluation",
    "RunResults",
    "Summary",
    "is_test",
    "read_run",
    "role_words",
    "score_marks",
    "wilson_interval",
    "write_comparison",
    "write_report",
]
