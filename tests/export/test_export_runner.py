"""run.py of an exported folder: the pixels, probabilities and messages of `vitune predict`."""

from __future__ import annotations

import csv
import io
import json
import os
import runpy
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitune.adapters import AdapterCard, adapter_folder
from vitune.cli import run
from vitune.data import Decoding, decode_image
from vitune.errors import DataError
from vitune.export.standalone import Model, softmax
from vitune.preprocessing import PIXEL_STATS, Preprocessing

Refused = Callable[..., str]
Subjects = Callable[[str], Path]
CLASSES = ("dark", "light")
RAMP = np.arange(64).reshape(8, 8)
MAX_SAMPLE_VALUE, SIGNED_MAX_SAMPLE_VALUE = 281, 341


def runner_rows(
    folder: Path, images: list[Path], capsys: pytest.CaptureFixture[str], status: int = 0
) -> tuple[list[list[str]], str]:
    """The columns that run.py prints for each image, and what it tells on stderr."""
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(sys, "argv", ["run.py", *map(str, images)])
        runpy.run_path(str(folder / "run.py"), run_name="__main__")
    assert ended.value.code == status
    out, told = capsys.readouterr()
    return [line.split("\t") for line in out.splitlines()], told


def predicted(subject: Path, images: Path, out: Path, *words: str) -> dict[str, tuple[str, float]]:
    """Class and probability by file name, as `vitune predict` writes them."""
    assert run(["predict", str(subject), str(images), *words, "--out", str(out)]) == 0
    with out.open(newline="") as lines:
        return {
            Path(row["path"]).name: (row["class_1"], float(row["probability_1"]))
            for row in csv.DictReader(lines)
        }


def deep_png(path: Path, pixels: np.ndarray) -> Path:
    """An RGB PNG of 16 bits, which Pillow reads but does not write; pixels (h, w, 3) uint16."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    height, width = pixels.shape[:2]
    parts = {
        b"IHDR": struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0),
        b"IDAT": zlib.compress(rows),
        b"IEND": b"",
    }
    written = b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in parts.items()
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + written)
    return path


def with_rule(rule: Preprocessing) -> Model:
    """A runner that only prepares images."""
    model = Model.__new__(Model)
    model.card = {"preprocessing": json.loads(json.dumps(rule.to_dict()))}
    return model


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("mode", ["squash", "center"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "lanczos", "nearest"])
def test_the_runner_prepares_an_image_as_vitune_does(
    tmp_path: Path, mode: str, interpolation: str, channels: int
) -> None:
    rule = Preprocessing((24, 36), *PIXEL_STATS["half"], interpolation, 0.8, mode)
    model = with_rule(rule)
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


def test_the_runner_reads_deep_greys_and_colours_as_vitune_does(tmp_path: Path) -> None:
    files = [deep_png(tmp_path / "colours.png", np.stack([RAMP * 1028] * 3, -1))]
    for name, values, tags in (
        ("16-bit.png", (RAMP * 1028).astype(np.uint16), None),
        ("16-bit.pgm", (RAMP * 1028).astype(np.uint16), None),
        ("16-bit.tiff", (RAMP * 1028).astype(np.uint16), {}),
        ("12 of 16.tiff", (RAMP * 64).astype(np.uint16), {MAX_SAMPLE_VALUE: 4095}),
        ("signed.tiff", (RAMP * 64).astype(np.int32), {SIGNED_MAX_SAMPLE_VALUE: 4095}),
    ):
        files.append(tmp_path / name)
        words = {} if tags is None else {"tiffinfo": tags}
        Image.fromarray(values).save(files[-1], **words)
    turned = Image.fromarray((RAMP * 1028).astype(np.uint16))
    exif = turned.getexif()
    exif[274] = 6
    turned.save(tmp_path / "turned.png", exif=exif)
    rule = Preprocessing((8, 8), *PIXEL_STATS["half"])
    for path in (*files, tmp_path / "turned.png"):
        with Image.open(path) as opened:
            found = with_rule(rule).prepare(opened)
        assert np.array_equal(found, decode_image(path, Decoding(rule))[0]), path.name
        expected = np.rot90(RAMP, -1) if path.stem == "turned" else RAMP
        assert np.array_equal(found[..., 0], expected * 4), path.name


def test_an_unreadable_image_is_told_and_the_others_are_classified(
    exported: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(np.ones((8, 8), np.float32)).save(tmp_path / "float.tiff")
    (tmp_path / "text.png").write_text("no image")
    bad = [tmp_path / name for name in ("float.tiff", "text.png", "absent.png")]
    first, last = photos / "dark" / "0.png", photos / "light" / "0.png"
    rows, told = runner_rows(exported, [first, *bad, last], capsys, status=2)
    assert [row[0] for row in rows] == [str(first), str(last)]
    lines = told.splitlines()
    assert len(lines) == 3
    for path, line in zip(bad, lines, strict=True):
        assert line.startswith(f"run.py: error: image {str(path)!r}: ")
    assert lines[0].endswith("floating-point pixels have no fixed range")


def test_the_runner_reads_what_vitune_reads_and_nothing_larger(
    exported: Path,
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Huge images are refused by their header, other formats by name: EPS starts Ghostscript."""
    Image.new("1", (20_000, 6_000)).save(tmp_path / "huge.png")
    photo = Image.open(photos / "dark" / "0.png")
    photo.save(tmp_path / "postscript.png", format="EPS")
    photo.save(tmp_path / "other.png", format="TGA")
    monkeypatch.setattr(Image.Image, "load", lambda _: pytest.fail("pixels were read"))
    rows, told = runner_rows(exported, sorted(tmp_path.iterdir()), capsys, status=2)
    assert rows == []
    huge, *others = told.splitlines()
    assert huge.endswith("got 120.0 megapixels, expected at most 100")
    assert len(others) == 2 and all("cannot identify image file" in line for line in others)


