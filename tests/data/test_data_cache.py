"""The cache: decoded once, the same bytes from memory and disk, nothing half-written."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitune.data import CacheSettings, Decoding, Record, default_cache_dir
from vitune.data.cache import available_memory_mib, load_pictures
from vitune.errors import DataError
from vitune.preprocessing import Preprocessing

Make = Callable[..., Path]


@pytest.fixture
def records(tmp_path: Path, picture: Make) -> list[Record]:
    return [Record(picture(tmp_path / "im" / f"{n}.png", n), 0) for n in range(30)]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that Pillow opens."""
    names: list[str] = []
    real = Image.open

    def spy(file: object, *args: object, **kwargs: object) -> Image.Image:
        names.append(str(getattr(file, "name", file)))
        return real(file, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(Image, "open", spy)
    return names


def test_disk_gives_the_bytes_of_memory_and_is_reused(
    records: list[Record], preprocessing: Preprocessing, tmp_path: Path, opened: list[str]
) -> None:
    decoding = Decoding(preprocessing)
    settings = CacheSettings(cache_dir=tmp_path / "cache", num_workers=3)
    memory = load_pictures(records, decoding, replace(settings, memory_budget_mib=1))
    assert type(memory.images) is np.ndarray and not (tmp_path / "cache").exists()
    disk = load_pictures(records, decoding, replace(settings, memory_budget_mib=0))
    assert isinstance(disk.images, np.memmap) and not disk.images.flags.writeable
    assert np.array_equal(memory.images, disk.images)
    assert np.array_equal(memory.digests, disk.digests)
    assert memory.kept.tolist() == disk.kept.tolist() == list(range(30))
    assert len(opened) == 60
    again = load_pictures(records, decoding, replace(settings, memory_budget_mib=0))
    assert np.array_equal(memory.images, again.images) and len(opened) == 60
    assert sorted(p.suffix for p in (tmp_path / "cache/images").iterdir()) == [".json", ".npy"]


def test_many_threads_keep_the_order(records: list[Record], preprocessing: Preprocessing) -> None:
    one, many = (
        load_pictures(records, Decoding(preprocessing), CacheSettings(num_workers=workers))
        for workers in (1, 7)
    )
    assert np.array_equal(one.images, many.images)


def test_any_change_gives_another_array(
    records: list[Record], preprocessing: Preprocessing, opened: list[str]
) -> None:
    settings = CacheSettings(memory_budget_mib=0)
    decoding = Decoding(preprocessing)
    load_pictures(records, decoding, settings)
    others = [
        replace(decoding, preprocessing=replace(preprocessing, interpolation="bilinear")),
        replace(decoding, preprocessing=replace(preprocessing, crop_pct=0.5)),
        replace(decoding, resize_to=(9, 9)),
    ]
    for number, other in enumerate(others, start=2):
        load_pictures(records, other, settings)
        assert len(opened) == 30 * number
    normalised = replace(preprocessing, mean=(0.1, 0.2, 0.3))
    load_pictures(records, Decoding(normalised), settings)
    assert len(opened) == 120
    changed = records[0].image
    assert isinstance(changed, Path)
    os.utime(changed, ns=(1, 1))
    load_pictures(records, decoding, settings)
    load_pictures(records[:-1], decoding, settings)
    assert len(opened) == 120 + 30 + 29


def test_bad_images_stop_or_are_skipped(
    records: list[Record], preprocessing: Preprocessing
) -> None:
    decoding, bad = Decoding(preprocessing), records[4].image
    assert isinstance(bad, Path)
    bad.write_bytes(b"no image")
    for budget in (0, 1):
        with pytest.raises(DataError, match=r"image '.*4.png': got UnidentifiedImageError"):
            load_pictures(records, decoding, CacheSettings(budget))
        found = load_pictures(records, decoding, CacheSettings(budget, skip_bad_images=True))
        assert found.skipped == (str(bad),)
        assert len(found.images) == len(found.digests) == 29 and 4 not in found.kept
        assert np.array_equal(
            found.images[4], load_pictures([records[5]], decoding, CacheSettings(1)).images[0]
        )
    with pytest.raises(DataError, match=r"got UnidentifiedImageError"):
        load_pictures(records, decoding, CacheSettings(0))
    for budget in (0, 1):
        with pytest.raises(DataError, match=r"got 1 that cannot be decoded and none that can"):
            load_pictures([records[4]], decoding, CacheSettings(budget, skip_bad_images=True))


@pytest.mark.parametrize("suffix", ["npy", "json"])
def test_a_damaged_array_is_made_again(
    records: list[Record], preprocessing: Preprocessing, suffix: str
) -> None:
    settings = CacheSettings(memory_budget_mib=0)
    whole = np.array(load_pictures(records, Decoding(preprocessing), settings).images)
    for damage in (b"", b"{}", b"[1]", b"\x93NUMPY\x01\x00"):
        (path,) = (default_cache_dir() / "images").glob(f"*.{suffix}")
        path.unlink()
        path.write_bytes(damage)
        again = load_pictures(records, Decoding(preprocessing), settings)
        assert np.array_equal(again.images, whole)


def test_a_failure_leaves_nothing_behind(
    records: list[Record], preprocessing: Preprocessing, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: object, image: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vitune.data.disk_array.ArrayWriter.append", full)
    with pytest.raises(DataError, match=r"image cache: got 'No space left on device' in .* 0 MiB"):
        load_pictures(records, Decoding(preprocessing), CacheSettings(memory_budget_mib=0))
    assert list((default_cache_dir() / "images").iterdir()) == []


def test_a_cache_folder_that_cannot_be(
    records: list[Record], preprocessing: Preprocessing, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"image cache: got '.*' in '.*file'"):
        load_pictures(records, Decoding(preprocessing), CacheSettings(0, tmp_path / "file"))


@pytest.mark.parametrize("budget", [0, 1])
def test_progress_counts_every_image(
    records: list[Record], preprocessing: Preprocessing, budget: int
) -> None:
    calls: list[tuple[int, int]] = []
    settings = CacheSettings(budget, on_progress=lambda *call: calls.append(call))
    load_pictures(records, Decoding(preprocessing), settings)
    assert calls == [(n, 30) for n in range(1, 31)]
    load_pictures(records, Decoding(preprocessing), settings)
    assert calls[30:] == ([(30, 30)] if budget == 0 else calls[:30])


def test_settings_and_defaults(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert CacheSettings().budget_mib == pytest.approx(available_memory_mib() / 4, rel=0.2)
    assert CacheSettings(memory_budget_mib=3).budget_mib == 3
    assert CacheSettings().folder == tmp_path / "default-cache"
    monkeypatch.delenv("VITUNE_CACHE")
    assert default_cache_dir() == Path.home() / ".cache" / "vitune"
    with pytest.raises(DataError, match=r"memory_budget_mib: got -1"):
        CacheSettings(memory_budget_mib=-1)
    with pytest.raises(DataError, match=r"num_workers: got 0"):
        CacheSettings(num_workers=0)


def test_memory_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(self: Path, **kwargs: object) -> str:
        raise FileNotFoundError(str(self))

    monkeypatch.setattr(Path, "read_text", absent)
    assert available_memory_mib() > 100


def test_pixels_replaced_at_equal_size_and_date_are_decoded_anew(
    tmp_path: Path, preprocessing: Preprocessing
) -> None:
    file = tmp_path / "a.bmp"  # uncompressed: every picture has the same number of bytes

    def paint(value: int) -> None:
        Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(file)

    paint(10)
    before = file.stat()
    settings = CacheSettings(memory_budget_mib=0)
    first = load_pictures([Record(file, 0)], Decoding(preprocessing), settings)
    paint(20)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_size == before.st_size
    then = load_pictures([Record(file, 0)], Decoding(preprocessing), settings)
    assert (first.images[0, 0, 0, 0], then.images[0, 0, 0, 0]) == (10, 20)
    assert not np.array_equal(first.digests, then.digests)
