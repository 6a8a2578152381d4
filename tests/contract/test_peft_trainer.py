"""transformers' Trainer, with and without checkpoints that it recomputes from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from vitune.testing.cases import adapt
from vitune.testing.tiny_backbones import NUM_CLASSES, images


class Images(Dataset[dict[str, Tensor]]):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        label = torch.tensor(index % NUM_CLASSES)
        return {"pixel_values": images("transformers_vit", 8)[index], "labels": label}


@pytest.mark.filterwarnings("ignore:.*pin_memory")
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")
@pytest.mark.parametrize("method", ["vpt_deep", "vpt_shallow", "moppa_min", "adaptformer", "rlrr"])
def test_two_steps_are_the_same_with_and_without_checkpointing(method: str, tmp_path: Path) -> None:
    plain, recomputed = (_trained(method, tmp_path, checkpointing=on) for on in (False, True))
    start = _tensors(adapt(method, "transformers_vit"))
    assert start.keys() == plain.keys() == recomputed.keys()
    own = [name for name in start if "modules_to_save" not in name]
    moved = [name for name in own if not torch.equal(plain[name], start[name])]
    # MoPPA-min's last branch is behind everything that the class token sees.
    assert len(moved) == len(own) if method != "moppa_min" else 0 < len(moved) < len(own)
    for name, value in plain.items():
        assert torch.allclose(recomputed[name], value, atol=1e-6), name


def _trained(method: str, folder: Path, *, checkpointing: bool) -> dict[str, Tensor]:
    model = adapt(method, "transformers_vit")
    arguments = TrainingArguments(
        output_dir=str(folder / str(checkpointing)),
        max_steps=2,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        activation_checkpointing=checkpointing,
        save_steps=1,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        label_names=["labels"],
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=Images(), eval_dataset=Images())
    assert trainer.train().global_step == 2
    assert trainer.evaluate()["eval_loss"] > 0
    assert (folder / str(checkpointing) / "checkpoint-2" / "adapter_model.safetensors").exists()
    return _tensors(model)


def _tensors(model: Any) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