def test_a_thin_image_does_not_become_a_huge_one(tmp_path: Path) -> None:
    """Its shorter side is stretched to the network's, and the longer one with it."""
    rule = Preprocessing((224, 224), *PIXEL_STATS["half"], crop_mode="center")
    thin = Image.new("RGB", (20_000, 1))
    thin.save(tmp_path / "thin.png")
    with pytest.raises(DataError, match=r"1003\.5 megapixels, expected at most 100"):
        decode_image(tmp_path / "thin.png", Decoding(rule))
    with pytest.raises(ValueError, match=r"1003\.5 megapixels, expected at most 100"):
        with_rule(rule).prepare(thin)


def test_a_runner_without_images_or_network_says_so(
    exported: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        "images: got none, expected python run.py IMAGE" in runner_rows(exported, [], capsys, 2)[1]
    )
    damaged = shutil.copytree(exported, tmp_path / "damaged")
    (damaged / "model.onnx").write_bytes((exported / "model.onnx").read_bytes()[:1000])
    rows, told = runner_rows(damaged, [photos / "dark" / "0.png"], capsys, status=2)
    assert rows == [] and told.startswith("run.py: error: network: ") and told.count("\n") == 1


def test_the_runner_shows_odd_names_as_predict_does(
    exported: Path, photos: Path, tmp_path: Path
) -> None:
    image = tmp_path / os.fsdecode(b"caf\xe9.png")
    shutil.copyfile(photos / "dark" / "0.png", image)
    done = subprocess.run(
        [sys.executable, exported / "run.py", image], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(f"{tmp_path}/caf\\xe9.png\tdark\t")


def test_the_runner_prints_one_line_of_three_columns_whatever_the_names(
    exported: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And in any encoding: a console of Windows has a few hundred characters."""
    folder = shutil.copytree(exported, tmp_path / "copy")
    card = json.loads((folder / "export.json").read_text())
    (folder / "export.json").write_text(json.dumps({**card, "classes": ["a\tb\n手", "light"]}))
    image = shutil.copyfile(photos / "dark" / "0.png", tmp_path / "new\nline.png")
    output = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr(sys, "stdout", output)
    monkeypatch.setattr(sys, "argv", ["run.py", str(image)])
    with pytest.raises(SystemExit):
        runpy.run_path(str(folder / "run.py"), run_name="__main__")
    output.seek(0)
    (line,) = output.read().splitlines()
    assert line.startswith(f"{tmp_path}/new\\nline.png\ta\\tb\\n\\u624b\t")


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("run", ("--to", "onnx")),
        ("run", ("--to", "openvino")),
        ("adapter", ("--to", "pt2")),
        ("merged", ("--to", "pt2")),
        ("unmerged", ("--to", "pt2")),
        ("knn", ("--to", "pt2")),
        ("exits", ("--to", "onnx")),
        ("exits", ("--to", "pt2", "--exits", "full")),
    ],
)
def test_the_runner_gives_the_probabilities_of_predict(
    kind: str,
    words: tuple[str, ...],
    subjects: Subjects,
    photos: Path,
    doubtful: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if "openvino" in words:
        pytest.importorskip("openvino", reason="needs vitune[openvino], a wheel of 180 MB unpacked")
    subject, out = subjects(kind), tmp_path / "out"
    temperature = AdapterCard.read(adapter_folder(subject)).temperature
    assert abs(temperature - 1) > 0.1
    assert run(["export", str(subject), "--data", str(photos), *words, "--out", str(out)]) == 0
    card = json.loads((out / "export.json").read_text())
    assert card["temperature"] == temperature
    assert f"temperature {temperature:.6g}" in (out / "README.md").read_text()
    assert card["verification"]["whole"]["probability"] < 1e-4
    rows, _ = runner_rows(out, sorted(doubtful.iterdir()), capsys)
    expected = predicted(subject, doubtful, tmp_path / "p.csv", *words[2:])
    assert len(rows) == len(expected) == 12
    for path, name, probability in rows:
        wanted = expected[Path(path).name]
        assert name == wanted[0]
        assert float(probability) == pytest.approx(wanted[1], abs=2e-4)
    raw, left = without_temperature(out, doubtful)
    assert max(abs(float(row[2]) - one) for row, one in zip(rows, raw, strict=True)) > 0.01
    assert left == set(range(len(card["graphs"])))


def without_temperature(out: Path, folder: Path) -> tuple[list[float], set[int]]:
    """The largest uncalibrated probability of every image, and the exits at which they left."""
    model, found, left = Model(out), [], set()
    for path in sorted(folder.iterdir()):
        with Image.open(path) as image:
            found.append(softmax(model.logits(model.prepare(image)[None])).max())
        left.update(model.left.tolist())
    return found, left


def test_8_bits_are_calibrated_too(
    exported: Path,
    trained: Path,
    doubtful: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows, _ = runner_rows(exported, sorted(doubtful.iterdir()), capsys)
    expected = predicted(trained, doubtful, tmp_path / "p.csv")
    gaps = [abs(float(row[2]) - expected[Path(row[0]).name][1]) for row in rows]
    raw, _ = without_temperature(exported, doubtful)
    assert max(gaps) < 0.02 < max(raw) - max(float(row[2]) for row in rows)


def test_a_runner_without_the_temperature_fails_the_check(
    trained: Path, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Model, "probabilities", lambda self, logits, left=None: softmax(logits))
    told = refused("export", trained, "--to", "pt2", "--out", tmp_path / "out")
    assert "probabilities at batch 1 that differ by" in told
    assert not (tmp_path / "out").exists()
