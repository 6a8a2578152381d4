"""Views cut from files: the pixels of Pillow's own crop and resize, of the very bytes checked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vitune.data import Augment, FileViews, Split, augmentation, load_splits, seeded_generator
from vitune.data.views import ATTEMPTS, FILTERS, crop_box
from vitune.errors import DataError
from vitune.preprocessing import Preprocessing

HALF = (0.5, 0.5, 0.5)
WINDOW = Augment(enlarge=8 / 6, from_files=True)
CROP = Augment(scale_range=(0.08, 1.0), from_files=True)


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def split_of(folder: Path, *images: Image.Image) -> Split:
    """A training split of two classes with these pictures in the first of them."""
    for index, image in enumerate(images):
        for kind in ("a", "b"):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            image.save(folder / kind / f"{index}.png")
    small = Preprocessing((6, 6), HALF, HALF)
    train = load_splits(folder, small, seed=0, val_fraction=0, include=("train",)).train
    assert train is not None
    return train


def chw(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(pixels)).permute(2, 0, 1)


@pytest.mark.parametrize(
    ("crop_mode", "full"), [("center", (8, 26)), ("squash", (8, 8))], ids=["shorter", "squash"]
)
def test_windows_lie_anywhere_in_the_resized_image(
    tmp_path: Path, crop_mode: str, full: tuple[int, int]
) -> None:
    wide = picture(30, 100)
    split = split_of(tmp_path, wide)
    prepared = Preprocessing((6, 6), HALF, HALF, "bilinear", 6 / 8, crop_mode)
    resized = np.asarray(wide.resize(full[::-1], Image.Resampling.BILINEAR))
    places = {
        chw(resized[top : top + 6, left : left + 6]).numpy().tobytes(): (top, left)
        for top in range(full[0] - 5)
        for left in range(full[1] - 5)
    }
    views = FileViews(split, prepared, WINDOW)([0] * 400, seeded_generator(1))
    assert views.shape == (400, 3, 6, 6) and views.dtype == torch.uint8
    seen = [places[view.contiguous().numpy().tobytes()] for view in views]
    assert len(set(seen)) == len(places)  # each of them, and nothing else
    again = FileViews(split, prepared, WINDOW)([0] * 400, seeded_generator(1))
    assert torch.equal(views, again)


def test_a_resized_crop_is_that_box_of_the_file(tmp_path: Path) -> None:
    tall = picture(90, 30)
    split = split_of(tmp_path, picture(30, 100, 1), tall)
    prepared = Preprocessing((6, 6), HALF, HALF)
    views = FileViews(split, prepared, CROP)
    draws = torch.rand(5, 3 + 2 * ATTEMPTS, generator=seeded_generator(3)).tolist()
    found = views([1] * 5, seeded_generator(3))
    filters = []
    for view, own in zip(found, draws, strict=True):
        left, top, width, height = crop_box((30, 90), (0.08, 1.0), own)
        box = tall.crop((left, top, left + width, top + height))
        both = [box.resize((6, 6), method) for method in FILTERS]
        equal = [torch.equal(view, chw(np.asarray(one))) for one in both]
        assert equal.index(True) == (own[2] >= 0.5)
        filters.append(own[2] >= 0.5)
    assert len(set(filters)) == 2


@pytest.mark.parametrize("size", [(500, 400), (1242, 375), (300, 900)])
def test_boxes_have_the_areas_and_aspects_asked_for(size: tuple[int, int]) -> None:
    draws = torch.rand(4000, 3 + 2 * ATTEMPTS, generator=seeded_generator(0)).tolist()
    boxes = np.array([crop_box(size, (0.08, 1.0), own) for own in draws], float)
    left, top, width, height = boxes.T
    assert left.min() >= 0 and top.min() >= 0
    assert (left + width).max() == size[0] and (top + height).max() == size[1]
    area, aspect = width * height / (size[0] * size[1]), width / height
    assert area.min() > 0.078 and aspect.min() > 0.74 and aspect.max() < 1.345
    if size == (500, 400):  # nearly every draw fits, so that both are uniform
        small = area[area < 0.5]
        assert small.mean() == pytest.approx((0.08 + 0.5) / 2, abs=0.01)
        assert np.median(np.log(aspect[area < 0.5])) == pytest.approx(0, abs=0.03)
    free = size[1] - height > 0
    assert (top[free] / (size[1] - height[free])).mean() == pytest.approx(0.5, abs=0.03)


def test_a_draw_that_never_fits_takes_the_largest_centred_box() -> None:
    never = [0.0] * 3 + [1.0, 1.0] * ATTEMPTS  # the whole area at aspect 4/3
    assert crop_box((300, 900), (0.08, 1.0), never) == (0, 250, 300, 400)
    assert crop_box((1242, 375), (0.08, 1.0), never) == (371, 0, 500, 375)
    assert crop_box((110, 100), (0.08, 1.0), [0.0] * 3 + [1.0, 0.0] * ATTEMPTS) == (0, 0, 110, 100)


def test_a_file_that_changed_is_refused(tmp_path: Path) -> None:
    split = split_of(tmp_path, picture(20, 20))
    views = FileViews(split, Preprocessing((6, 6), HALF, HALF), WINDOW)
    views([0, 1], seeded_generator(0))
    picture(20, 20, seed=5).save(tmp_path / "b" / "0.png")
    views([0], seeded_generator(0))
    with pytest.raises(DataError, match=r"b/0.png': got other bytes than when the run began"):
        views([0, 1], seeded_generator(0))
    (tmp_path / "a" / "0.png").unlink()
    with pytest.raises(DataError, match=r"a/0.png'"):
        views([0], seeded_generator(0))


def test_a_split_without_files_is_refused(tmp_path: Path) -> None:
    split = split_of(tmp_path, picture(20, 20))
    bare = Split(split.name, split.images, split.labels, split.paths, split.classes)
    with pytest.raises(DataError, match=r"got split 'train' without its files"):
        FileViews(bare, Preprocessing((6, 6), HALF, HALF), WINDOW)([0], seeded_generator(0))
    assert split.subset([1, 0]).sources == (split.sources or ())[::-1]
    assert bare.subset([0]).sources is None


def test_drawings_have_views_too() -> None:
    small = Preprocessing((16, 16), HALF, HALF)
    train = load_splits("demo:count?train=8&val=2&test=2", small, seed=0, include=("train",)).train
    assert train is not None
    for name in ("window", "resized_crop"):
        augment = augmentation(name, (16, 16))
        assert augment.train_size((16, 16)) is None
        views = FileViews(train, small, augment)([0, 1], seeded_generator(0))
        assert views.shape == (2, 3, 16, 16)
        flipped = augment(views, seeded_generator(4))
        assert flipped.shape == views.shape and not torch.equal(flipped, views)


@pytest.mark.parametrize("values", [{}, {"padding_pixels": 2}])
def test_from_files_needs_something_to_cut(values: dict[str, int]) -> None:
    with pytest.raises(DataError, match="from_files: got it without a window or resized crop"):
        Augment(from_files=True, **values)  # type: ignore[arg-type]
