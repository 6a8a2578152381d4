"""The names of the suites, for whoever needs no more of them."""

SUITES = ("demo", "vtab1k", "fgvc", "fewshot")
