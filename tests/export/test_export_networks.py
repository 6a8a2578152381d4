"""Every kind of network as a file: written, run by its own runtime, compared image by image."""

from __future__ import annotations

from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
import torch
from timm.models.swin_transformer import SwinTransformer
from torch import nn

from vitune.adapters import AdapterCard, inject, merged_model
from vitune.backbones import head_name, load_backbone
from vitune.data import Split
from vitune.errors import AdapterError
from vitune.export import TARGETS
from vitune.export.deployed import Deployed, traced
from vitune.export.export_card import write_card
from vitune.export.exporting import described
from vitune.export.target import Job
from vitune.export.verify import pytorch_answers, verified
from vitune.fewer_tokens import TokenPlan, reduce_tokens
from vitune.inference import LoadedRun
from vitune.methods import get_method
from vitune.preprocessing import PIXEL_STATS, Preprocessing
from vitune.testing.tiny_backbones import vit

CLASSES = tuple("abcde")


SMALL = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 32}
SMALL |= {"intermediate_size": 64, "image_size": 32, "patch_size": 8}


def transformers_vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    return ViTForImageClassification(ViTConfig(**SMALL, num_labels=len(CLASSES)))


def clip_tower(folder: Path) -> nn.Module:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    CLIPVisionModel(CLIPVisionConfig(**SMALL)).save_pretrained(folder)
    return load_backbone(f"hf:{folder}", num_classes=len(CLASSES)).model


def torchvision_vit() -> nn.Module:
    from torchvision.models import VisionTransformer

    return VisionTransformer(32, 8, 1, 2, 32, 64, num_classes=len(CLASSES))


def merged_tokens() -> nn.Module:
    """A network of which two thirds of the patches are merged, as a run with `--tokens` has it."""
    model = vit(depth=3)
    reduce_tokens(model, TokenPlan.parse("merge:0.66@0,1"))
    return model


def built(name: str, folder: Path) -> nn.Module:
    """A network of one block (Swin: one per stage) with random weights."""
    if name == "clip_tower":
        return clip_tower(folder)
    return {
        "oblong": lambda: vit(depth=1, img_size=(32, 48)),
        "registers": lambda: vit(depth=1, reg_tokens=2, init_values=0.1, qkv_bias=False),
        "swin": lambda: SwinTransformer(
            img_size=32, patch_size=4, embed_dim=16, depths=(1, 1), num_heads=(2, 2),
            window_size=4, num_classes=len(CLASSES),
        ),
        "transformers_vit": transformers_vit,
        "merged_tokens": merged_tokens,
        "torchvision_vit": torchvision_vit,
    }[name]()  # fmt: skip


def trained(model: nn.Module, method: str = "rlrr") -> nn.Module:
    """The network with an adapter that is no identity, and a head that tells classes apart."""
    adapted = inject(model, get_method(method).configure(model, {}))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return adapted.eval()


def as_run(model: nn.Module, size: tuple[int, int], path: Path) -> LoadedRun:
    prepared = Preprocessing(size, *PIXEL_STATS["imagenet"])
    card = AdapterCard("rlrr", {}, "tiny", {}, prepared, CLASSES, "v1-0")
    return LoadedRun(path, card, model, None)


def pictures(size: tuple[int, int], num: int = 11) -> Split:
    generator = np.random.default_rng(0)
    squares = generator.integers(0, 256, (num, 4, 4, 3), dtype=np.uint8)
    pixels = squares.repeat(size[0] // 4, 1).repeat(size[1] // 4, 2)
    labels = generator.integers(0, len(CLASSES), num)
    return Split("val", pixels, labels, tuple(map(str, range(num))), CLASSES)


def centre(run: LoadedRun, images: Split) -> None:
    """Move the head's bias so that the images fall into several classes."""
    head = run.model.get_submodule(head_name(run.model))
    mean = pytorch_answers(run, images.images).logits.mean(0)
    head.bias.data -= torch.from_numpy(mean)


NETWORKS = (
    ("oblong", "pt2"),
    ("swin", "onnx"),
    ("transformers_vit", "pt2"),
    ("clip_tower", "pt2"),
    ("merged_tokens", "onnx"),
    ("merged_tokens", "openvino"),
    *(
        pytest.param(name, kind, marks=pytest.mark.slow)
        for name, kind in (("registers", "pt2"), ("torchvision_vit", "onnx"))
    ),
)
"""And the file each becomes. ONNX starts from the graph of PT2, and takes four times as long."""


@pytest.mark.parametrize(("name", "kind"), NETWORKS)
def test_the_file_agrees_at_every_batch_size(name: str, kind: str, tmp_path: Path) -> None:
    if kind == "openvino":
        pytest.importorskip("openvino", reason="needs vitune[openvino], a wheel of 180 MB unpacked")
    size = (32, 48) if name == "oblong" else (32, 32)
    model = merged_model(trained(built(name, tmp_path / "weights")))
    run = as_run(model, size, tmp_path)
    images = pictures(size)
    centre(run, images)
    whole = Deployed(run.model, run.card.preprocessing)
    target = TARGETS[kind]
    write_card(tmp_path, described(run, target, ("model",)))
    target.write(Job(tmp_path, {"model": traced(whole, whole.example())}, {"method": '"rlrr"'}))
    expected = pytorch_answers(run, images.images)
    found = verified(tmp_path, expected, images)
    assert found.failure == ""
    assert list(found.by_batch) == [1, 2, 3, 8]
    near = 1e-4 if name == "merged_tokens" else 1e-5  # sums of similar tokens round differently
    assert all(row.top1 == 1 and row.relative < near for row in found.by_batch.values()), found
    assert len(np.unique(expected.logits.argmax(-1))) > 2
    for archive in tmp_path.glob("*.pt2"):  # nothing in it is pickled
        entries = [e for e in ZipFile(archive).infolist() if e.filename.endswith((".pt", ".pkl"))]
        assert [e.file_size for e in entries] == [0]


def test_an_unmerged_method_is_traced_as_it_is() -> None:
    model = trained(vit(depth=1), "vpt_deep")
    whole = Deployed(model, Preprocessing((32, 32), *PIXEL_STATS["half"]))
    images = torch.from_numpy(pictures((32, 32)).images)
    graph = traced(whole, whole.example()).module()
    torch.testing.assert_close(graph(images), whole(images))
    torch.testing.assert_close(graph(images[:1]), whole(images[:1]))


class _Odd(nn.Module):
    """Looks at its input to decide what to do."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3)) if images.sum() > 0 else images.amax((2, 3))


def test_what_cannot_be_traced_is_refused_with_the_reason() -> None:
    whole = Deployed(_Odd(), Preprocessing((8, 8), *PIXEL_STATS["half"]))
    with pytest.raises(AdapterError, match=r"export: got a network that torch.export cannot trace"):
        traced(whole, whole.example())


class _OneSize(nn.Module):
    """Knows how many images come."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3)).reshape(2, 3)


def test_a_batch_size_is_never_fixed_in_silence() -> None:
    whole = Deployed(_OneSize(), Preprocessing((8, 8), *PIXEL_STATS["half"]))
    with pytest.raises(AdapterError, match="expected one graph for any batch"):
        traced(whole, whole.example())
