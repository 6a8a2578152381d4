"""What a run does on a GPU: skipped, with the reason, where there is none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from vitune.adapters import inject
from vitune.data import Split, batches, normalise
from vitune.fewer_tokens import TokenPlan, reduce_tokens
from vitune.methods import get_method
from vitune.ops import lean_step
from vitune.preprocessing import Preprocessing
from vitune.testing.tiny_backbones import build, images
from vitune.training import TrainConfig, fit

DEVICE = "cuda"
pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a GPU; this machine has none"
)
QUICK: dict[str, Any] = {
    "data": "demo:digits?train=40", "epochs": 2, "batch_size": 8, "lr": 1e-3, "start": "plain",
}  # fmt: skip


def gradients(device: str, *, lean: bool, tokens: str = "keep") -> list[Tensor]:
    """Of RLRR on a small ViT, in float32; the same numbers on every device."""
    torch.manual_seed(0)
    network = build("vit")
    model = inject(network, get_method("rlrr").configure(network, {})).train()
    reduce_tokens(model, TokenPlan.parse(tokens))
    model, x = model.to(device), images("vit").to(device)
    trained = [p for p in model.parameters() if p.requires_grad]
    if lean:
        with lean_step():
            loss = F.cross_entropy(model(x), torch.arange(len(x), device=device))
    else:
        loss = F.cross_entropy(model(x), torch.arange(len(x), device=device))
    return [value.cpu() for value in torch.autograd.grad(loss, trained)]


@pytest.mark.parametrize("tokens", ["keep", "merge:0.5@0"])
@pytest.mark.parametrize("lean", [False, True])
def test_gradients_are_those_of_a_cpu(lean: bool, tokens: str) -> None:
    wanted = gradients("cpu", lean=False, tokens=tokens)
    for a, b in zip(gradients(DEVICE, lean=lean, tokens=tokens), wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * float(b.abs().max()) + 1e-7)


def test_batches_are_pinned_and_normalised_on_the_device() -> None:
    generator, names = np.random.default_rng(0), tuple("abcdefgh")
    pixels = generator.integers(0, 256, (8, 6, 6, 3), dtype=np.uint8)
    split = Split("train", pixels, np.arange(8), names, names)
    (batch, _) = batches(split, 4, pin_memory=True)
    assert batch["images"].is_pinned() and batch["labels"].is_pinned()
    prepared = Preprocessing((6, 6), (0.5,) * 3, (0.25,) * 3)
    found = normalise(batch["images"], prepared, device=DEVICE)
    assert found.device.type == DEVICE
    torch.testing.assert_close(found.cpu(), normalise(batch["images"], prepared))


def test_a_run_ends_like_one_on_a_cpu() -> None:
    on_cpu, on_gpu = (
        fit(TrainConfig.make({**QUICK, "device": device, "precision": "fp32"}))
        for device in ("cpu", DEVICE)
    )
    trained = {name for name, value in on_cpu.model.named_parameters() if value.requires_grad}
    expected, found = on_cpu.model.state_dict(), on_gpu.model.state_dict()
    for name in trained:
        torch.testing.assert_close(found[name].cpu(), expected[name], rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains(precision: str) -> None:
    run = fit(TrainConfig.make({**QUICK, "device": DEVICE, "precision": precision}))
    assert run.summary.precision == precision
    assert all(value.isfinite().all() for value in run.model.parameters())
