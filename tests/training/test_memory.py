"""What cannot fit is refused before it is allocated; what fits is not."""

from __future__ import annotations

import time

import pytest
import torch

from vitune.adapters import attach
from vitune.backbones import load_backbone
from vitune.backbones.rehearsal import rehearsed
from vitune.errors import OutOfMemoryError, VituneError
from vitune.training import TrainConfig
from vitune.training import memory as memory_room
from vitune.training.memory import require_memory

MICRO = "vitune/vit_micro_patch4_32"
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _sixteen_gib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_room, "available_memory_mib", lambda: 16 * 1024.0)


def settings(**given: object) -> TrainConfig:
    return TrainConfig.make({"data": "demo:digits", **given})


def test_an_adapter_that_cannot_fit_is_refused_at_once() -> None:
    backbone = load_backbone(MICRO, num_classes=10)
    started = time.process_time()
    with pytest.raises(
        OutOfMemoryError, match=r"trains 45.8 GiB of .*at most the 16.0 GiB that are free. Lower"
    ):
        require_memory(backbone, settings(method="lora", method_args={"r": 1_000_000}), CPU)
    assert time.process_time() - started < 20
    require_memory(backbone, settings(method="lora", method_args={"r": 8}), CPU)
    assert not any(p.is_meta for p in backbone.model.parameters())
    assert "lora" not in str(backbone.model).lower()


def test_steps_that_cannot_fit_are_refused_and_named() -> None:
    backbone = load_backbone(MICRO, num_classes=10, image_size=256)
    with pytest.raises(OutOfMemoryError, match=r"steps of 400 images of 256 x 256 .*--batch-size"):
        require_memory(backbone, settings(batch_size=400, image_size=256), CPU)
    require_memory(backbone, settings(batch_size=4, image_size=256), CPU)


def test_out_of_memory_is_a_users_mistake_and_a_reason_for_smaller_batches() -> None:
    from vitune.bench.study.running import is_out_of_memory

    assert issubclass(OutOfMemoryError, VituneError)
    assert is_out_of_memory(OutOfMemoryError("no"))


@pytest.mark.parametrize(("precision", "lean"), [("fp32", False), ("fp32", True), ("bf16", True)])
def test_the_estimate_is_near_what_a_step_keeps_and_not_above(precision: str, lean: bool) -> None:
    backbone = load_backbone(MICRO, num_classes=10)
    model, kept = attach(backbone, "rlrr", {}), {}
    config = settings(precision=precision, lean=lean, batch_size=16)
    estimated = memory_room._step_mib(model, config, 16, (32, 32))

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    own = {p.untyped_storage()._cdata for p in model.parameters()}
    model.train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(torch.randn(16, 3, 32, 32))
    sizes = [t.untyped_storage().nbytes() for key, t in kept.items() if key not in own]
    plain = sum(sizes) / 2**20
    expected = plain * (0.6 if lean else 1) * (0.6 if precision == "bf16" else 1)
    assert estimated == pytest.approx(expected, rel=0.02)


def test_a_model_that_looks_at_values_is_not_judged() -> None:
    class Peeking(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images if images.sum().item() > 0 else -images

    assert memory_room._step_mib(Peeking(), settings(), 2, (8, 8)) == 0.0


def test_a_rehearsal_computes_nothing_and_leaves_the_model_alone() -> None:
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 10**6, 5))
    before = model[1].weight.clone()
    with rehearsed(model) as played, torch.no_grad():
        assert played(torch.empty(10**6, 3, 1000, 1000)).shape == (10**6, 5)
    assert torch.equal(model[1].weight, before)


def test_a_huge_image_size_is_refused_by_its_number() -> None:
    with pytest.raises(VituneError, match=r"image_size: got 100000, input should be less than"):
        settings(image_size=100_000)
