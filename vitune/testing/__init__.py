"""The contract every method must hold to, as tests: `pytest --pyargs vitune.testing --method NAME`.

They run on small networks of every kind that vitune knows, without a download.
"""
