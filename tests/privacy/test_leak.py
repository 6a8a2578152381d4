"""Attacks on updates: what is read must be the images, and defences must be felt."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torchvision
from peft import PeftModel
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.nn import functional as F

from vitune.adapters import inject
from vitune.cli import main
from vitune.errors import BackboneError, VituneError
from vitune.methods import get_method
from vitune.privacy import Defence, LeakSettings, leak
from vitune.privacy.bins import Reading, clustered, even_edges, top_edges
from vitune.privacy.image_metrics import (
    LPIPS_NETS,
    agreement,
    lpips_net,
    matched,
    recovered_patches,
)
from vitune.privacy.inversion import MatchSettings, labels_from_head, match_gradient
from vitune.privacy.malicious import Malicious, new_malicious, new_malicious_head
from vitune.privacy.prepared import cosine_basis
from vitune.privacy.shared_update import gradient, local_update, trained

CLASSES = 12


def exit_code(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    return int(stopped.value.code or 0)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def network(**changes: object) -> VisionTransformer:
    options = {"img_size": 16, "patch_size": 8, "embed_dim": 256, "depth": 4, "num_heads": 4}
    torch.manual_seed(0)
    return VisionTransformer(**{**options, "num_classes": CLASSES, **changes})


def pictures(count: int, seed: int) -> Tensor:
    """Smooth random images in [-1, 1] with some detail: (b, 3, 16, 16)."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 4, 4, generator=generator) * 2 - 1
    smooth = F.interpolate(coarse, size=(16, 16), mode="bilinear")
    return (smooth + 0.1 * torch.randn(count, 3, 16, 16, generator=generator)).clamp(-1, 1)


PUBLIC = pictures(300, 1)
VICTIMS, LABELS = pictures(8, 2), torch.arange(8)


def psnr(found: Tensor, truth: Tensor) -> float:
    error = ((found.clamp(-1, 1) - truth) ** 2).mean() / 4
    return float(-10 * error.log10())


def best(images: list[Tensor], truth: Tensor) -> float:
    return max((psnr(image, truth) for image in images), default=0.0)


def attacked(method: str, batch: int, **arguments: object) -> Malicious:
    return new_malicious(network(), method, dict(arguments), PUBLIC, batch)


def test_the_basis_is_orthonormal_and_starts_with_brightness() -> None:
    basis = cosine_basis(8).flatten(1)
    assert torch.allclose(basis @ basis.T, torch.eye(192), atol=1e-5)
    assert torch.allclose(basis[0], basis[0, :1].expand(192), atol=1e-6)


def test_bins_hold_equal_shares_or_sit_at_the_top() -> None:
    values = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
    edges = even_edges(values, 10)
    counts = torch.bincount(torch.bucketize(values, edges) - 1, minlength=10)
    assert edges[0] < values.min() and (counts - 1000).abs().max() <= 1
    top = top_edges(values, 4, 40)
    above = (values[:, None] > top).double().mean(0) * 40
    assert torch.allclose(above, torch.tensor([4.0, 3, 2, 1]).double(), atol=0.01)
    assert torch.equal(top_edges(values, 40, 40), even_edges(values, 40))


def test_patches_are_grouped_by_their_tags_each_position_once() -> None:
    generator = torch.Generator().manual_seed(0)
    tags = torch.randn(6, 20, generator=generator)
    readings = [
        Reading(position, torch.tensor([float(image)]), tags[image] + 0.05 * torch.randn(20))
        for position in range(4)
        for image in torch.randperm(6, generator=generator).tolist()
        if (position, image) != (0, 3)
    ]
    groups = clustered(readings, 6)
    assert len(groups) == 6 and sum(map(len, groups)) == 23
    for group in groups:
        assert len({float(one.coefficients) for one in group}) == 1
        assert len({one.position for one in group}) == len(group)
    assert clustered([], 6) == []


def test_peftleak_reads_whole_batches_off_adapters() -> None:
    malicious = attacked("houlsby", 8, rank=64)
    found = malicious.recover(local_update(malicious.model.eval(), VICTIMS, LABELS))
    read = 0
    for reading in found.readings:
        coefficients = malicious.prepared.coefficients(VICTIMS)[:, reading.position]
        read += int(((coefficients - reading.coefficients) ** 2).mean(1).min() < 1e-3)
    assert read >= 0.9 * 32
    # 80 bins per position: a patch is alone in its bin with (79/80)^7, all four with 0.7.
    assert sum(best(found.images, one) > 30 for one in VICTIMS) >= 4


