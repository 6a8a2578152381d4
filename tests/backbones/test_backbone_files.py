"""Local checkpoints in every format give the same network, and odd ones are refused whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from backbone_zoo import google_arrays
from safetensors.torch import save_file
from torch import Tensor, nn

from vitune.backbones import load_backbone
from vitune.errors import BackboneError

ARCHITECTURE = "test_vit"
PIXELS = 32


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """A small random ViT with a head of 5 classes, no weight left at a trivial value."""
    torch.manual_seed(1)
    model = timm.create_model(ARCHITECTURE, img_size=PIXELS, num_classes=5, depth=2).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture(autouse=True)
def _shallow(monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model
    monkeypatch.setattr(
        "vitune.backbones.timm_source.timm.create_model",
        lambda name, **options: create(name, **{"depth": 2, **options}),
    )


def write(network: nn.Module, path: Path) -> Path:
    state = {name: value.clone() for name, value in network.state_dict().items()}
    save_state(state, path)
    return path


def save_state(state: dict[str, Any], path: Path) -> None:
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)


def logits(model: nn.Module, size: int = PIXELS) -> Tensor:
    torch.manual_seed(2)
    with torch.no_grad():
        return model(torch.randn(2, 3, size, size))


def written(network: nn.Module, folder: Path, suffix: str) -> Path:
    """The network's weights in a file of that format."""
    path = folder / f"vit{suffix}"
    if suffix == ".npz":
        np.savez(path, **google_arrays(network))
    else:
        write(network, path)
    return path


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt", ".bin", ".npz"])
def test_every_format_gives_the_same_network(
    network: nn.Module, tmp_path: Path, suffix: str
) -> None:
    path = written(network, tmp_path, suffix)
    backbone = load_backbone(f"{ARCHITECTURE}@{path}", image_size=PIXELS)
    assert backbone.num_classes == 5
    assert backbone.notices == ()
    assert (backbone.name, backbone.source) == (f"{ARCHITECTURE}@{path}", f"file {path}")
    torch.testing.assert_close(logits(backbone.model), logits(network), rtol=1e-5, atol=1e-6)
    assert torch.equal(
        logits(load_backbone(backbone.name, image_size=PIXELS).model), logits(backbone.model)
    )


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_a_head_of_another_size_is_left_out_with_notice(
    network: nn.Module, tmp_path: Path, suffix: str
) -> None:
    path = written(network, tmp_path, suffix)
    backbone = load_backbone(ARCHITECTURE, checkpoint=path, num_classes=3, image_size=PIXELS)
    assert backbone.num_classes == 3
    assert not logits(backbone.model).any()
    assert backbone.notices == (
        f"The head of vit{suffix} (5 classes) was left out: 3 are requested.",
    )
    features = backbone.model.forward_features(torch.zeros(1, 3, PIXELS, PIXELS))
    expected = network.forward_features(torch.zeros(1, 3, PIXELS, PIXELS))
    torch.testing.assert_close(features, expected)
    same = load_backbone(ARCHITECTURE, checkpoint=path, num_classes=5, image_size=PIXELS)
    torch.testing.assert_close(logits(same.model), logits(network))


def test_a_file_without_head_gives_features_or_a_zero_head(
    network: nn.Module, tmp_path: Path
) -> None:
    state = {k: v for k, v in network.state_dict().items() if not k.startswith("head.")}
    save_file(state, tmp_path / "body.safetensors")
    name = f"{ARCHITECTURE}@{tmp_path / 'body.safetensors'}"
    features = load_backbone(name, image_size=PIXELS)
    assert (features.num_classes, features.notices) == (0, ())
    assert logits(features.model).shape == (2, 64)
    fresh = load_backbone(name, image_size=PIXELS, num_classes=4)
    assert (fresh.num_classes, fresh.notices) == (4, ())
    assert not logits(fresh.model).any()


