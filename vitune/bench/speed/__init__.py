"""`vitune bench speed`: training steps timed in alternation, and their memory."""

__all__ = [
    "measuring",
    "speed_table",
]
"""The files that other rooms may import from."""