@pytest.mark.parametrize("method", ["rlrr", "ssf", "bitfit", "lora", "full", "pfeiffer"])
def test_one_image_is_read_off_every_kind_of_parameter(method: str) -> None:
    malicious = attacked(method, 1)
    update = local_update(malicious.model.eval(), VICTIMS[:1], LABELS[:1])
    assert best(malicious.recover(update).images, VICTIMS[0]) > 22
    assert best(malicious.recover(update).images, VICTIMS[1]) < 16


def test_the_head_alone_gives_images_away_if_classes_differ() -> None:
    malicious = new_malicious_head(network(), "linear", {}, PUBLIC, 8)
    found = malicious.recover(local_update(malicious.model.eval(), VICTIMS, LABELS)).images
    assert len(found) == 8 and all(best(found, one) > 20 for one in VICTIMS)


@pytest.mark.parametrize("method", ["arc", "hta_sequential", "moppa"])
def test_the_head_gives_images_away_whatever_the_method_starts_at(method: str) -> None:
    """ARC starts away from the identity; a route of temperature 0 would divide by 0."""
    malicious = new_malicious_head(network(), method, {}, PUBLIC, 8)
    found = malicious.recover(local_update(malicious.model.eval(), VICTIMS, LABELS)).images
    assert len(found) == 8 and all(best(found, one) > 20 for one in VICTIMS)


def test_what_a_defence_leaves_of_the_head_is_still_numbers() -> None:
    """Where pruning took the constants away there is no image, and nothing to compare."""
    malicious = new_malicious_head(network(), "linear", {}, PUBLIC, 8)
    update = local_update(malicious.model.eval(), VICTIMS, LABELS)
    for sent in (Defence(keep=0.02), Defence(bits=1)):
        assert all(image.isfinite().all() for image in malicious.recover(sent(update)).images)
    weight = next(name for name in update if name.endswith("weight"))
    update[weight] = torch.zeros_like(update[weight])
    assert malicious.recover(update).images == []


def test_clipping_with_noise_hides_what_was_read() -> None:
    malicious = attacked("rlrr", 1)
    update = local_update(malicious.model.eval(), VICTIMS[:1], LABELS[:1])
    sent = Defence(clip=1.0, noise=0.1)(update)
    assert best(malicious.recover(sent).images, VICTIMS[0]) < 16


def test_what_cannot_be_attacked_is_said() -> None:
    for no_gate in ("linear", "hta", "hta_sequential", "lora_add"):
        with pytest.raises(BackboneError, match="trains nothing at the MLPs"):
            attacked(no_gate, 1)
    with pytest.raises(BackboneError, match="expected a timm ViT that reads its class token"):
        new_malicious(network(global_pool="avg"), "rlrr", {}, PUBLIC, 1)
    with pytest.raises(BackboneError, match="Give a smaller --image-size"):
        new_malicious(network(embed_dim=32), "rlrr", {}, PUBLIC, 1)
    with pytest.raises(BackboneError, match=r"malicious head: got \d+ free channels"):
        small = network(img_size=40, patch_size=4, embed_dim=120)
        new_malicious_head(small, "linear", {}, F.interpolate(PUBLIC, size=(40, 40)), 1)


def test_labels_come_off_a_head_of_zeros_exactly() -> None:
    model = network()
    torch.nn.init.zeros_(model.head.weight)
    adapted = inject(model, get_method("rlrr").configure(model, {})).eval()
    labels = torch.tensor([3, 3, 0, 7, 7, 7, 11, 1])
    update = local_update(adapted, VICTIMS, labels)
    assert labels_from_head(adapted, update, 8).tolist() == sorted(labels.tolist())
    with pytest.raises(BackboneError, match="head's gradient: got none"):
        labels_from_head(adapted, {}, 8)


def test_matching_comes_nearer_to_the_gradient() -> None:
    model = network(depth=2, embed_dim=64)
    adapted = inject(model, get_method("ssf").configure(model, {})).eval()
    target = local_update(adapted, VICTIMS[:1], LABELS[:1])

    def distance(image: Tensor) -> float:
        own = gradient(adapted, image, LABELS[:1])
        flat = [torch.cat([part[n].flatten() for n in target]) for part in (own, target)]
        return 1 - float(F.cosine_similarity(*flat, dim=0))

    settings = MatchSettings(iterations=40)
    found = match_gradient(adapted, target, LABELS[:1], (3, 16, 16), settings)
    start = match_gradient(adapted, target, LABELS[:1], (3, 16, 16), MatchSettings(iterations=0))
    assert distance(found) < 0.5 * distance(start)
    assert found.abs().max() <= 1
    clipped = Defence(clip=1e-30)(target)
    assert torch.allclose(
        match_gradient(adapted, clipped, LABELS[:1], (3, 16, 16), settings), found, atol=0.1
    )


