"""`vitune export` as a user calls it: the file, its card, its runner, and what is refused."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

from vitune.cli import run
from vitune.data import Decoding, decode_image
from vitune.export import verify
from vitune.export.deployed import Deployed
from vitune.export.standalone import Model
from vitune.inference import load_run
from vitune.preprocessing import PIXEL_STATS, Preprocessing

Refused = Callable[..., str]
CLASSES = ("dark", "light")
EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "browser"


def paint(folder: Path, per_class: int, seed: int) -> Path:
    """Images of no two sizes alike, none square."""
    generator = np.random.default_rng(seed)
    for level, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for index in range(per_class):
            pixels = generator.integers(0, 128, (30 + 3 * index, 50 + index, 3), dtype=np.uint8)
            Image.fromarray(pixels + np.uint8(100 * level)).save(folder / name / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return paint(tmp_path_factory.mktemp("photos"), 10, seed=0)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A ViT of two blocks: every block more is a second more in ONNX's exporter."""
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    size = {"hidden_size": 192, "num_hidden_layers": 2, "num_attention_heads": 2}
    size |= {"intermediate_size": 384, "image_size": 32, "patch_size": 8}
    folder = tmp_path_factory.mktemp("backbone")
    ViTForImageClassification(ViTConfig(**size)).save_pretrained(folder)
    return f"hf:{folder}"


@pytest.fixture(scope="module")
def trained(photos: Path, backbone: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    words = ["--data", str(photos), "--epochs", "2", "--lr", "1e-2", "--head-init", "linear"]
    words += ["--backbone", backbone, "--batch-size", "8"]
    assert run(["train", *words, "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def exported(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exports") / "onnx"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify, "TIMED_SECONDS", 0.05)
        assert run(["export", str(trained), "--int8", "--out", str(out)]) == 0
    return out


@pytest.fixture(autouse=True)
def _short_timings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "TIMED_SECONDS", 0.05)


def card_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "export.json").read_text())
    return found


def test_the_folder_holds_the_file_its_card_and_a_runner(exported: Path) -> None:
    assert {path.name for path in exported.iterdir()} == {
        "model.onnx", "export.json", "README.md", "run.py",
    }  # fmt: skip
    card = card_of(exported)
    assert card["classes"] == list(CLASSES) and card["merged"] is True
    assert set(card["verification"]["by_batch"]) == {"1", "2", "3", "8"}
    assert [row["batch"] for row in card["latency"]] == [1, 8]
    page = (exported / "README.md").read_text()
    assert "(batch, 32, 32, 3)" in page and "What 8 bits cost" in page


def test_both_kinds_of_8_bits_are_tried_and_the_better_is_kept(exported: Path) -> None:
    card = card_of(exported)
    tries = card["tries"]
    assert set(tries) == {"float32", "static", "dynamic"}
    kept = card["precision"].removeprefix("int8 ")
    best = max(tries["static"]["accuracy"], tries["dynamic"]["accuracy"])
    assert tries[kept]["accuracy"] == best == card["verification"]["accuracy"]
    assert card["bytes"] == tries[kept]["bytes"] < tries["float32"]["bytes"] / 2
    assert tries["float32"]["top1_agreement"] == 1
    matrices = [
        tensor for tensor in onnx.load(exported / "model.onnx").graph.initializer
        if len(tensor.dims) == 2 and min(tensor.dims) > 1
    ]  # fmt: skip
    eight = [tensor for tensor in matrices if tensor.data_type == onnx.TensorProto.UINT8]
    # All products within the blocks but the first q, k and v; not the classifier.
    assert len(eight) == 6 * 2 - 3
    # Either kind may be kept, and they store the classifier one way round and the other.
    in_float = sorted(sorted(matrix.dims) for matrix in matrices if matrix not in eight)
    assert in_float == [[len(CLASSES), 192]] + [[192, 192]] * 3


