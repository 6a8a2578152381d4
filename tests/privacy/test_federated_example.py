"""The example of a federation: clients learn together and send adapters alone."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

from vitune.adapters import inject
from vitune.counts import count_parameters
from vitune.methods import get_method

EXAMPLE = Path(__file__).parents[2] / "examples" / "federated"


def test_three_clients_learn_and_send_little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLE))
    import simulate

    accuracies, sent, whole = simulate.simulate("demo:digits?train=60", 3)
    assert len(accuracies) == 3 and accuracies[-1] > 0.3
    assert sent < whole / 20
    mean = simulate.averaged([([np.float32([1, 2])], 1, {}), ([np.float32([4, 5])], 2, {})])
    assert mean[0].tolist() == [3, 4]
    sys.modules.pop("simulate"), sys.modules.pop("client")


def test_on_vit_b16_rlrr_sends_a_three_hundredth() -> None:
    with torch.device("meta"):
        network = timm.create_model("vit_base_patch16_224", num_classes=10)
        counts = count_parameters(inject(network, get_method("rlrr").configure(network, {})))
    head = 10 * 769
    assert 4 * (counts.trainable - head) == pytest.approx(1.155e6, rel=1e-3)
    assert 4 * (counts.total - head) == pytest.approx(343.2e6, rel=1e-3)