@pytest.mark.parametrize("knows", [True, False])
def test_matching_is_told_the_labels_or_reads_them(
    knows: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A head of zeros tells how often each class is there, but not in which order."""
    told: list[int] = []
    truth: list[int] = []

    def match(model: object, update: object, labels: Tensor, *_: object, **__: object) -> Tensor:
        told.extend(labels.tolist())
        return torch.zeros(len(labels), 3, 32, 32)

    def updated(model: PeftModel, images: Tensor, labels: Tensor, **_: object) -> dict[str, Tensor]:
        truth.extend(labels.tolist())
        return local_update(model, images, labels)

    monkeypatch.setattr(leak, "match_gradient", match)
    monkeypatch.setattr(leak, "local_update", updated)
    settings = LeakSettings(
        "demo:digits?train=160", "bitfit", batches=(6,), attacks=("honest",), head_init="zero",
        match=MatchSettings(knows_labels=knows),
    )  # fmt: skip
    leak.audit_leak(settings)
    assert truth != sorted(truth) and told == (truth if knows else sorted(truth))


def test_local_steps_leave_the_model_as_it_was() -> None:
    model = network(depth=2, embed_dim=64)
    adapted = inject(model, get_method("rlrr").configure(model, {})).eval()
    before = {name: value.detach().clone() for name, value in trained(adapted).items()}
    several = local_update(adapted, VICTIMS, LABELS, steps=3, lr=1e-4)
    once = local_update(adapted, VICTIMS, LABELS)
    assert all(torch.equal(value, before[name]) for name, value in trained(adapted).items())
    flat = [torch.cat([part[name].flatten() for name in before]) for part in (several, once)]
    assert F.cosine_similarity(*flat, dim=0) > 0.99
    with pytest.raises(VituneError, match=r"--lr: got 1e\+30, with which 3 local steps"):
        local_update(adapted, VICTIMS, LABELS, steps=3, lr=1e30)


def test_defences_do_what_they_say() -> None:
    update = {"a": torch.tensor([3.0, 4.0]), "b": torch.tensor([0.0, 12.0])}
    assert torch.allclose(Defence(clip=1.3)(update)["b"], torch.tensor([0.0, 1.2]))
    assert Defence(keep=0.5)(update)["a"].tolist() == [0.0, 4.0]
    assert Defence(keep=1e-9)(update)["b"].tolist() == [0.0, 12.0]
    assert Defence(bits=1)(update)["a"].tolist() == [3.0, 4.0]
    for alike in (0.0, 0.7):
        rounded = Defence(bits=8)({"a": torch.full((3,), alike)})["a"]
        assert rounded.tolist() == pytest.approx([alike] * 3)
    assert Defence(bits=1)({"a": torch.tensor([0.0, 0.4, 0.6, 1.0])})["a"].tolist() == [0, 0, 1, 1]
    noisy = Defence(clip=100.0, noise=0.01)({"a": torch.zeros(20_000)})["a"]
    assert abs(float(noisy.std()) - 1) < 0.02
    assert update["a"].tolist() == [3.0, 4.0]
    for wrong, text in (
        ({"clip": 0.0}, "--clip: got 0.0"),
        ({"noise": 1.0}, "--noise: got 1.0"),
        ({"keep": 0.0}, "--keep: got 0.0"),
        ({"bits": 17}, "--bits: got 17"),
    ):
        with pytest.raises(VituneError, match=text):
            Defence(**wrong)  # type: ignore[arg-type]


def test_agreement_knows_equal_and_foreign_images() -> None:
    images = (pictures(40, 3) + 1) / 2
    truth, decoys = images[:4], images[4:]
    mixed = truth[[2, 0, 3, 1]]
    assert torch.equal(matched(truth, mixed), truth)
    features = images.flatten(1)
    same = agreement(truth, truth, decoys, features, features[:4], 8)
    assert (same.found, same.found_by_features, same.patches) == (1, 1, 1) and same.ssim > 0.999
    foreign = agreement(truth, decoys[:4], decoys, features, features[4:8], 8)
    assert foreign.found == 0 and foreign.patches == 0 and foreign.psnr < 20
    assert matched(truth, truth[:0]).unique().tolist() == [0.5]
    assert recovered_patches(truth, truth + 0.1, 8).sum() == 0


def test_lpips_is_used_where_a_network_for_it_is_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = (F.interpolate(pictures(8, 3), size=(32, 32)) + 1) / 2
    truth, decoys, features = images[:2], images[2:], images.flatten(1)

    def perceptual(recovered: Tensor) -> float | None:
        return agreement(truth, recovered, decoys, features, features[:2], 8).lpips

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert lpips_net() is None and perceptual(truth) is None
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    network = torchvision.models.squeezenet1_1()
    torch.save(network.state_dict(), tmp_path / "hub" / "checkpoints" / LPIPS_NETS["squeeze"])
    assert lpips_net() == "squeeze" and perceptual(truth) == pytest.approx(0, abs=1e-6)
    slightly, foreign = perceptual((truth + 0.02).clamp(0, 1)), perceptual(decoys[:2])
    assert slightly is not None and foreign is not None and 0 < slightly < foreign
    small = truth[..., :16, :16]
    assert agreement(small, small, decoys[..., :16, :16], features, features[:2], 8).lpips is None


def test_files_of_the_networks_are_torchvisions() -> None:
    weights = torchvision.models
    found = (weights.AlexNet_Weights, weights.VGG16_Weights, weights.SqueezeNet1_1_Weights)
    assert [Path(one.IMAGENET1K_V1.url).name for one in found] == list(LPIPS_NETS.values())


def test_the_verb_writes_page_and_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "leak.html"
    told = ["audit", "leak", "--data", "demo:digits", "--method", "rlrr", "--batch", "1"]
    assert exit_code(*told, "--iterations", "1", "--out", str(out)) == 0
    rows = json.loads(out.with_suffix(".json").read_text())["rows"]
    assert [row["attack"] for row in rows] == ["labels", "honest", "malicious", "head"]
    assert rows[2]["found"]["psnr"] > rows[2]["without"]["psnr"] + 10
    page = out.read_text()
    assert page.count("<img alt") == 6 and "LPIPS" not in page
    for title in ("MSE", "PSNR", "SSIM", "MS-SSIM", "Found by pixels", "Found by features"):
        assert f">{title}" in page
    assert "patches" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--attack", "psychic"], "--attack: got 'psychic', expected some of labels"),
        (["--batch", "0"], "--batch: got (0,)"),
        (["--batch", "9999"], "expected at least 10099"),
        (["--detail", "2"], "--detail: got 2.0"),
        (["--method", "knn"], "--method: got 'knn', which is solved from all images and has no gr"),
        (["--seeds", "0"], "--seeds: got none, expected at least 1"),
        (["--lr", "0"], "--lr: got 0.0, expected a number above 0"),
        (["--clip", "inf"], "--clip: got inf, expected a norm above 0"),
        (["--clip", "1", "--noise", "nan"], "--noise: got nan, expected a number from 0"),
        (["--out", "leak.json"], "expected the name of a page such as 'leak.html'"),
        (["--method", "rlr"], "method: got 'rlr', expected a known method. Did you mean rlrr"),
    ],
)
def test_bad_input_is_one_line(
    options: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code("audit", "leak", "--data", "demo:digits", "--method", "ssf", *options) == 2
    error = capsys.readouterr().err
    assert text in error and error.count("\n") == 1


@pytest.mark.parametrize("name", ["leak.html", "leak.json"])
def test_no_file_is_overwritten_unasked(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither the page nor the figures beside it; it is said before the work."""
    (tmp_path / name).write_text("mine")
    monkeypatch.setattr(leak, "audit_leak", lambda *given, **by_name: ([], []))
    words = ["audit", "leak", "--data", "demo:digits", "--method", "ssf"]
    words += ["--out", str(tmp_path / "leak.html")]
    assert exit_code(*words) == 2
    assert f"{name}', which exists, expected a new file" in capsys.readouterr().err
    assert (tmp_path / name).read_text() == "mine"
    assert exit_code(*words, "--force") == 0
    assert (tmp_path / name).read_text() != "mine"


def test_settings_need_an_attack() -> None:
    with pytest.raises(VituneError, match="--attack: got 'none'"):
        LeakSettings("demo:digits", "ssf", attacks=())
