"""FSDP over two processes that talk through gloo: the gradients of the unsharded model."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed, nn
from torch import multiprocessing as mp
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.fsdp.wrap import ModuleWrapPolicy

from vitune.testing.cases import fresh, takes, trained
from vitune.testing.tiny_backbones import images

METHODS = ("rlrr", "ssf", "apla", "bitfit")
BACKBONE = "torchvision_vit"
TOLERANCE = 1e-9
WRAPPED = "_fsdp_wrapped_module."


@pytest.mark.skipif(
    not (distributed.is_available() and distributed.is_gloo_available()),
    reason="this PyTorch is built without gloo",
)
def test_sharded_attentions_have_the_gradients_of_whole_ones(tmp_path: Path) -> None:
    assert any(isinstance(module, nn.MultiheadAttention) for module in fresh(BACKBONE).modules())
    assert all(takes(method, BACKBONE) for method in METHODS)
    mp.spawn(_process, (tmp_path,), nprocs=2)
    for method in METHODS:
        whole, *parts = (torch.load(tmp_path / f"{method}-{n}") for n in ("whole", 0, 1))
        assert {"logits"} < whole.keys() == parts[0].keys() == parts[1].keys()
        for name, expected in whole.items():
            if name == "logits":
                assert all(torch.allclose(part[name], expected, atol=TOLERANCE) for part in parts)
            else:  # each process holds a stretch of the flattened gradient
                found = torch.cat([part[name].flatten() for part in parts])
                assert torch.allclose(found, expected.flatten(), rtol=0, atol=TOLERANCE), name


def _process(rank: int, folder: Path) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2
    )
    for method in METHODS:
        if rank == 0:
            torch.save(
                _after_one_pass(trained(method, BACKBONE).double()), folder / f"{method}-whole"
            )
        sharded = FullyShardedDataParallel(
            trained(method, BACKBONE).double(),
            use_orig_params=True,
            device_id=torch.device("cpu"),
            auto_wrap_policy=ModuleWrapPolicy({nn.MultiheadAttention}),
        )
        torch.save(_after_one_pass(sharded), folder / f"{method}-{rank}")
    distributed.destroy_process_group()


def _after_one_pass(model: nn.Module) -> dict[str, Tensor]:
    """Logits, and the gradient of each parameter that trains."""
    logits = model(images(BACKBONE).double())
    logits.log_softmax(-1)[:, 0].sum().backward()
    named = {n.replace(WRAPPED, ""): p for n, p in model.named_parameters() if p.requires_grad}
    found = {n: torch.zeros(0) if p.grad is None else p.grad for n, p in named.items()}
    return {"logits": logits.detach(), **found}
