"""The digits are scikit-learn's own, read without importing it."""

from __future__ import annotations

import numpy as np
import pytest

from vitune.data import digits


def test_the_file_and_the_library_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    greys, labels = digits._digits()
    monkeypatch.setattr(digits, "FILE", digits.FILE.with_name("nothing"))
    expected_greys, expected_labels = digits._digits()
    assert greys.shape == (1797, 64)
    assert np.array_equal(greys, expected_greys) and greys.dtype == expected_greys.dtype
    assert np.array_equal(labels, expected_labels) and labels.dtype == expected_labels.dtype
