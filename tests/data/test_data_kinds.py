"""Kinds of files: which are read, and how deep greys, pipes and devices are taken."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitune.cli import run
from vitune.data import Decoding, decode_image, formats, list_images, open_source
from vitune.errors import DataError
from vitune.preprocessing import Preprocessing

Make = Callable[..., Path]
GREY = np.arange(64).reshape(8, 8)
MAX_SAMPLE_VALUE, SIGNED_MAX_SAMPLE_VALUE = 281, 341


def twelve_bit_tiff(path: Path) -> Path:
    """GREY x 64 in packed 12-bit samples, as microscopes and scanners write them."""
    values = (GREY * 64).ravel().tolist()
    packed = b"".join(
        bytes([a >> 4, ((a & 15) << 4) | (b >> 8), b & 255])
        for a, b in zip(values[::2], values[1::2], strict=True)
    )
    tags = {256: 8, 257: 8, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: 8, 279: len(packed)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    directory = struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)
    path.write_bytes(b"II*\0" + struct.pack("<I", 8 + len(packed)) + packed + directory)
    return path


def pixels_of(path: Path, preprocessing: Preprocessing) -> np.ndarray:
    return decode_image(path, Decoding(preprocessing))[0][..., 0]


def test_deep_greys_are_scaled_from_their_range(
    tmp_path: Path, preprocessing: Preprocessing
) -> None:
    files = {"packed": twelve_bit_tiff(tmp_path / "packed.tiff")}
    for name, values, tag in (
        ("16-bit", (GREY * 1028).astype(np.uint16), {}),
        ("12 of 16", (GREY * 64).astype(np.uint16), {MAX_SAMPLE_VALUE: 4095}),
        ("12 of 16, largest used", (GREY * 64).astype(np.uint16), {MAX_SAMPLE_VALUE: 4032}),
        ("signed 32-bit", (GREY * 64).astype(np.int32), {SIGNED_MAX_SAMPLE_VALUE: 4095}),
    ):
        files[name] = tmp_path / f"{name}.tiff"
        Image.fromarray(values).save(files[name], tiffinfo=tag)
    files["16-bit PGM"] = tmp_path / "a.pgm"
    Image.fromarray((GREY * 1028).astype(np.uint16)).save(files["16-bit PGM"])
    for name, path in files.items():
        assert np.array_equal(pixels_of(path, preprocessing), GREY * 4), name


def test_a_range_that_nobody_states_is_refused_or_shows_as_black(
    tmp_path: Path, preprocessing: Preprocessing
) -> None:
    Image.fromarray((GREY * 4).astype(np.int32)).save(tmp_path / "labels.tiff")
    with pytest.raises(DataError, match=r"labels.tiff': got ValueError \(32-bit pixels without a"):
        pixels_of(tmp_path / "labels.tiff", preprocessing)
    Image.fromarray((GREY * 64).astype(np.uint16)).save(tmp_path / "ct.png")
    assert pixels_of(tmp_path / "ct.png", preprocessing).max() == 15


@pytest.mark.parametrize("suffix", [".avif", ".jfif", ".jpe", ".heic", ".HEIC"])
def test_photographs_of_phones_are_read(
    tmp_path: Path, preprocessing: Preprocessing, suffix: str
) -> None:
    if suffix == ".avif" and not formats._reads_avif():
        pytest.skip("this Pillow was built without AVIF")
    if suffix.lower() == ".heic":
        pytest.importorskip("pillow_heif", reason="pillow-heif is an extra")
        formats.image_formats()  # registers the writer too
    large = Image.fromarray((GREY * 4).astype(np.uint8)).resize((64, 64)).convert("RGB")
    for name in ("ant", "bee"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        large.save(tmp_path / "photos" / name / f"1{suffix}")
    listed = open_source(tmp_path / "photos")
    assert len(listed.splits["all"]) == 2 and not listed.unread
    got = pixels_of(tmp_path / "photos/ant" / f"1{suffix}", preprocessing)
    assert np.abs(got - GREY * 4.0).max() < 12


def test_heic_without_its_library_is_named(
    tmp_path: Path, class_folders: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "_reads_heic", lambda: False)
    formats.image_suffixes.cache_clear()
    try:
        root = class_folders()
        (root / "ant" / "IMG_1.HEIC").write_bytes(b"x")
        (root / "bee" / "notes.txt").write_text("a companion, not an image")
        assert [Path(name).name for name in open_source(root).unread] == ["IMG_1.HEIC"]
        with pytest.raises(DataError, match=r"expected a suffix among .*pip install 'vitune\[heic"):
            list_images(root / "ant" / "IMG_1.HEIC")
        (root / "wasp").mkdir()
        (root / "wasp" / "IMG_2.heic").write_bytes(b"x")
        with pytest.raises(DataError, match=r"'wasp' of .*: got only 1 .heic, .*vitune\[heic"):
            open_source(root)
    finally:
        formats.image_suffixes.cache_clear()


def test_pipes_and_devices_are_refused_not_waited_for(
    tmp_path: Path, preprocessing: Preprocessing
) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "endless.png").symlink_to("/dev/zero")
    for name in ("pipe.png", "endless.png"):
        with pytest.raises(DataError, match=rf"{name}': got a pipe, device or folder, expected a"):
            decode_image(tmp_path / name, Decoding(preprocessing))


def test_predict_skips_a_pipe_and_names_it(
    tmp_path: Path, picture: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    from vitune.data import CacheSettings, load_unlabelled

    picture(tmp_path / "new" / "1.png", 1)
    os.mkfifo(tmp_path / "new" / "pipe.png")
    small = Preprocessing((8, 8), (0.5,) * 3, (0.5,) * 3)
    settings = CacheSettings(skip_bad_images=True)
    split, skipped = load_unlabelled(tmp_path / "new", small, settings=settings)
    assert len(split) == 1 and [Path(name).name for name in skipped] == ["pipe.png"]
    assert run(["data", "check", str(tmp_path / "new")]) == 2
    assert "got images without class folders" in capsys.readouterr().err
