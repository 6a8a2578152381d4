"""Pushing and loading by way of the hub, with the real client and a stand-in for its server."""

from __future__ import annotations

import json
import re
import socket
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import huggingface_hub.hf_api
import numpy as np
import pytest
import timm
import torch
import yaml
from hub_server import TOKEN, Hub, Repository, serving
from peft import PeftModel
from PIL import Image
from safetensors.torch import save

from vitune import load_backbone
from vitune.backbones import BUNDLED, logits_of, preferred_backbone
from vitune.backbones.preferred import KNOWN_GOOD, SMALLEST
from vitune.cli import run
from vitune.hub import local_copy
from vitune.inference import load_run

Refused = Callable[..., str]
WEIGHTS = "model.safetensors"
LICENCES = ["--license", "apache-2.0", "--data-license", "cc0-1.0"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("secret-folder")
    generator = np.random.default_rng(0)
    for level, name in enumerate(("dark", "light")):
        (root / "photos" / name).mkdir(parents=True)
        for index in range(6):
            pixels = generator.integers(0, 128, (32, 32, 3), dtype=np.uint8) + np.uint8(100 * level)
            Image.fromarray(pixels).save(root / "photos" / name / f"{index}.png")
    words = ["--data", str(root / "photos"), "--epochs", "1", "--batch-size", "4"]
    assert run(["train", *words, "--lr", "1e-2", "--out", str(root / "run")]) == 0
    return root / "run"


@pytest.fixture(scope="module")
def server() -> Iterator[Hub]:
    with serving() as hub:
        yield hub


@pytest.fixture(autouse=True)
def hub(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """The hub that huggingface_hub talks to: as with HF_ENDPOINT, but it is imported already."""
    constants = huggingface_hub.constants
    for name, value in (
        ("ENDPOINT", server.url),
        ("HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"),
        ("HF_HUB_OFFLINE", False),
        ("HF_HUB_DISABLE_XET", True),
        ("HF_HUB_CACHE", str(tmp_path / "cache")),
        ("HF_TOKEN_PATH", str(tmp_path / "token")),
    ):
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", server.url)
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    server.repositories.clear()
    server.requests.clear()
    return server


def pushed(trained: Path, hub: Hub, *words: str) -> dict[str, bytes]:
    assert run(["push", str(trained), "ada/tones", *LICENCES, *words]) == 0
    found = hub.repositories["ada/tones"]
    return found.commits[found.head]


def test_what_is_pushed_is_what_is_loaded(
    trained: Path, hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = pushed(trained, hub)
    assert set(files) == {
        "README.md", "adapter_config.json", "adapter_model.safetensors", "vitune.json",
    }  # fmt: skip
    adapter = trained / "adapter"
    for name in set(files) - {"README.md"}:
        assert files[name] == (adapter / name).read_bytes()
    images = torch.randn(3, 3, 32, 32)
    here, there = load_run(trained), load_run("hf:ada/tones")
    with torch.inference_mode():
        assert torch.equal(here.model(images), there.model(images))
    assert there.classes == ("dark", "light")

    photos = trained.parent / "photos"
    for name, out in ((trained, "here.csv"), ("hf:ada/tones", "there.csv")):
        assert run(["predict", str(name), str(photos), "--out", str(tmp_path / out)]) == 0
    assert (tmp_path / "here.csv").read_text() == (tmp_path / "there.csv").read_text()
    assert run(["merge", "hf:ada/tones", "--out", str(tmp_path / "merged")]) == 0
    assert run(["evaluate", "hf:ada/tones", "--data", str(photos)]) == 0
    capsys.readouterr()
    assert run(["info", "hf:ada/tones", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["classes"] == ["dark", "light"]
    assert run(["push", str(tmp_path / "merged"), "ada/merged", *LICENCES]) == 0
    assert not isinstance(load_run("hf:ada/merged").model, PeftModel)


def test_without_a_named_backbone_the_hub_is_asked(
    trained: Path, hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A small one without a GPU; the bundled one where the hub has none, refuses or is offline."""
    photos = str(trained.parent / "photos")
    assert preferred_backbone(data=photos, device="cpu") == BUNDLED
    weights = save(timm.create_model(SMALLEST, pretrained=False).state_dict())
    hub.repositories[f"timm/{SMALLEST}"] = Repository(commits={"0" * 40: {WEIGHTS: weights}})
    words = ["--data", photos, "--method", "linear", "--batch-size", "4", "--device", "cpu"]
    assert run(["train", *words, "--out", str(tmp_path / "run")]) == 0
    assert f"backbone {SMALLEST}, found on the hub" in capsys.readouterr().out
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["backbone"] == SMALLEST
    asked = f"HEAD /timm/{SMALLEST}/resolve/main/{WEIGHTS}"
    assert asked in hub.requests
    hub.requests.clear()
    assert preferred_backbone(data=photos, device="cpu") == SMALLEST and not hub.requests
    large = KNOWN_GOOD[0]
    assert preferred_backbone(data=photos, device="cuda", cache=tmp_path / "none") == BUNDLED
    assert hub.requests == [f"HEAD /timm/{large}/resolve/main/{WEIGHTS}"]


def test_plain_peft_loads_it(trained: Path, hub: Hub) -> None:
    pushed(trained, hub)
    backbone = load_backbone("vitune/vit_micro_patch4_32", num_classes=2)
    model = PeftModel.from_pretrained(backbone.model, "ada/tones").eval()
    images = torch.randn(3, 3, 32, 32)
    with torch.inference_mode():
        expected = load_run(trained, merge=False).model(images)
        torch.testing.assert_close(logits_of(model(images)), expected)


def test_the_code_on_the_page_gives_the_probabilities_of_predict(
    trained: Path, hub: Hub, tmp_path: Path
) -> None:
    """At the run's own image size, with its merged tokens and its temperature."""
    words = ["--data", str(trained.parent / "photos"), "--epochs", "1", "--start", "plain"]
    words += ["--image-size", "48", "--tokens", "merge:0.5", "--lr", "1e-2"]
    assert run(["train", *words, "--out", str(tmp_path / "run")]) == 0
    page = pushed(tmp_path / "run", hub)["README.md"].decode()
    assert "- tokens: merge:0.5\n" in page
    _, code, rest = re.split(r"With plain PEFT.*:\n|Input: ", page)
    names: dict[str, Any] = {}
    exec(textwrap.dedent(code), names)  # the page's own
    temperature = float(re.findall("the temperature (.*) before the softmax", rest)[0])
    loaded = load_run(tmp_path / "run")
    assert temperature == pytest.approx(loaded.card.temperature, rel=1e-5) != 1
    images = torch.randn(3, 3, 48, 48)
    with torch.inference_mode():
        found = logits_of(names["model"](images)) / temperature
        expected = loaded.outcome(images).tempered(loaded.card.temperature)
    torch.testing.assert_close(found.softmax(-1), expected.softmax(-1), atol=1e-4, rtol=0)


def test_the_page_says_what_it_is_and_keeps_paths_at_home(trained: Path, hub: Hub) -> None:
    files = pushed(trained, hub)
    page = files["README.md"].decode()
    _, front, body = page.split("---\n", 2)
    head = yaml.safe_load(front)
    assert head["license"] == "apache-2.0" and head["library_name"] == "peft"
    summary = json.loads((trained / "summary.json").read_text())
    assert f"| validation | 2 | {100 * summary['reported']['val_accuracy']:.2f} % |" in body
    fingerprint = json.loads(files["vitune.json"])["fingerprint"]
    for text in (fingerprint, "- lr: 0.01", "- epochs: 1", "- seed: 0", "cc0-1.0", "`dark`"):
        assert text in body, text
    assert not any(b"secret-folder" in data for data in files.values())


def test_a_second_push_is_a_second_commit(trained: Path, hub: Hub) -> None:
    pushed(trained, hub, "--private")
    found = hub.repositories["ada/tones"]
    first, found.commits[found.head]["README.md"] = found.head, b"edited by hand"
    pushed(trained, hub)
    assert found.private and found.head != first and len(found.commits) == 2
    assert (local_copy(f"hf:ada/tones@{first}") / "README.md").read_text() == "edited by hand"
    assert (local_copy("hf:ada/tones") / "README.md").read_text() != "edited by hand"


def test_only_json_text_and_safetensors_are_downloaded(trained: Path, hub: Hub) -> None:
    files = pushed(trained, hub)
    files["pytorch_model.bin"] = files["adapter_model.bin"] = files["evil.py"] = b"pickle"
    folder = local_copy("hf:ada/tones")
    assert {path.name for path in folder.iterdir()} == {
        "README.md", "adapter_config.json", "adapter_model.safetensors", "vitune.json",
    }  # fmt: skip
    assert not any(name in asked for asked in hub.requests for name in (".bin", ".py"))


def test_a_copy_is_used_while_the_hub_is_away(
    trained: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    pushed(trained, hub)
    folder = local_copy("hf:ada/tones")
    monkeypatch.setenv("HF_ENDPOINT", nobody())
    assert local_copy("hf:ada/tones") == folder


def nobody() -> str:
    """An address at which nothing listens."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{one.getsockname()[1]}"


def test_what_cannot_be_had_is_one_line(
    trained: Path, hub: Hub, refused: Refused, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    photos = trained.parent / "photos"
    told = refused("predict", "hf:ada/nothing", photos)
    assert "hub: got 'ada/nothing', which is not there or is private" in told
    hub.repositories["ada/empty"] = Repository(commits={"0" * 40: {}})
    told = refused("predict", "hf:ada/empty", photos)
    assert "hub: got 'ada/empty' without vitune.json" in told
    told = refused("predict", "hf:ada/empty@v9", photos)
    assert "hub: got a revision that 'ada/empty' does not have" in told
    assert "expected user/name" in refused("predict", "hf:a/b/c", photos)
    monkeypatch.setenv("HF_ENDPOINT", nobody())
    told = refused("predict", "hf:ada/other", photos)
    assert "hub: got no connection for 'ada/other'" in told
    told = refused("push", trained, "ada/tones", *LICENCES)
    assert "hub: got no connection for 'ada/tones'" in told
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    told = refused("predict", "hf:ada/other", photos)
    assert "hub: got HF_HUB_OFFLINE=1, with which 'ada/other'" in told and "(" not in told


def test_what_cannot_be_pushed_is_one_line(
    trained: Path, hub: Hub, refused: Refused, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told = refused("push", trained, "ada/tones", "--license", "mit")
    assert "--data-license: got nothing, expected the licence of the images" in told
    assert "--license: got nothing" in refused("push", trained, "ada/tones")
    assert "without an adapter" in refused("push", tmp_path, "ada/x", *LICENCES)
    told = refused("push", trained, "bob/tones", *LICENCES)
    assert "hub: got status 403 for 'bob/tones'" in told and "Use a token" in told
    monkeypatch.setenv("HF_TOKEN", "hf_another")
    assert "status 401" in refused("push", trained, "ada/tones", *LICENCES)
    monkeypatch.delenv("HF_TOKEN")
    told = refused("push", trained, "ada/tones", *LICENCES)
    assert "hub: got no token, expected one that may write to 'ada/tones'" in told
    assert hub.repositories == {}


def test_other_paths_stay_as_they_are(tmp_path: Path) -> None:
    assert local_copy(tmp_path) == tmp_path