def test_the_file_says_by_itself_what_it_is(exported: Path, trained: Path) -> None:
    session = onnxruntime.InferenceSession(exported / "model.onnx")
    told = session.get_modelmeta().custom_metadata_map
    assert json.loads(told["vitune.classes"]) == list(CLASSES)
    card = load_run(trained).card
    assert json.loads(told["vitune.fingerprint"]) == card.fingerprint
    assert Preprocessing.from_dict(json.loads(told["vitune.preprocessing"])) == card.preprocessing
    assert json.loads(told["vitune.exits"]) is None
    (given,) = session.get_inputs()
    assert (given.name, given.shape, given.type) == (
        "images",
        ["batch", 32, 32, 3],
        "tensor(uint8)",
    )


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("mode", ["squash", "center"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "lanczos", "nearest"])
def test_the_runner_prepares_an_image_as_vitune_does(
    exported: Path, tmp_path: Path, mode: str, interpolation: str, channels: int
) -> None:
    model = Model.__new__(Model)
    rule = Preprocessing((24, 36), *PIXEL_STATS["half"], interpolation, 0.8, mode)
    model.card = {"preprocessing": json.loads(json.dumps(rule.to_dict()))}
    generator = np.random.default_rng(0)
    for height, width in ((41, 30), (30, 41), (24, 36), (9, 70), (200, 31)):
        pixels = generator.integers(0, 256, (height, width, channels), dtype=np.uint8)
        image = Image.fromarray(pixels)
        exif = image.getexif()
        exif[274] = 6  # turned by a quarter
        image.save(tmp_path / "a.png", exif=exif)
        with Image.open(tmp_path / "a.png") as opened:
            found = model.prepare(opened)
        expected, _ = decode_image(tmp_path / "a.png", Decoding(rule))
        assert np.array_equal(found, expected)


