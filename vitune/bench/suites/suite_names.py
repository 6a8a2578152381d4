"""The names of the suites, without further imports."""

SUITES = ("demo", "vtab1k", "fgvc", "fewshot")
