"""`vitune.lean_step()` in a plain loop, transformers' Trainer and Lightning: same weights, less."""

from __future__ import annotations

import copy
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    apply_activation_checkpointing,
)
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer, TrainingArguments

import vitune
from vitune.adapters import inject
from vitune.errors import VituneError
from vitune.methods import get_method
from vitune.testing.tiny_backbones import NUM_CLASSES, build, images


def adapt(method: str, backbone: str) -> nn.Module:
    torch.manual_seed(0)
    network = build(backbone)
    return inject(network, get_method(method).configure(network, {}))


class Images(Dataset[dict[str, Tensor]]):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        label = torch.tensor(index % NUM_CLASSES)
        return {"pixel_values": images("transformers_vit", 8)[index], "labels": label}


def seen_by_last_mlp(model: nn.Module) -> list[tuple[bool, int]]:
    """(whether training, tokens) of every call of the last block's first MLP linear."""
    names = [name for name, _ in model.named_modules() if name.endswith(("fc1", "mlp.fc1"))]
    calls: list[tuple[bool, int]] = []
    model.get_submodule(names[-1]).register_forward_hook(
        lambda module, args, _: calls.append((module.training, args[0].shape[1]))
    )
    return calls


def gradients(model: nn.Module, x: Tensor, kept: list[int] | None = None) -> list[Tensor]:
    def pack(tensor: Tensor) -> Tensor:
        if kept is not None:
            kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = F.cross_entropy(model(x), torch.arange(len(x)))
    return list(torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad]))