def test_the_runner_needs_no_vitune(exported: Path, photos: Path) -> None:
    """It runs in a Python that refuses to import vitune or torch, and gives predict's classes."""
    images = sorted(photos.glob("*/1*.png"))
    code = (
        "import sys, runpy\n"
        "sys.modules['vitune'] = sys.modules['torch'] = None\n"
        f"sys.argv = ['run.py', *{[str(path) for path in images]!r}]\n"
        f"runpy.run_path({str(exported / 'run.py')!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert [row[0] for row in rows] == [str(path) for path in images]
    assert {row[1] for row in rows} <= set(CLASSES)
    assert all(0.5 <= float(row[2]) <= 1 for row in rows)


def test_a_file_that_computes_something_else_is_not_left_behind(
    trained: Path, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = Deployed.pixels
    monkeypatch.setattr(Deployed, "pixels", lambda self, images: exact(self, images) * 1.01)
    told = refused("export", trained, "--to", "pt2", "--out", tmp_path / "out")
    assert "logits at batch 1 that differ by" in told and "Nothing was written" in told
    assert list(tmp_path.iterdir()) == []


def test_a_lossy_8_bit_file_is_refused() -> None:
    assert verify._too_lossy(0.90, 0.881, 1000) == ""
    assert "87.0 % instead of 90.0 %" in verify._too_lossy(0.90, 0.87, 1000)
    assert verify._too_lossy(0.85, 0.825, 40) == "" != verify._too_lossy(0.85, 0.80, 40)


def test_a_class_that_differs_counts_unless_pytorch_is_undecided() -> None:
    wanted = np.array([[1.0, 0.0], [1.0, 0.999999]], np.float32)
    found = np.array([[1.0, 0.0], [0.999999, 1.0]], np.float32)
    same = verify.compared(found, verify.Expected(wanted, None), np.zeros(2, int))
    assert (same.top1, same.ties) == (0.5, 1)
    assert verify._too_far({1: same}) == ""
    other = verify.compared(found, verify.Expected(found[::-1], None), np.zeros(2, int))
    assert "logits at batch 1" in verify._too_far({1: other})
    assert "1 of 2 images at batch 3 of another class" in verify._too_far(
        {3: verify.Agreement(2, 0.0, 0.0, 0.5)}
    )
    broken = verify.compared(found * np.nan, verify.Expected(wanted, None), np.zeros(2, int))
    assert "differ by inf" in verify._too_far({8: broken})


def test_a_full_disk_leaves_nothing_half_written(
    trained: Path, small_disk: Path, refused: Refused
) -> None:
    told = refused("export", trained, "--to", "pt2", "--out", small_disk / "out")
    assert "No space left on device" in told
    assert list(small_disk.iterdir()) == []


def test_bad_words(trained: Path, tmp_path: Path, refused: Refused) -> None:
    out = tmp_path / "out"
    told = refused("export", trained, "--to", "onxn", "--out", out)
    assert (
        "--to: got 'onxn', expected one of onnx, pt2, openvino. Did you mean onnx or openvino?"
        in told
    )
    told = refused("export", trained, "--to", "pt2", "--int8", "--out", out)
    assert "--int8: got --to pt2, expected one of onnx, openvino." in told
    assert "expected a new folder" in refused("export", trained, "--out", trained)
    assert "expected an existing run folder" in refused("export", tmp_path / "no", "--out", out)
    told = refused("export", trained / "adapter", "--to", "pt2", "--out", out)
    assert "--data: got nothing" in told
    assert not out.exists()


def test_a_runtime_that_is_not_installed_names_its_extra(
    trained: Path, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = importlib.util.find_spec
    missing = {"onnxruntime", "openvino"}
    monkeypatch.setattr(
        "vitune.extras.find_spec",
        lambda name: None if name in missing else there(name),
    )
    told = refused("export", trained, "--out", tmp_path / "out")
    assert "without onnxruntime, expected it to be installed." in told
    assert "Run: pip install 'vitune[export]'" in told
    told = refused("export", trained, "--to", "openvino", "--out", tmp_path / "out")
    assert "pip install 'vitune[openvino]'" in told


@pytest.fixture(scope="module")
def with_exits(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run with an exit at which about half of the images leave."""
    root = tmp_path_factory.mktemp("exits")
    words = ["--at", "1", "--epochs", "20", "--out", str(root / "run")]
    assert run(["exits", "add", str(trained), *words]) == 0
    others = paint(root / "held_out", 20, seed=1)
    words = ["--data", str(others), "--budget", "0.7"]
    assert run(["exits", "calibrate", str(root / "run"), *words]) == 0
    return root / "run"


def test_exits_become_one_graph_per_segment(
    with_exits: Path, tmp_path: Path, refused: Refused
) -> None:
    out = tmp_path / "out"
    assert run(["export", str(with_exits), "--out", str(out)]) == 0
    card = card_of(out)
    assert card["graphs"] == ["segment-0.onnx", "segment-1.onnx"]
    assert card["exits"]["after"] == [1] and len(card["exits"]["thresholds"]) == 1
    told = onnx.load(out / "segment-1.onnx").metadata_props
    assert json.loads({e.key: e.value for e in told}["vitune.exits"]) == card["exits"]
    # Neither segment holds the other's blocks: both together are as large as the network.
    sizes = [(out / name).stat().st_size for name in card["graphs"]]
    adapter = load_run(with_exits)
    parameters = 4 * sum(value.numel() for value in adapter.model.parameters())
    assert sum(sizes) < 1.3 * parameters

    images = np.random.default_rng(5).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
    images //= np.linspace(1, 3, 40).astype(np.uint8)[:, None, None, None]
    model = Model(out)
    expected = verify.pytorch_answer(adapter, images)
    np.testing.assert_allclose(model.logits(images), expected.logits, atol=1e-4)
    assert np.array_equal(model.left, expected.left) and set(model.left) == {0, 1}
    told = refused("export", with_exits, "--int8", "--out", tmp_path / "int8")
    assert "thresholds were chosen for float32" in told


def test_openvino_runs_the_same_network(trained: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="needs vitune[openvino], a wheel of 180 MB unpacked")
    out = tmp_path / "out"
    assert run(["export", str(trained), "--to", "openvino", "--out", str(out)]) == 0
    assert {path.name for path in out.iterdir()} >= {"model.xml", "model.bin", "run.py"}
    assert card_of(out)["verification"]["whole"]["top1"] == 1
    assert "<vitune>" in (out / "model.xml").read_text()


@pytest.fixture(scope="module")
def check() -> ModuleType:
    spec = importlib.util.spec_from_file_location("browser_check", EXAMPLE / "check.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if module.browser() is None:
        pytest.skip("needs Chromium, which this machine does not have")
    if not module.RUNTIME.is_dir():
        pytest.skip(f"needs ONNX Runtime for the web: cd {EXAMPLE} && npm ci --ignore-scripts")
    return module


def test_dropped_images_get_the_classes_of_the_runner(
    check: ModuleType, exported: Path, tmp_path: Path
) -> None:
    generator = np.random.default_rng(3)
    images = []
    for name, height, width in (("wide", 37, 90), ("square", 32, 32), ("large", 200, 333)):
        squares = generator.integers(0, 256, (-(-height // 8), -(-width // 8), 3), dtype=np.uint8)
        pixels = squares.repeat(8, 0).repeat(8, 1)[:height, :width]
        images.append(tmp_path / f"{name} #1.png")
        Image.fromarray(pixels).save(images[-1])
    (tmp_path / "text.png").write_text("no image")
    found = check.Check(exported, [*images, tmp_path / "text.png"]).run()["found"]
    assert "error" in found["text.png"]
    for name, chances in check.expected(exported, images).items():
        shown = {entry["name"]: entry["probability"] for entry in found[name]["classes"]}
        assert shown == pytest.approx(chances, abs=1e-4)
        assert found[name]["shown"][0] == max(chances, key=lambda key: chances[key])
