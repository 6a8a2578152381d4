"""Tables that are put back after a test."""

from outside_methods import tables

__all__ = ["tables"]
