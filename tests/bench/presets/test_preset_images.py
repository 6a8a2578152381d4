"""The very pixels that each preset trains on and scores, of a wide and a tall image."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

import vitune.bench.study.workbench as workbench_module
from vitune.backbones import load_backbone
from vitune.bench.presets import load_preset, preset_names
from vitune.bench.study.plan import Task
from vitune.bench.study.workbench import Workbench
from vitune.data import FileViews, Split, augmentation, normalise, seeded_generator
from vitune.preprocessing import Preprocessing
from vitune.training import TrainConfig

SHAPES = ((375, 1242), (900, 300))  # a KITTI frame, and a tall picture
BICUBIC, BILINEAR = Image.Resampling.BICUBIC, Image.Resampling.BILINEAR
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
OFFICIAL_STATS = dict.fromkeys(("arc", "pace", "fact_tk", "vpt_deep"), IMAGENET)

Array = npt.NDArray[np.uint8]


def squashed(side: int, method: Any) -> Callable[[Image.Image], Array]:
    return lambda image: np.array(image.resize((side, side), method))


def shorter(side: int, method: Any) -> Callable[[Image.Image], Array]:
    def resized(image: Image.Image) -> Array:
        factor = side / min(image.size)
        width, height = (side if n == min(image.size) else int(n * factor) for n in image.size)
        return np.array(image.resize((width, height), method))

    return resized


RESIZED = {
    "rlrr-vtab1k": squashed(224, BICUBIC),
    "ssf-vtab1k": squashed(224, BICUBIC),
    "arc-vtab1k": squashed(224, BICUBIC),
    "pace-vtab1k": squashed(224, BICUBIC),
    "fact_tk-vtab1k": squashed(224, BICUBIC),
    "hta-vtab1k": squashed(224, BICUBIC),
    "lora-vtab1k": squashed(224, BICUBIC),
    "vpt_deep-vtab1k": squashed(224, BILINEAR),
    "rlrr-fgvc": squashed(256, BILINEAR),
    "rlrr-fgvc-augreg": squashed(256, BILINEAR),
    "lora-fgvc": squashed(256, BILINEAR),
    "arc-fgvc": shorter(256, BILINEAR),
    "pace-fgvc": shorter(256, BILINEAR),
    "vpt_deep-fgvc": shorter(256, BILINEAR),
    "hta-fgvc": shorter(256, BILINEAR),
    "ssf-fgvc": shorter(248, BICUBIC),
}
"""What is done to an image before the centre or a window of 224 x 224 is cut."""

RESIZED_CROPS = {"ssf-fgvc", "hta-fgvc"}


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    made = []
    for height, width in SHAPES:
        rows, columns = np.mgrid[0:height, 0:width]
        ramp = np.stack([columns * 255 / width, rows * 255 / height, (rows + columns) % 256], -1)
        noisy = np.clip(ramp + rng.integers(-40, 41, ramp.shape), 0, 255)
        made.append(Image.fromarray(noisy.astype(np.uint8)))
    return made


@pytest.fixture(scope="module")
def source(pictures: list[Image.Image], tmp_path_factory: pytest.TempPathFactory) -> str:
    """A VTAB folder that holds the two pictures in training and again, marked, in test."""
    root = tmp_path_factory.mktemp("wide") / "task"
    for split in ("train800", "val200", "train800val200", "test"):
        (root / "images" / split).mkdir(parents=True)
        lines = []
        for label, picture in enumerate(pictures):
            own = picture.copy()
            own.putpixel((0, 0), (len(split), label, 0))  # no split shares an image with another
            own.save(root / "images" / split / f"{label}.png")
            lines.append(f"images/{split}/{label}.png {label}")
        (root / f"{split}.txt").write_text("\n".join(lines))
    return f"vtab:{root}"


@pytest.fixture(scope="module")
def bench() -> Iterator[Workbench]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workbench_module, "load_backbone", partial(load_backbone, pretrained=False))
        yield Workbench()


def prepared(
    bench: Workbench, source: str, name: str, protocol: Any, task: str
) -> tuple[TrainConfig, Preprocessing, Split, Split]:
    preset = load_preset(name)
    study = preset.study([Task(name=task, data=source)], name=name, protocol=protocol)
    variant = study.variants[0]
    config = study.config(variant, study.tasks[0], study.grid_of(variant)[0], seed=0, refit=True)
    train = bench.task(config, 0).refit.train
    assert train is not None
    return config, bench.facts(config).preprocessing, train, bench.open_test(config, ("0", "1"))


def picture_of(source: str, split: str, index: int) -> Image.Image:
    path = Path(source.removeprefix("vtab:")) / "images" / split / f"{index}.png"
    return Image.open(path).convert("RGB")


def centre(pixels: Array) -> Array:
    top, left = (round((side - 224) / 2) for side in pixels.shape[:2])
    return pixels[top : top + 224, left : left + 224]


def test_every_preset_is_spoken_of() -> None:
    assert set(RESIZED) == set(preset_names()) and len(RESIZED) == 16


@pytest.mark.parametrize("protocol", ["honest", "as-published"])
@pytest.mark.parametrize("name", RESIZED)
def test_scored_pixels(bench: Workbench, source: str, name: str, protocol: str) -> None:
    """All of a squashed image is seen: of a wide one not 27 % of its width, as a crop would."""
    _, preprocessing, _, test = prepared(bench, source, name, protocol, "cifar")
    for index in range(len(SHAPES)):
        expected = centre(RESIZED[name](picture_of(source, "test", index)))
        np.testing.assert_array_equal(test.images[index], expected)
    mean, std = HALF
    if protocol == "as-published":
        mean, std = OFFICIAL_STATS.get(name.partition("-")[0], HALF)
    inputs = normalise(torch.from_numpy(np.array(test.images)).permute(0, 3, 1, 2), preprocessing)
    by_hand = (np.asarray(test.images, np.float64) / 255 - mean) / std
    np.testing.assert_allclose(inputs.permute(0, 2, 3, 1).numpy(), by_hand, atol=2e-6)


@pytest.mark.parametrize("protocol", ["honest", "as-published"])
@pytest.mark.parametrize("name", sorted(set(RESIZED) - RESIZED_CROPS))
def test_trained_pixels(bench: Workbench, source: str, name: str, protocol: str) -> None:
    config, preprocessing, train, _ = prepared(bench, source, name, protocol, "cifar")
    windows = name.endswith(("fgvc", "augreg"))
    rounds = 12 if windows else 2
    seen: list[set[tuple[int, int, bool]]] = [set(), set()]
    full = [RESIZED[name](picture_of(source, "train800val200", index)) for index in (0, 1)]
    for step in range(rounds):
        for index, view in enumerate(trained(config, preprocessing, train, step)):
            seen[index].add(place_of(view, full[index]))
    if not windows:
        assert seen == [{(0, 0, False)}] * 2
        return
    for places, whole in zip(seen, full, strict=True):
        tops, lefts, flips = zip(*places, strict=True)
        assert set(flips) == {True, False} and len(places) > rounds / 2
        # windows lie along the whole of the longer side, not in its middle alone
        for drawn, side in ((tops, whole.shape[0]), (lefts, whole.shape[1])):
            assert max(drawn) - min(drawn) > 0.4 * (side - 224)


@pytest.mark.parametrize("name", sorted(RESIZED_CROPS))
def test_trained_pixels_of_resized_crops(bench: Workbench, source: str, name: str) -> None:
    """Boxes and their pixels are tested in tests/data/test_data_views.py; here: whose they are."""
    config, preprocessing, train, _ = prepared(bench, source, name, "as-published", "cub")
    assert config.augment == "resized_crop"
    augment = augmentation(config.augment, (224, 224))
    assert augment.scale_range == (0.08, 1.0) and augment.flip_rate == 0.5
    assert augment.jitter == 0 and config.random_erasing == (0.25 if name == "ssf-fgvc" else 0)
    views = trained(config, preprocessing, train, 0)
    assert views.shape == (2, 224, 224, 3) and views.std() > 20


def trained(config: TrainConfig, preprocessing: Preprocessing, train: Split, step: int) -> Array:
    """A training batch of both images, as the loop makes it, before it is normalised."""
    generator = seeded_generator(0, step)
    augment = augmentation(config.augment, preprocessing.image_size)
    images = torch.from_numpy(np.array(train.images)).permute(0, 3, 1, 2)
    if augment.from_files:
        images = FileViews(train, preprocessing, augment)([0, 1], generator)
    return augment(images, generator).permute(0, 2, 3, 1).numpy()


def place_of(view: Array, whole: Array) -> tuple[int, int, bool]:
    """Where in `whole` the view lies, and whether it is mirrored; the test fails if nowhere."""
    for flipped, pixels in ((False, view), (True, view[:, ::-1])):
        corners = np.argwhere((whole[: len(whole) - 223, : whole.shape[1] - 223] == pixels[0, 0])
                              .all(-1))  # fmt: skip
        for top, left in corners:
            if np.array_equal(whole[top : top + 224, left : left + 224], pixels):
                return int(top), int(left), flipped
    raise AssertionError("the view is no window of the resized image")


def test_flips_follow_the_task_under_as_published_alone(bench: Workbench, source: str) -> None:
    for protocol, expected in (("as-published", "flip"), ("honest", "none")):
        config = prepared(bench, source, "rlrr-vtab1k", protocol, "dtd")[0]
        assert config.augment == expected
    assert prepared(bench, source, "rlrr-vtab1k", "as-published", "svhn")[0].augment == "none"
