"""`vitune export` as a user calls it: the file, its card, its runner, and what is refused."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image

from vitune.cli import run
from vitune.data import UsedImages, load_splits
from vitune.errors import VituneError
from vitune.export import find_target, verify
from vitune.export.deployed import Deployed
from vitune.export.export_images import export_images
from vitune.export.standalone import Model, softmax
from vitune.inference import held_out, load_run
from vitune.preprocessing import Preprocessing

Refused = Callable[..., str]
CLASSES = ("dark", "light")
EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "browser"


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
    assert "1 threads" not in page and "each, taking turns." in page
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


def test_a_class_with_one_image_is_no_obstacle(
    photos: Path, backbone: str, tmp_path: Path, refused: Refused
) -> None:
    """Training held nothing of it out: what the file is checked on is what the run was."""
    for name, most in (("few", 8), ("one", 1)):
        for label, number in (("dark", most), ("light", most), ("other", 1)):
            (tmp_path / name / label).mkdir(parents=True)
            for index in range(number):
                source = photos / ("light" if label == "other" else label) / f"{index}.png"
                pixels = np.asarray(Image.open(source)) // (2 if label == "other" else 1)
                Image.fromarray(pixels).save(tmp_path / name / label / f"{index}.png")
        words = ["--data", str(tmp_path / name), "--method", "linear", "--backbone", backbone]
        assert run(["train", *words, "--out", str(tmp_path / f"{name}-run")]) == 0
    few, one, out = tmp_path / "few-run", tmp_path / "one-run", tmp_path / "out"
    assert run(["export", str(few), "--to", "pt2", "--out", str(out)]) == 0
    held_out = json.loads((few / "summary.json").read_text())["num_val"]
    assert card_of(out)["images"]["num_checked"] == held_out > 0
    for subject in (few, one):
        words = ["--at", "1", "--epochs", "1", "--out", str(tmp_path / f"{subject.name}-exits")]
        assert run(["exits", "add", str(subject), *words]) == 0
    told = refused("export", one, "--to", "pt2", "--out", tmp_path / "another")
    assert "in which every class has one image, expected validation images" in told


def test_no_images_are_called_validation_that_trained_the_network(
    photos: Path, backbone: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refitted, out = tmp_path / "run", tmp_path / "out"
    words = ["--data", str(photos), "--method", "linear", "--backbone", backbone, "--refit"]
    assert run(["train", *words, "--out", str(refitted)]) == 0
    assert run(["export", str(refitted), "--to", "pt2", "--out", str(out)]) == 0
    assert card_of(out)["images"]["were_trained_on"]
    page = (out / "README.md").read_text()
    assert "training images of" in page and "validation images" not in page
    capsys.readouterr()
    assert run(["exits", "add", str(refitted), "--at", "1", "--out", str(tmp_path / "exits")]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "accuracy on images that trained the network, but not" in told
    assert "validation accuracy" not in told


def test_a_folder_that_has_grown_gives_no_training_images_to_check_on(
    trained: Path, photos: Path, tmp_path: Path
) -> None:
    """Other images are then held out of it than in training, most of which trained the run."""
    used, grown = UsedImages.read(trained / "images.npz"), tmp_path / "grown"
    shutil.copytree(photos, grown)
    for path in photos.glob("*/0.png"):
        with Image.open(path) as image:
            image.rotate(180).save(grown / path.parent.name / "turned.png")
    subject = load_run(trained)
    for data, were_trained_on in ((grown, False), (tmp_path / "seen", True)):
        if were_trained_on:
            for path in used.tables["train"].paths:
                place = data / Path(path).parent.name / Path(path).name
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, place)
        found = export_images(subject, str(data))
        did = used.took_part([row.tobytes() for row in found.checked.content_digests])
        assert found.were_trained_on is were_trained_on
        assert bool(did["train"].any()) is were_trained_on


def test_a_file_is_checked_on_no_image_that_trained_the_network(
    trained: Path, photos: Path, tmp_path: Path
) -> None:
    """The hold-out is drawn again, and one file less makes it another one."""
    others = tmp_path / "others"
    shutil.copytree(photos, others)
    (others / CLASSES[0] / "1.png").rename(others / CLASSES[1] / "moved.png")
    prepared = load_run(trained).card.preprocessing
    drawn = load_splits(others, prepared, seed=0, include=("trainval",)).trainval
    assert drawn is not None and len(drawn) == 20
    with pytest.warns(UserWarning, match=r"moved.png', was in 'dark'\. The labels of today"):
        kept, has_trained = held_out(trained, drawn, otherwise=False)
    assert len(kept) == 4 and not has_trained
    seen = drawn.subset([i for i, path in enumerate(drawn.paths) if path not in kept.paths][:-1])
    assert "moved.png" not in " ".join(seen.paths)
    assert held_out(trained, seen, otherwise=False) == (seen, True)


def test_the_file_says_by_itself_what_it_is(exported: Path, trained: Path) -> None:
    session = onnxruntime.InferenceSession(exported / "model.onnx")
    told = session.get_modelmeta().custom_metadata_map
    assert json.loads(told["vitune.classes"]) == list(CLASSES)
    card = load_run(trained).card
    assert json.loads(told["vitune.fingerprint"]) == card.fingerprint
    assert json.loads(told["vitune.temperature"]) == card.temperature != 1
    assert Preprocessing.from_dict(json.loads(told["vitune.preprocessing"])) == card.preprocessing
    assert json.loads(told["vitune.exits"]) is None
    (given,) = session.get_inputs()
    assert (given.name, given.shape, given.type) == (
        "images",
        ["batch", 32, 32, 3],
        "tensor(uint8)",
    )


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


def compared(found: np.ndarray, wanted: np.ndarray, temperature: float = 1.0) -> verify.Agreement:
    """A file's logits, made probabilities at temperature 1, against a run of `temperature`."""
    expected = verify.Expected(wanted, None, softmax(wanted / temperature))
    return verify.compared(found, expected, np.zeros(2, int), softmax(found))


