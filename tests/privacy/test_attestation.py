"""Attestation: altered backbones are refused, honest ones pass, and the list is the user's own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from vitune.backbones import load_backbone
from vitune.cli import main
from vitune.errors import VituneError
from vitune.privacy import attest
from vitune.privacy.attestation import read_known, remember
from vitune.privacy.prepared import prepare

BUNDLED = "vitune/vit_micro_patch4_32"
IMAGES = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


def network() -> nn.Module:
    return load_backbone(BUNDLED, num_classes=10).model


def seen(model: nn.Module, images: Tensor | None = None) -> set[str]:
    return {one.test for one in attest(model, images=images).findings if not one.passed}


def bins(model: nn.Module, size: int) -> None:
    fc1 = model.get_submodule("blocks.3.mlp.fc1")
    length = fc1.weight.norm(dim=1).median()
    direction = nn.functional.normalize(torch.randn(128), dim=0)
    fc1.weight[:size] = length * (direction + 0.05 * torch.randn(size, 128) / 128**0.5)
    fc1.bias[:size] = length * torch.linspace(-1, 1, size)


def copying(model: nn.Module) -> None:
    model.get_submodule("blocks.2.mlp.fc1").weight[:8] = torch.eye(8, 128)


def averaging_head(model: nn.Module) -> None:
    qkv = model.get_submodule("blocks.0.attn.qkv")
    qkv.weight[:32], qkv.bias[:32] = 1e-9 * torch.randn(32, 128), 0


def shifted_biases(model: nn.Module) -> None:
    model.get_submodule("blocks.1.mlp.fc1").bias[:4] = 1e4


def constant_norm(model: nn.Module) -> None:
    model.get_submodule("blocks.4.norm2").weight.fill_(1.5)


def large_norm(model: nn.Module) -> None:
    model.get_submodule("blocks.4.norm2").weight[0] = 100.0


def long_row(model: nn.Module) -> None:
    model.get_submodule("blocks.4.mlp.fc2").weight[5] *= 40


def no_number(model: nn.Module) -> None:
    model.get_submodule("blocks.4.mlp.fc1").weight[5] = torch.nan


def infinity(model: nn.Module) -> None:
    model.get_parameter("pos_embed")[0, 3] = torch.inf


@pytest.mark.parametrize(
    ("change", "test"),
    [
        (no_number, "numbers"),
        (infinity, "numbers"),
        (lambda model: bins(model, 4), "parallel rows"),
        (lambda model: bins(model, 64), "parallel rows"),
        (copying, "copying rows"),
        (averaging_head, "attention to all alike"),
        (shifted_biases, "biases"),
        (constant_norm, "flat norms"),
        (large_norm, "large norms"),
        (long_row, "long rows"),
    ],
)
def test_a_change_in_one_block_is_seen(change: Callable[[nn.Module], None], test: str) -> None:
    torch.manual_seed(0)
    altered = network()
    with torch.no_grad():
        change(altered)
    assert test in seen(altered, IMAGES)


def test_honest_backbones_pass_and_prepared_ones_do_not() -> None:
    honest = network()
    assert seen(honest, IMAGES) == set()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in honest.parameters():
            parameter.mul_(1 + 0.02 * torch.randn_like(parameter))
    assert seen(honest, IMAGES) == set()
    assert seen(honest.half().float(), IMAGES) == set()
    prepare(honest, IMAGES.repeat(4, 1, 1, 1), copies=True)
    assert {"parallel rows", "empty rows", "flat norms", "copying rows"} <= seen(honest)
    assert "attention to oneself" in seen(honest, IMAGES)


def test_features_that_tell_nothing_are_seen() -> None:
    labels = torch.arange(32) % 2
    images = 0.3 * torch.randn(32, 3, 32, 32) + (2.0 * labels - 1)[:, None, None, None]
    headless: Any = network()
    headless.reset_classifier(0)
    for model in (network(), headless):
        good = attest(model, images=images, labels=labels)
        assert next(one for one in good.findings if one.test == "clean accuracy").passed
    blind = network()
    with torch.no_grad():
        blind.get_submodule("patch_embed.proj").weight.zero_()
    found = attest(blind, images=images + torch.randn_like(images), labels=labels)
    spoilt = next(one for one in found.findings if one.test == "clean accuracy")
    assert not spoilt.passed and " % by features, in " in spoilt.saw


def test_attention_that_cannot_be_looked_at_is_not_said_to_be_fine() -> None:
    for model, looked in ((VisionTransformer(32, 8, 1, 2, 32, 64), False), (network(), True)):
        found = [one for one in attest(model, images=IMAGES).findings if "attention" in one.test]
        assert [one.looked for one in found] == [looked] * 2
        assert all(one.saw.startswith("not tested") is not looked for one in found)


def test_the_list_is_kept_and_asked(tmp_path: Path) -> None:
    listed = tmp_path / "deep" / "known.json"
    own = attest(network()).fingerprint
    assert read_known(listed) == {}
    remember("mine", own, listed)
    remember("mine", own, listed)
    assert read_known(listed) == {"mine": own}
    with pytest.raises(VituneError, match="--remember: got 'mine', which is v1-"):
        remember("mine", "v1-0", listed)
    known = read_known(listed)
    assert "'mine' of your list" in attest(network(), known=known).findings[0].saw
    assert attest(network(), known=known, reference="mine").passed
    assert not attest(network(), reference="v1-0000000000000000").passed
    with pytest.raises(VituneError, match="--reference: got 'mime', expected a name"):
        attest(network(), known=known, reference="mime")
    listed.write_text("[1]")
    with pytest.raises(VituneError, match="--known: got .*, expected a JSON file"):  # noqa: RUF043
        read_known(listed)


def test_the_verb_passes_the_bundled_and_refuses_an_altered_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listed, file = tmp_path / "known.json", tmp_path / "altered.safetensors"
    told = ["audit", "backbone", BUNDLED, "--known", str(listed)]
    for options, code in ((["--remember", "mine"], 0), (["--reference", "mine"], 0)):
        with pytest.raises(SystemExit) as stopped:
            main([*told, *options])
        assert stopped.value.code == code
    assert list(json.loads(listed.read_text())) == ["mine"]
    altered = load_backbone(BUNDLED).model
    with torch.no_grad():
        bins(altered, 4)
    save_file(altered.state_dict(), file)
    with pytest.raises(SystemExit) as stopped:
        main(["audit", "backbone", str(file), "--backbone", BUNDLED, "--known", str(listed)])
    shown = capsys.readouterr().out
    assert stopped.value.code == 1 and "SUSPICIOUS" in shown and "Do not train" in shown