def test_googles_prefix_and_representation_layer(network: nn.Module, tmp_path: Path) -> None:
    arrays = google_arrays(network)
    arrays["pre_logits/kernel"] = np.zeros((64, 64), np.float32)
    arrays["pre_logits/bias"] = np.zeros(64, np.float32)
    path = tmp_path / "vit.npz"
    np.savez(path, **{f"opt/target/{name}": value for name, value in arrays.items()})
    backbone = load_backbone(f"{ARCHITECTURE}@{path}", image_size=PIXELS)
    assert backbone.num_classes == 0
    expected = network.forward_head(network.forward_features(torch.ones(1, 3, 32, 32)), True)
    torch.testing.assert_close(backbone.model(torch.ones(1, 3, 32, 32)), expected)


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_positions_are_resampled_for_another_size(
    network: nn.Module, tmp_path: Path, suffix: str
) -> None:
    path = written(network, tmp_path, suffix)
    backbone = load_backbone(f"{ARCHITECTURE}@{path}", image_size=64)
    assert backbone.model.pos_embed.shape == (1, 17, 64)
    assert torch.equal(backbone.model.pos_embed[:, 0], network.pos_embed[:, 0])
    assert logits(backbone.model, 64).shape == (2, 5)


@pytest.mark.parametrize("keys", [("state_dict",), ("model",), ("epoch", "model", "state_dict")])
def test_wrapped_states_are_unwrapped(
    network: nn.Module, tmp_path: Path, keys: tuple[str, ...]
) -> None:
    content: dict[str, Any] = {f"module.{k}": v for k, v in network.state_dict().items()}
    for key in keys:
        content = {key: content} if key != "epoch" else {**content}
    path = tmp_path / "vit.pth"
    torch.save({**content, "epoch": 3}, path)
    backbone = load_backbone(f"{ARCHITECTURE}@{path}", image_size=PIXELS)
    assert torch.equal(logits(backbone.model), logits(network))


def test_a_file_for_the_bundled_architecture(tmp_path: Path) -> None:
    bundled = load_backbone("vitune/vit_micro_patch4_32", num_classes=3)
    with torch.no_grad():
        bundled.model.head.bias.add_(1)
    write(bundled.model, tmp_path / "mine.safetensors")
    again = load_backbone(f"vitune/vit_micro_patch4_32@{tmp_path / 'mine.safetensors'}")
    assert again.num_classes == 3
    assert torch.equal(again.model.head.bias, torch.ones(3))


def test_a_file_for_a_torchvision_architecture(tmp_path: Path) -> None:
    backbone = load_backbone("torchvision:resnet18", pretrained=False, num_classes=3)
    write(backbone.model, tmp_path / "mine.pth")
    again = load_backbone(f"torchvision:resnet18@{tmp_path / 'mine.pth'}")
    assert again.num_classes == 3
    assert torch.equal(again.model.conv1.weight, backbone.model.conv1.weight)


def test_all_differences_are_listed(network: nn.Module, tmp_path: Path) -> None:
    state = {name: value.clone() for name, value in network.state_dict().items()}
    del state["blocks.0.norm1.bias"], state["norm.weight"]
    state["blocks.1.mlp.fc1.bias"] = torch.zeros(3)
    state["blocks.2.norm1.bias"] = torch.zeros(64)
    path = tmp_path / "odd.safetensors"
    save_file(state, path)
    with pytest.raises(
        BackboneError,
        match=r"missing: blocks.0.norm1.bias, norm.weight; unexpected: blocks.2.norm1.bias; "
        r"wrong shape: blocks.1.mlp.fc1.bias \(3,\) instead of \(192,\)",
    ):
        load_backbone(f"{ARCHITECTURE}@{path}", image_size=PIXELS)


def test_weights_of_a_wider_network_are_refused_in_a_few_lines(
    network: nn.Module, tmp_path: Path
) -> None:
    """Every tensor has another shape then; the first ones say enough."""
    state = {
        name: torch.zeros(2 * len(v), *v.shape[1:]) for name, v in network.state_dict().items()
    }
    path = tmp_path / "wide.safetensors"
    save_file(state, path)
    wanted = r"wrong shape: blocks.0.attn.proj.bias \(128,\) instead of \(64,\), .* and \d+ more\."
    with pytest.raises(BackboneError, match=wanted) as found:
        load_backbone(f"{ARCHITECTURE}@{path}", image_size=PIXELS)
    assert len(str(found.value)) < 800


