"""Named lists of tasks: what belongs to a suite, how it is checked, tiny copies of it."""