@pytest.mark.parametrize("method", ["rlrr", "lora"])
def test_a_plain_loop_has_the_same_gradients_and_keeps_less(method: str) -> None:
    model, x = adapt(method, "vit").train(), images("vit")
    calls = seen_by_last_mlp(model)
    usual: list[int] = []
    lean: list[int] = []
    expected = gradients(model, x, usual)
    with vitune.lean_step(model):
        first = gradients(model, x)
        found = gradients(model, x, lean)
        model.eval()
        model(x)
        with torch.no_grad():
            model.train()(x)
    for a, b, c in zip(first, found, expected, strict=True):
        torch.testing.assert_close(a, c, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(b, c, rtol=1e-4, atol=1e-6)
    assert sum(lean) < 0.9 * sum(usual)
    model(x)
    assert calls == [(True, 17), (True, 17), (True, 1), (False, 17), (True, 17), (True, 17)]


class MeanOfPatches(nn.Module):
    """A network whose own head reads the patches."""

    def __init__(self) -> None:
        super().__init__()
        self.vit = adapt("lora", "vit")
        self.vit.head.requires_grad_(False)
        self.head = nn.Linear(self.vit.num_features, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.vit.forward_features(x)[:, 1:].mean(1))


@pytest.mark.parametrize("outside", [True, False], ids=["whole", "tower"])
def test_a_loss_that_reads_patches_sees_them_in_every_step(outside: bool) -> None:
    torch.manual_seed(0)
    model, x = MeanOfPatches().train(), images("vit")
    expected = gradients(model, x)
    with vitune.lean_step(model if outside else model.vit):
        for _ in range(3):
            for a, b in zip(gradients(model, x), expected, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_hidden_states_of_transformers_are_whole() -> None:
    model, x = adapt("rlrr", "transformers_vit").train(), images("transformers_vit")

    def slopes() -> list[Tensor]:
        loss = model(x, output_hidden_states=True).hidden_states[-1].square().sum()
        trained = [p for p in model.parameters() if p.requires_grad]
        found = torch.autograd.grad(loss, trained, allow_unused=True)
        return [slope for slope in found if slope is not None]

    expected = slopes()
    with vitune.lean_step(model):
        for _ in range(2):
            for a, b in zip(slopes(), expected, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("how", ["timm", "wrapper"])
def test_blocks_that_are_computed_again_see_what_they_saw(how: str) -> None:
    model, x = adapt("rlrr", "vit").train(), images("vit")
    expected = gradients(model, x)
    if how == "timm":
        model.set_grad_checkpointing(True)
    else:
        apply_activation_checkpointing(model, check_fn=lambda part: isinstance(part, Block))
    with vitune.lean_step(model):
        for _ in range(2):
            for a, b in zip(gradients(model, x), expected, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("compiled_first", [True, False])
def test_a_compiled_model_trains_as_it_was_compiled(compiled_first: bool) -> None:
    model, x = adapt("rlrr", "vit").train(), images("vit")
    expected = gradients(model, x)
    compiled: Any = torch.compile(model, backend="aot_eager")
    if compiled_first:
        with pytest.warns(UserWarning, match="the model is compiled, so its steps stay"):
            lean = vitune.lean_step(compiled).__enter__()
    else:
        lean = vitune.lean_step(model).__enter__()
    for _ in range(2):
        for a, b in zip(gradients(compiled, x), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    lean.end()


def test_a_pass_that_raises_leaves_nothing_behind() -> None:
    model = adapt("rlrr", "vit").train()
    with vitune.lean_step(model), pytest.raises(Exception, match=r"."):
        model(torch.zeros(1, 3, 7, 7))
    with torch.overrides.TorchFunctionMode():
        pass
    assert torch.overrides._get_current_function_mode() is None  # type: ignore[attr-defined]
    assert not model._forward_hooks and not model._forward_pre_hooks


@pytest.mark.filterwarnings("ignore:.*pin_memory")
def test_transformers_trainer_ends_with_the_same_weights(tmp_path: Path) -> None:
    def trained(callbacks: list[Any]) -> tuple[dict[str, Tensor], list[tuple[bool, int]]]:
        model = adapt("lora", "transformers_vit")
        calls = seen_by_last_mlp(model)
        arguments = TrainingArguments(
            output_dir=str(tmp_path), max_steps=2, per_device_train_batch_size=2, report_to=[],
            gradient_accumulation_steps=2, save_strategy="no", use_cpu=True, disable_tqdm=True,
            learning_rate=1e-2, label_names=["labels"], eval_strategy="steps", eval_steps=1,
        )  # fmt: skip
        Trainer(
            model=model,
            args=arguments,
            train_dataset=Images(),
            eval_dataset=Images(),
            callbacks=callbacks,
        ).train()
        return {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}, calls

    plain, all_tokens = trained([])
    lean, calls = trained([vitune.lean_step().for_trainer()])
    assert {tokens for is_training, tokens in calls if is_training} != {17}
    assert {tokens for is_training, tokens in calls if not is_training} == {17}
    assert {tokens for _, tokens in all_tokens} == {17} and len(calls) == len(all_tokens)
    for name, value in plain.items():
        torch.testing.assert_close(lean[name], value, rtol=1e-4, atol=1e-5)


def test_lightning_ends_with_the_same_weights(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lightning = pytest.importorskip("lightning.pytorch", reason="needs vitune[lightning]")

    class Module(lightning.LightningModule):  # type: ignore[name-defined,misc]
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch: dict[str, Tensor], _: int) -> Tensor:
            return F.cross_entropy(self.model(batch["pixel_values"]), batch["labels"])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.1)

    model = adapt("rlrr", "vit").train()
    twin = copy.deepcopy(model)
    seen = []
    for network, callbacks in ((model, []), (twin, [vitune.lean_step().for_lightning()])):
        seen.append(seen_by_last_mlp(network))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            lightning.Trainer(
                max_steps=2, accelerator="cpu", logger=False, enable_checkpointing=False,
                enable_progress_bar=False, enable_model_summary=False, callbacks=callbacks,
                default_root_dir=tmp_path,
            ).fit(Module(network), DataLoader(Images(), batch_size=4))  # fmt: skip
    assert [tokens for _, tokens in seen[0]] == [17, 17]
    assert [tokens for _, tokens in seen[1]] == [17, 1]  # the first step tells what is read
    for (name, a), b in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-5, msg=name)


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(VituneError, match=r"got no model, expected lean_step\(model\)"):
        vitune.lean_step().__enter__()
    monkeypatch.setitem(sys.modules, "lightning.pytorch", None)
    with pytest.raises(VituneError, match=r"pip install 'vitune\[lightning\]'"):
        vitune.lean_step().for_lightning()
    from vitune.training.lean_anywhere import network_in

    with pytest.raises(VituneError, match=r"got Sequential without a recognised network"):
        network_in(nn.Sequential(nn.Linear(2, 2)))