def test_a_probability_that_differs_counts_though_the_logits_agree() -> None:
    logits = np.array([[2.0, 0.0], [0.0, 3.0]], np.float32)
    assert verify._too_far({1: compared(logits, logits)}) == ""
    cooler = compared(logits, logits, temperature=2.0)
    assert cooler.difference == 0
    assert cooler.probability == pytest.approx(0.1497, abs=1e-4)  # 1 / (1 + e^-2) - 1 / (1 + e^-1)
    assert "probabilities at batch 1 that differ by 1.5e-01" in verify._too_far({1: cooler})


def test_a_class_that_differs_counts_unless_pytorch_is_undecided() -> None:
    wanted = np.array([[1.0, 0.0], [1.0, 0.999999]], np.float32)
    found = np.array([[1.0, 0.0], [0.999999, 1.0]], np.float32)
    same = compared(found, wanted)
    assert (same.top1, same.ties) == (0.5, 1)
    assert verify._too_far({1: same}) == ""
    other = compared(found, found[::-1].copy())
    assert "logits at batch 1" in verify._too_far({1: other})
    assert "1 of 2 images at batch 3 of another class" in verify._too_far(
        {3: verify.Agreement(2, 0.0, 0.0, 0.5)}
    )
    elsewhere = replace(same, num_images=50, top1=1.0, ties=0, same_exit=0.96)
    assert "2 of 50 images at batch 8 that leave at another exit" in verify._too_far({8: elsewhere})
    assert verify._too_far({8: replace(elsewhere, same_exit=0.98)}) == ""
    broken = compared(found * np.nan, wanted)
    assert "differ by inf" in verify._too_far({8: broken})


def test_pt2_says_that_its_images_do_not_leave_early(with_exits: Path, tmp_path: Path) -> None:
    words = ["export", str(with_exits), "--to", "pt2", "--out", str(tmp_path / "out")]
    with pytest.warns(UserWarning, match="--to pt2 has no exits: every image runs to the end"):
        assert run(words) == 0
    assert json.loads((tmp_path / "out" / "export.json").read_text())["exits"] is None


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
    with pytest.raises(VituneError, match="--to: got None, expected one of onnx, pt2, openvino"):
        find_target(None)  # type: ignore[arg-type]
    alone = shutil.copytree(trained / "adapter", tmp_path / "alone" / "adapter")
    told = refused("export", alone, "--to", "pt2", "--out", out)
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


def test_8_bits_are_8_bits_in_openvino_too(trained: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="needs vitune[openvino], a wheel of 180 MB unpacked")
    out = tmp_path / "out"
    assert run(["export", str(trained), "--to", "openvino", "--int8", "--out", str(out)]) == 0
    tries = card_of(out)["tries"]
    assert tries.keys() == {"float32", "static"}
    assert tries["static"]["bytes"] < tries["float32"]["bytes"] / 1.5


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
