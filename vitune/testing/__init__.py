"""The contract that every method must satisfy, as tests that also run on a method of your own.

`pytest --pyargs vitune.testing --method NAME` runs them on small networks of every kind that vitune
supports, without a download.
"""
