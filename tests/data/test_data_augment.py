"""Augmentation: off by default, seeded, and each change what it says."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vitune.data import PRESETS, Augment, augmentation, seeded_generator
from vitune.errors import DataError


@pytest.fixture
def images() -> Tensor:
    return torch.randint(0, 256, (16, 3, 12, 10), dtype=torch.uint8)


def test_off_by_default(images: Tensor) -> None:
    assert Augment()(images, seeded_generator(0)) is images
    assert augmentation("none", (12, 10)) == Augment()


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16])
def test_presets_keep_dtype_and_follow_the_generator(name: str, dtype: torch.dtype) -> None:
    augment = augmentation(name, (16, 16))
    size = augment.train_size((16, 16)) or (16, 16)
    images = torch.randint(0, 256, (8, 3, *size), dtype=torch.uint8)
    given = images if dtype == torch.uint8 else (images.float() / 255).to(dtype)
    before = given.clone()
    first, again, other = (augment(given, seeded_generator(0, 0, step)) for step in (1, 1, 2))
    assert first.shape == (8, 3, 16, 16) and first.dtype == dtype
    assert torch.equal(first, again) and torch.equal(given, before)
    assert torch.equal(first, other) == (name in ("none", "auto"))
    if dtype != torch.uint8:
        assert float(first.min()) >= 0 and float(first.max()) <= 1


def test_presets_by_name() -> None:
    from_files = {name for name in PRESETS if augmentation(name, (32, 32)).from_files}
    assert from_files == {"window", "resized_crop"}
    always = {"auto", "none", "shift", "flip", "crop_flip", "fgvc", "strong"}
    assert set(PRESETS) - from_files == always
    assert augmentation("fgvc", (224, 224)).train_size((224, 224)) == (256, 256)
    assert augmentation("crop_flip", (32, 32)).padding_pixels == 4
    assert augmentation("shift", (224, 224)) == Augment(padding_pixels=14)
    with pytest.raises(DataError, match=r"got 'strongg', expected a preset. Did you mean strong\?"):
        augmentation("strongg", (32, 32))


def test_flip_mirrors_the_share_it_should(images: Tensor) -> None:
    assert torch.equal(Augment(flip_rate=1.0)(images, seeded_generator(0)), images.flip(3))
    many = torch.arange(10, dtype=torch.uint8).expand(2000, 3, 2, 10)
    flipped = Augment(flip_rate=0.3)(many, seeded_generator(1))[:, 0, 0, 0] == 9
    assert float(flipped.float().mean()) == pytest.approx(0.3, abs=0.04)


def test_windows_of_an_enlarged_image_lie_inside_it() -> None:
    place = torch.arange(8 * 8, dtype=torch.uint8).view(1, 1, 8, 8).expand(500, 3, 8, 8)
    cut = Augment(enlarge=8 / 6)(place, seeded_generator(0))
    assert cut.shape == (500, 3, 6, 6)
    tops, lefts = cut[:, 0, 0, 0] // 8, cut[:, 0, 0, 0] % 8
    assert set(tops.tolist()) == set(lefts.tolist()) == {0, 1, 2}
    for window, top, left in zip(cut, tops.tolist(), lefts.tolist(), strict=True):
        assert torch.equal(window, place[0, :, top : top + 6, left : left + 6])


def test_the_border_is_reflected() -> None:
    image = torch.arange(25, dtype=torch.float32).view(1, 1, 5, 5).expand(400, 3, 5, 5) / 25
    padded = torch.nn.functional.pad(image[:1], (2, 2, 2, 2), mode="reflect")[0]
    windows = {
        (top, left): padded[:, top : top + 5, left : left + 5]
        for top in range(5)
        for left in range(5)
    }
    seen = set()
    for window in Augment(padding_pixels=2)(image, seeded_generator(0)):
        match = [place for place, expected in windows.items() if torch.equal(window, expected)]
        assert len(match) == 1
        seen.update(match)
    assert len(seen) == 25
    with pytest.raises(DataError, match=r"padding_pixels: got 5, expected less than the image's 5"):
        Augment(padding_pixels=5)(image, seeded_generator(0))


def test_resized_crop_of_the_whole_is_the_whole(images: Tensor) -> None:
    square = torch.rand(4, 3, 8, 8)
    ramp = torch.linspace(0, 1, 32).expand(64, 3, 32, 32)
    cut = Augment(scale_range=(0.25, 0.25))(ramp, seeded_generator(0))
    spans = (cut[:, 0, 0, -1] - cut[:, 0, 0, 0]) * 32 / 31
    low, high = (0.25 * 3 / 4) ** 0.5, (0.25 * 4 / 3) ** 0.5
    assert low - 0.05 < float(spans.min()) < float(spans.max()) < high + 0.05
    assert float(cut[:, :, 0, 0].std()) > 0.05
    flipped = Augment(flip_rate=1.0, scale_range=(0.25, 0.25))(ramp, seeded_generator(0))
    torch.testing.assert_close(flipped, cut.flip(3), atol=1e-5, rtol=0)
    whole = Augment(scale_range=(1.0, 1.0))(square, seeded_generator(0))
    assert whole.shape == square.shape
    assert Augment(scale_range=(0.5, 1.0))(images, seeded_generator(0)).dtype == torch.uint8


def test_jitter_keeps_range_and_greys(images: Tensor) -> None:
    changed = Augment(jitter=0.5)(images, seeded_generator(0))
    assert changed.dtype == torch.uint8 and not torch.equal(changed, images)
    grey = torch.rand(8, 1, 6, 6).expand(8, 3, 6, 6)
    got = Augment(jitter=0.9)(grey, seeded_generator(0))
    torch.testing.assert_close(got[:, 0], got[:, 2], atol=1e-5, rtol=0)


def test_switching_one_on_leaves_the_others(images: Tensor) -> None:
    alone = Augment(flip_rate=0.5)(images, seeded_generator(3))
    window = Augment(flip_rate=0.5, padding_pixels=2)(images, seeded_generator(3))
    flipped = [not torch.equal(a, b) for a, b in zip(alone, images, strict=True)]
    assert 0 < sum(flipped) < 16
    place = torch.arange(10.0).expand(16, 3, 12, 10)
    slope = Augment(flip_rate=0.5, padding_pixels=2)(place / 10, seeded_generator(3))
    assert window.shape == images.shape
    assert [bool(one[0, 0, 5] < one[0, 0, 4]) for one in slope] == flipped


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"flip_rate": 1.5}, r"flip_rate: got 1.5, expected 0 to 1"),
        ({"jitter": -0.1}, r"jitter: got -0.1"),
        ({"padding_pixels": -1}, r"padding_pixels: got -1"),
        ({"enlarge": 0.9}, r"enlarge: got 0.9, expected 1 to 4"),
        ({"scale_range": (0.5, 0.2)}, r"scale_range: got \(0.5, 0.2\)"),
        ({"scale_range": (0.5, 1.0), "padding_pixels": 2}, r"together with scale_range"),
    ],
)
def test_values_out_of_range(values: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Augment(**values)  # type: ignore[arg-type]
