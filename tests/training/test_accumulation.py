"""Gradients gathered over several batches are those of one large batch, in every step."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from vitune.training import TrainConfig, fit
from vitune.training.accumulation import Accumulation

QUICK: dict[str, Any] = {
    "data": "demo:digits?train=60", "epochs": 2, "precision": "fp32", "device": "cpu", "lr": 1e-2,
    "start": "plain", "select": "last", "augment": "none", "optimiser": "sgd", "lean": False,
    "image_size": 16,
}  # fmt: skip


def test_a_batch_weighs_its_share_of_the_images_of_its_step() -> None:
    parts = Accumulation(every=4, num_batches=6, batch_size=8, num_images=43)
    sizes = [8, 8, 8, 8, 8, 3]
    weights = [parts.weight(index, size) for index, size in enumerate(sizes)]
    assert weights == pytest.approx([1, 1, 1, 1, 4 * 8 / 11, 4 * 3 / 11])
    full = Accumulation(every=4, num_batches=5, batch_size=8)
    assert [full.weight(index, 8) for index in range(5)] == [1, 1, 1, 1, 4]
    assert Accumulation(1, 6, 8, 43).weight(5, 3) == 1.0


def test_small_batches_train_as_one_large_batch() -> None:
    """48 images: a step of 32, then one of 16, which is two small batches of four."""
    large = fit(TrainConfig.make({**QUICK, "batch_size": 32}))
    assert large.summary.num_train == 48
    small = fit(TrainConfig.make({**QUICK, "batch_size": 8, "accumulation_steps": 4}))
    uneven = fit(TrainConfig.make({**QUICK, "batch_size": 7, "accumulation_steps": 7}))
    whole = fit(TrainConfig.make({**QUICK, "batch_size": 48}))
    for one, other in ((large, small), (whole, uneven)):
        assert one.summary.steps == other.summary.steps
        others = dict(other.model.named_parameters())
        for name, value in one.model.named_parameters():
            torch.testing.assert_close(others[name], value, rtol=1e-4, atol=1e-6)