def test_all_differences_of_an_npz_are_listed(network: nn.Module, tmp_path: Path) -> None:
    arrays = google_arrays(network)
    first = "Transformer/encoderblock_0/"
    del arrays[f"{first}LayerNorm_0/scale"], arrays["cls"]
    arrays["Transformer/encoderblock_2/LayerNorm_0/scale"] = np.zeros(64, np.float32)
    arrays[f"{first}MlpBlock_3/Dense_0/bias"] = np.zeros(1, np.float32)
    arrays["Transformer/posembed_input/pos_embedding"] = np.zeros((1, 4, 64), np.float32)
    path = tmp_path / "odd.npz"
    np.savez(path, **arrays)
    with pytest.raises(
        BackboneError,
        match=r"missing: Transformer/encoderblock_0/LayerNorm_0/scale, cls; "
        r"unexpected: Transformer/encoderblock_2/LayerNorm_0/scale; wrong shape: "
        r"Transformer/encoderblock_0/MlpBlock_3/Dense_0/bias \(1,\) instead of \(192,\), "
        r"Transformer/posembed_input/pos_embedding \(1, 4, 64\)",
    ):
        load_backbone(f"{ARCHITECTURE}@{path}", image_size=PIXELS)


def test_an_npz_needs_a_plain_vit(network: nn.Module, tmp_path: Path) -> None:
    np.savez(tmp_path / "vit.npz", **google_arrays(network))
    with pytest.raises(BackboneError, match=r"for ResNet, expected a timm ViT for Google's .npz"):
        load_backbone(f"torchvision:resnet18@{tmp_path / 'vit.npz'}")


def test_damaged_files_are_named(network: nn.Module, tmp_path: Path) -> None:
    for suffix in (".safetensors", ".pth", ".npz"):
        path = tmp_path / f"vit{suffix}"
        if suffix == ".npz":
            np.savez(path, **google_arrays(network))
        else:
            write(network, path)
        whole = path.read_bytes()
        for damaged in (whole[: len(whole) // 2], b"", b"not a checkpoint"):
            path.write_bytes(damaged)
            with pytest.raises(BackboneError, match=rf"got '.*vit{suffix}', expected .*failed: "):
                load_backbone(f"{ARCHITECTURE}@{path}", image_size=PIXELS)


def test_one_array_is_no_checkpoint(tmp_path: Path) -> None:
    with (tmp_path / "vit.npz").open("wb") as stream:
        np.save(stream, np.zeros(3))
    with pytest.raises(BackboneError, match="one array, not an archive"):
        load_backbone(f"{ARCHITECTURE}@{tmp_path / 'vit.npz'}", image_size=PIXELS)


class Payload:
    """Something that runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("ran"),)


def test_pickled_code_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: nn.Module
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": network.state_dict(), "extra": Payload()}, "vit.pth")
    with pytest.raises(BackboneError, match=r"expected an intact file with only tensors"):
        load_backbone(f"{ARCHITECTURE}@vit.pth", image_size=PIXELS)
    np.savez("vit.npz", **google_arrays(network), extra=np.array([Payload()], dtype=object))
    with pytest.raises(BackboneError, match=r"expected Google's ViT arrays.*allow_pickle"):
        load_backbone(f"{ARCHITECTURE}@vit.npz", image_size=PIXELS)
    assert not Path("ran").exists()


def test_files_that_hold_no_state(tmp_path: Path) -> None:
    for content in ([1, 2], {"epoch": 3}, {"state_dict": {}}):
        torch.save(content, tmp_path / "vit.pth")
        with pytest.raises(BackboneError, match=r"expected a mapping of names to tensors"):
            load_backbone(f"{ARCHITECTURE}@{tmp_path / 'vit.pth'}", image_size=PIXELS)


def test_a_state_that_timm_cannot_convert(network: nn.Module, tmp_path: Path) -> None:
    state = {name: value.clone() for name, value in network.state_dict().items()}
    state["pos_embed"] = torch.zeros(7)
    save_file(state, tmp_path / "odd.safetensors")
    with pytest.raises(BackboneError, match=r"timm could not convert it: IndexError"):
        load_backbone(f"{ARCHITECTURE}@{tmp_path / 'odd.safetensors'}", image_size=PIXELS)


def test_paths_that_are_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match=r"got '.*weights.h5', expected a file ending in .saf"):
        load_backbone(f"{ARCHITECTURE}@{tmp_path / 'weights.h5'}")
    with pytest.raises(BackboneError, match=r"got '.*gone.pth', expected an existing file"):
        load_backbone(ARCHITECTURE, checkpoint=tmp_path / "gone.pth")
    with pytest.raises(BackboneError, match=r"got 'b.pth' and 'a.pth', expected one file"):
        load_backbone(f"{ARCHITECTURE}@a.pth", checkpoint="b.pth")
    (tmp_path / "a.pth").touch()
    with pytest.raises(BackboneError, match=r"with 'hf:org/name', expected none"):
        load_backbone("hf:org/name", checkpoint=tmp_path / "a.pth")
