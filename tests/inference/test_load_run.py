"""Runs on other backbones than the bundled one: trained, loaded again, merged, all the same."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import save_file
from transformers import ViTConfig, ViTForImageClassification

import vitune
import vitune.data
from vitune.backbones import logits_of
from vitune.cards import AdapterCard
from vitune.cli import run
from vitune.data import Split, load_labelled
from vitune.errors import AdapterError, VituneError
from vitune.inference import LoadedRun, evaluate, load_run, merge_and_tell
from vitune.inference.load import load_peft
from vitune.preprocessing import Preprocessing
from vitune.report import read_run, write_report
from vitune.training import TrainConfig, fit

DIGITS = "demo:digits?train=40"
TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}


@pytest.fixture(scope="module")
def hf_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("hf") / "vit"
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=32,
        patch_size=8,
        num_labels=3,
    )
    ViTForImageClassification(config).save_pretrained(folder)
    return f"hf:{folder}"


@pytest.fixture(scope="module")
def timm_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=0)
    file = tmp_path_factory.mktemp("timm") / "weights.safetensors"
    save_file(model.state_dict(), file)
    return f"test_vit@{file}"


@pytest.mark.parametrize("kind", ["hf_folder", "timm_file"])
def test_a_run_is_loaded_and_merged(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    backbone = request.getfixturevalue(kind)
    config = TrainConfig.make(
        {"data": DIGITS, "backbone": backbone, "epochs": 1, "batch_size": 16, "lr": 1e-2}
    )
    trained = fit(config, out=tmp_path / "run")
    merged = merge_and_tell(tmp_path / "run", tmp_path / "merged")
    assert 0 < merged.difference + 1e-12 < 1e-5 and merged.added_biases == ()
    runs = [load_run(tmp_path / "run"), load_run(tmp_path / "run", merge=False)]
    runs.append(load_run(tmp_path / "merged"))
    assert not isinstance(runs[0].model, PeftModel) and isinstance(runs[1].model, PeftModel)
    split, _ = load_labelled(
        DIGITS, trained.backbone.preprocessing, classes=trained.classes, split="test"
    )
    few = split.subset(range(20))
    expected = logits_of(trained.model.eval()(torch.zeros(1, 3, *split.images.shape[1:3])))
    assert expected.shape == (1, 10)
    logits = [torch.cat(list(run.logits(few))) for run in runs]
    for other in logits[1:]:
        assert torch.allclose(logits[0], other, atol=1e-5 * logits[0].abs().max().item() + 1e-6)
    result = evaluate(runs[0], few)
    right = (logits[0].argmax(-1).numpy() == few.labels).mean()
    assert result["top1"] == pytest.approx(right)
    assert sum(result["confusion"]["images"]) == 20
    assert sum(row["share"] for row in result["calibration"]) == pytest.approx(1)


def test_another_backbone_is_refused_by_name(tmp_path: Path) -> None:
    config = TrainConfig.make({"data": DIGITS, "epochs": 1, "batch_size": 16, "start": "plain"})
    trained = fit(config, out=tmp_path / "run")
    other = vitune.load_backbone("vitune/vit_micro_patch4_32", num_classes=10, pretrained=False)
    own = list(other.model.parameters())
    with pytest.raises(AdapterError, match=r"got weights v1-.*expected v1-.*--force"):
        vitune.load_adapter(other.model, tmp_path / "run" / "adapter")
    assert not any(isinstance(m, PeftModel) for m in other.model.modules())
    assert not hasattr(other.model, "peft_config")
    now = list(other.model.parameters())
    assert all(new is old and new.requires_grad for old, new in zip(own, now, strict=True))
    with pytest.warns(UserWarning, match="Loading it anyway"):
        vitune.load_adapter(other.model, tmp_path / "run" / "adapter", force=True)
    model, card = load_peft(tmp_path / "run")
    assert card.classes == trained.classes and isinstance(model, PeftModel)


def test_merging_gives_a_bias_free_layer_its_bias(tmp_path: Path) -> None:
    from timm.models.vision_transformer import VisionTransformer

    from vitune.adapters import AdapterCard, load_merged, merged_model, save_merged

    def network() -> VisionTransformer:
        torch.manual_seed(0)
        return VisionTransformer(**TINY, num_classes=3, qkv_bias=False).eval()

    model = get_peft_model(network(), vitune.RLRRConfig()).eval()
    for name, parameter in model.named_parameters():
        if "shift" in name:
            torch.nn.init.normal_(parameter)
    images = torch.randn(2, 3, 32, 32)
    expected = model(images)
    card = AdapterCard(
        method="rlrr",
        method_args={},
        backbone="none",
        backbone_args={},
        preprocessing=vitune.load_backbone("vitune/vit_micro_patch4_32").preprocessing,
        classes=("a", "b", "c"),
    )
    save_merged(merged_model(model), tmp_path / "merged", card)
    again = load_merged(network(), tmp_path / "merged").eval()
    assert again.blocks[0].attn.qkv.bias is not None
    assert torch.allclose(again(images), expected, atol=1e-5)


def test_a_damaged_card_and_missing_tensors_are_named(tmp_path: Path) -> None:
    from vitune.adapters import AdapterCard

    with pytest.raises(AdapterError, match=r"without vitune\.json"):
        AdapterCard.read(tmp_path)
    (tmp_path / "vitune.json").write_text("{")
    with pytest.raises(AdapterError, match="damaged card"):
        AdapterCard.read(tmp_path)
    (tmp_path / "vitune.json").write_text('{"format": 99}')
    with pytest.raises(AdapterError, match="got format 99, expected 1"):
        AdapterCard.read(tmp_path)


@pytest.mark.parametrize(
    "method",
    [
        *("full", "linear", "apla", "lora", "lily", "adaptformer"),
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("bitfit", "ssf")),
    ],
)
def test_every_kind_of_method_is_loaded_from_its_run(method: str, tmp_path: Path) -> None:
    settings = {"data": DIGITS, "method": method, "epochs": 1, "batch_size": 16, "image_size": 16}
    settings |= {} if method == "linear" else {"start": "plain"}
    trained = fit(TrainConfig.make(settings), out=tmp_path / "run")
    split, _ = load_labelled(
        DIGITS, trained.backbone.preprocessing, classes=trained.classes, split="test"
    )
    few = split.subset(range(8))
    pixels = torch.from_numpy(few.images.copy()).permute(0, 3, 1, 2)
    inputs = vitune.data.normalise(pixels, trained.backbone.preprocessing)
    with torch.no_grad():
        expected = logits_of(trained.model.eval()(inputs))
    temperature = trained.summary.calibration.temperature
    found = temperature * torch.cat(list(load_run(tmp_path / "run").logits(few)))
    assert torch.allclose(found, expected, atol=1e-4 * expected.abs().max().item())


def tiny_card(classes: tuple[str, ...]) -> AdapterCard:
    """Of a network that sees 4 x 4 pixels."""
    return AdapterCard(
        method="linear",
        method_args={},
        backbone="none",
        backbone_args={},
        preprocessing=Preprocessing((4, 4), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        classes=classes,
    )


def test_logits_that_are_read_one_by_one_leave_gradients_on(tmp_path: Path) -> None:
    """Two runs side by side, the second never read to its end: later training needs gradients."""
    card = tiny_card(("a", "b"))
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 2))
    run, images = LoadedRun(tmp_path, card, network, None), np.zeros((3, 4, 4, 3), np.uint8)
    split = Split("test", images, np.array([0, 1, 0]), ("x", "y", "z"), card.classes)
    seen = [next(iter(run.logits(split))), next(vitune.predict(run, split))]
    for pair in zip(run.logits(split), run.logits(split), strict=False):
        assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
        seen.append(pair)
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    assert not seen[0].requires_grad


@pytest.mark.parametrize("top_k", [1.5, True, "1", None, 0, 4])
def test_predictions_are_a_whole_number_of_classes(top_k: Any) -> None:
    run = SimpleNamespace(classes=("a", "b", "c"), logits=lambda split: [])
    with pytest.raises(VituneError, match=r"--top-k: got .*, expected 1 to 3"):
        vitune.predict(run, None, top_k=top_k)  # type: ignore[arg-type]
    assert list(vitune.predict(run, SimpleNamespace(paths=()), top_k=np.int64(2))) == []


def test_a_result_of_thousands_of_classes_is_small(tmp_path: Path) -> None:
    """The confusion matrix of 2,000 classes has 4 million entries, nearly all of them zero."""
    torch.manual_seed(0)
    names = tuple(f"species-{index:04d}" for index in range(2_000))
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 2_000))
    card = tiny_card(names)
    images = np.random.default_rng(0).integers(0, 256, (2_500, 4, 4, 3), np.uint8)
    labels = np.arange(2_500) % 2_000
    paths = tuple(f"p{index}" for index in range(2_500))
    split = Split("test", images, labels, paths, names)
    result = evaluate(LoadedRun(tmp_path, card, network, None), split)
    text = json.dumps(result)
    assert len(text) < 700_000
    assert sum(result["confusion"]["images"]) == 2_500
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "test.json").write_text(text)
    (tmp_path / "config.yaml").write_text("data: photos\n")
    (found,) = read_run(tmp_path).evaluations
    assert found.confusion is not None and sum(found.confusion.totals) == 2_500
    assert found.confusion.num_correct == round(found.top1 * 2_500)
    assert found.confusion.totals == (2,) * 500 + (1,) * 1_500
    assert write_report(tmp_path).stat().st_size < 5_000_000


def test_merging_says_which_biases_it_added(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The reductions between Swin's stages have no bias; RLRR's shift gives them one."""
    sizes = {"img_size": 32, "depths": (1, 1), "num_heads": (2, 4), "embed_dim": 16}
    swin = timm.create_model("swin_tiny_patch4_window7_224", num_classes=3, **sizes)
    assert swin.layers[1].downsample.reduction.bias is None
    model = get_peft_model(swin, vitune.RLRRConfig())
    card = AdapterCard(
        method="rlrr",
        method_args={},
        backbone="swin_tiny_patch4_window7_224",
        backbone_args={},
        preprocessing=Preprocessing((32, 32), (0.5,) * 3, (0.5,) * 3),
        classes=("a", "b", "c"),
    )
    monkeypatch.setattr("vitune.inference.merging.load_peft", lambda *_, **__: (model, card))
    assert run(["merge", "RUN", "--out", str(tmp_path / "merged")]) == 0
    said = "1 layer without a bias got one (the first: layers.1.downsample.reduction.bias)"
    assert said in capsys.readouterr().out
