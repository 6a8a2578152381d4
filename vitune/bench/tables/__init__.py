"""From results to reports: tables, intervals, ranks, the page of a study."""

__all__ = [
    "front_page",
    "mixed_model",
    "study_page",
    "study_table",
    "sureness",
    "table_formats",
]
"""The files that other rooms may import from."""
