"""The backbone of a run that names none, with a cache that was made up."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
from huggingface_hub import HfFileMetadata, constants
from safetensors.torch import save_file

from vitune.backbones import load_backbone, notice_of, preferred_backbone
from vitune.backbones.preferred import BUNDLED, KNOWN_GOOD, is_cached, is_offered
from vitune.training import TrainConfig
from vitune.training.settling import with_backbone

TINY = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"


def put(cache: Path, name: str, whole: bool = True) -> None:
    """A file of weights in the hub's layout; random ones, as the architecture has them."""
    snapshot = cache / f"models--timm--{name}" / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    refs = cache / f"models--timm--{name}" / "refs"
    refs.mkdir()
    (refs / "main").write_text("a" * 40)
    if whole:
        model = timm.create_model(name, pretrained=False)
        save_file(model.state_dict(), snapshot / "model.safetensors")
    else:
        (snapshot / "model.safetensors").touch()


def test_known_names_are_timm_s() -> None:
    for name in KNOWN_GOOD:
        assert name in timm.list_pretrained(f"{name.partition('.')[0]}.*"), name


def test_an_empty_or_absent_cache_gives_the_bundled_one(tmp_path: Path) -> None:
    assert preferred_backbone(cache=tmp_path / "none") == BUNDLED
    assert preferred_backbone(cache=tmp_path) == BUNDLED
    put(tmp_path, TINY, whole=False)
    assert not is_cached(TINY, tmp_path) and preferred_backbone(cache=tmp_path) == BUNDLED


def test_a_good_one_in_the_cache_is_taken_and_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, TINY)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    config, notice = with_backbone(TrainConfig(data="photos"))
    assert config.backbone == TINY and "found in the hub's cache" in notice
    drawn, _ = with_backbone(TrainConfig(data="demo:digits"))
    assert drawn.backbone == BUNDLED
    assert load_backbone(config.backbone, num_classes=3).preprocessing.image_size == (224, 224)
    named, notice = with_backbone(TrainConfig(data="photos", backbone=BUNDLED))
    assert named.backbone == BUNDLED and "demonstration network of 1.2 M" in notice
    sized, _ = with_backbone(TrainConfig(data="photos", image_size=64))
    assert sized.backbone == BUNDLED


@pytest.mark.parametrize(("commit", "offered"), [("a" * 40, True), (None, False)])
def test_the_page_of_a_login_is_no_hub(
    monkeypatch: pytest.MonkeyPatch, commit: str | None, offered: bool
) -> None:
    answer = HfFileMetadata(commit, "etag", "https://somewhere", 22_900_000, None)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", lambda *_, **__: answer)
    assert is_offered(TINY) is offered


def test_the_notice_names_what_to_give_instead() -> None:
    assert f"--backbone {KNOWN_GOOD[0]}" in notice_of(BUNDLED, was_named=False)
    assert notice_of("vit_base_patch16_224", was_named=True) == ""
    assert notice_of(f"{BUNDLED}@weights.safetensors", was_named=True) == ""
