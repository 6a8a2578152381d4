"""The contract that every method must satisfy, as tests: `pytest --pyargs vitune.testing --method
NAME`.

They run on small networks of every kind that vitune supports, without a download.
"""
