"""Decoding: timm's own numbers, orientation, modes, bombs and broken files."""

from __future__ import annotations

import hashlib
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform

from vitune.data import Decoding, decode_image, normalise, quiet_pillow
from vitune.errors import DataError
from vitune.preprocessing import Preprocessing

HALF = (0.5, 0.5, 0.5)
Make = Callable[..., Path]


def _png_header(path: Path, width: int, height: int) -> Path:
    """A PNG that claims a size and holds no pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        check = zlib.crc32(kind + body)
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", check)

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
    return path


@pytest.mark.parametrize("size", [(41, 30), (30, 41), (16, 16), (9, 70)])
@pytest.mark.parametrize("mode", ["squash", "center"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_pixels_are_timms(
    tmp_path: Path, picture: Make, size: tuple[int, int], mode: str, interpolation: str
) -> None:
    path = picture(tmp_path / "a.png", 3, size)
    preprocessing = Preprocessing((16, 16), HALF, HALF, interpolation, 0.8, mode)
    theirs = create_transform(
        (3, 16, 16), mean=HALF, std=HALF, interpolation=interpolation, crop_pct=0.8, crop_mode=mode
    )
    pixels, digest = decode_image(path, Decoding(preprocessing))
    ours = normalise(torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None], preprocessing)[0]
    torch.testing.assert_close(ours, theirs(Image.open(path).convert("RGB")))
    assert digest == hashlib.sha256(path.read_bytes()).digest()


def test_resize_to_keeps_the_whole_frame(tmp_path: Path, picture: Make) -> None:
    path = picture(tmp_path / "a.png", 3, (40, 30))
    preprocessing = Preprocessing((16, 16), HALF, HALF, crop_pct=0.5)
    pixels, _ = decode_image(path, Decoding(preprocessing, resize_to=(20, 18)))
    expected = Image.open(path).resize((18, 20), Image.Resampling.BICUBIC)
    assert np.array_equal(pixels, np.asarray(expected))
    with pytest.raises(DataError, match=r"resize_to: got \(15, 18\), expected at least"):
        Decoding(preprocessing, resize_to=(15, 18))


def test_exif_orientation_is_respected(tmp_path: Path, preprocessing: Preprocessing) -> None:
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:, :4] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned a quarter anticlockwise
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    got, _ = decode_image(tmp_path / "a.png", Decoding(preprocessing))
    assert got[:4].min() > 200 and got[4:].max() < 50


def test_modes_become_rgb(tmp_path: Path, preprocessing: Preprocessing) -> None:
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    forms = {
        "grey": Image.fromarray(grey),
        "palette": Image.fromarray(np.stack([grey] * 3, -1)).convert("P"),
        "alpha": Image.fromarray(np.stack([grey] * 4, -1)),
        "bilevel": Image.fromarray(grey).convert("1"),
        "deep": Image.fromarray(grey.astype(np.uint16) * 257),
    }
    for name, image in forms.items():
        image.save(tmp_path / f"{name}.png")
        pixels, _ = decode_image(tmp_path / f"{name}.png", Decoding(preprocessing))
        assert pixels.shape == (8, 8, 3) and pixels.dtype == np.uint8
        if name in ("grey", "deep"):
            assert np.array_equal(pixels[..., 1], grey)
    Image.fromarray(np.ones((8, 8), np.float32)).save(tmp_path / "float.tiff")
    with pytest.raises(DataError, match=r"float.tiff.*floating-point pixels have no fixed range"):
        decode_image(tmp_path / "float.tiff", Decoding(preprocessing))


@pytest.mark.parametrize("hidden", [0, 90, 255])
@pytest.mark.parametrize(
    ("suffix", "mode"),
    [("png", "RGBA"), ("png", "LA"), ("png", "P"), *((s, "RGBA") for s in ("webp", "tiff", "gif"))],
)
def test_what_lies_behind_transparent_pixels_is_not_seen(
    suffix: str, mode: str, hidden: int, tmp_path: Path, preprocessing: Preprocessing
) -> None:
    """A dark bar on nothing looks like a dark bar on white, whatever colour the nothing has."""
    colours = np.full((8, 8, 4), hidden, np.uint8)
    colours[..., 3] = 0
    colours[2:4] = 40, 40, 40, 255
    image = Image.fromarray(colours)
    few = image.quantize(4, method=Image.Quantize.FASTOCTREE)
    image = few if mode == "P" else image.convert(mode)
    image.save(tmp_path / f"a.{suffix}", lossless=True)
    pixels, _ = decode_image(tmp_path / f"a.{suffix}", Decoding(preprocessing))
    assert pixels[:2].min() == pixels[4:].min() == 255
    assert pixels[2:4].min() == pixels[2:4].max() == 40


@pytest.mark.parametrize(("mode", "clear"), [("1", 255), ("L", 90), ("RGB", (90, 90, 90))])
def test_a_colour_that_the_file_declares_transparent_is_white(
    mode: str, clear: int | tuple[int, ...], tmp_path: Path, preprocessing: Preprocessing
) -> None:
    image = Image.new(mode, (8, 8), clear)
    image.paste(0, (0, 2, 8, 4))
    image.save(tmp_path / "a.png", transparency=clear)
    pixels, _ = decode_image(tmp_path / "a.png", Decoding(preprocessing))
    assert pixels[:2].min() == pixels[4:].min() == 255 and pixels[2:4].max() == 0


def test_half_transparent_pixels_mix_with_white(
    tmp_path: Path, preprocessing: Preprocessing
) -> None:
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    Image.fromarray(np.stack([grey] * 4, -1)).save(tmp_path / "a.png")
    pixels, _ = decode_image(tmp_path / "a.png", Decoding(preprocessing))
    share = grey / 255
    assert np.abs(pixels[..., 1] - (share * grey + (1 - share) * 255)).max() <= 1


def test_bombs_are_refused_by_their_header(
    tmp_path: Path, preprocessing: Preprocessing, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(self: Image.Image) -> None:
        raise AssertionError("pixels were decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", never)
    bomb = _png_header(tmp_path / "bomb.png", 20_000, 10_000)
    with pytest.raises(DataError, match=r"bomb.png': got over 178 megapixels, expected"):
        decode_image(bomb, Decoding(preprocessing))
    large = _png_header(tmp_path / "large.png", 12_000, 10_000)
    with quiet_pillow(), pytest.raises(DataError, match=r"got 120.0 megapixels, expected at most"):
        decode_image(large, Decoding(preprocessing))
    with pytest.raises(DataError, match=r"got 0.1 megapixels, expected at most 0.01"):
        decode_image(
            _png_header(tmp_path / "small.png", 400, 300),
            Decoding(preprocessing, max_megapixels=0.01),
        )
    for limit in (0, 200):
        with pytest.raises(DataError, match=r"max_megapixels: got"):
            Decoding(preprocessing, max_megapixels=limit)


def test_a_real_bilevel_bomb_of_few_bytes(tmp_path: Path, preprocessing: Preprocessing) -> None:
    path = tmp_path / "bomb.tiff"
    Image.new("1", (20_000, 10_000)).save(path, compression="group4")
    assert path.stat().st_size < 200_000
    with pytest.raises(DataError, match=r"got over 178 megapixels"):
        decode_image(path, Decoding(preprocessing))


def test_a_thread_of_an_image_does_not_blow_up(tmp_path: Path, picture: Make) -> None:
    path = picture(tmp_path / "thread.png", 1, (30_000, 1))
    center = Preprocessing((64, 64), HALF, HALF, crop_mode="center")
    with pytest.raises(DataError, match=r"thread.png': got 122.9 megapixels"):
        decode_image(path, Decoding(center))


def test_broken_files_are_named(
    tmp_path: Path, picture: Make, preprocessing: Preprocessing
) -> None:
    whole = picture(tmp_path / "whole.png", 1, (64, 64)).read_bytes()
    Image.open(tmp_path / "whole.png").save(tmp_path / "whole.jpg")
    jpeg = (tmp_path / "whole.jpg").read_bytes()
    broken = {
        "cut.png": whole[: len(whole) // 2],
        "cut.jpg": jpeg[: len(jpeg) // 2],
        "empty.png": b"",
        "text.jpg": b"<html>not found</html>",
        "flipped.png": whole[:200] + bytes(64) + whole[264:],
        "postscript.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    }
    for name, content in broken.items():
        (tmp_path / name).write_bytes(content)
        told = rf"image '.*{name}': got \w+ \(.+\), expected an intact"
        with pytest.raises(DataError, match=told):
            decode_image(tmp_path / name, Decoding(preprocessing))
    with pytest.raises(DataError, match=r"gone.png': got FileNotFoundError"):
        decode_image(tmp_path / "gone.png", Decoding(preprocessing))


def test_pillows_warnings_stay_inside(tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with quiet_pillow():
            Image.open(_png_header(tmp_path / "a.png", 10_000, 10_000))
        assert not seen
        Image.open(tmp_path / "a.png").close()
        assert [w.category for w in seen] == [Image.DecompressionBombWarning]
