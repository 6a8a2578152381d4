"""Every image decoded once into one uint8 array: in memory if it fits, else mapped from disk."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import PIL

from vitune.data.content import default_cache_dir, stamp_of
from vitune.data.decode import Decoding, decode_image, quiet_pillow
from vitune.data.disk_array import lookup, new_array, store_index
from vitune.data.records import Drawing, Pixels, Record
from vitune.errors import DataError
from vitune.machine import available_cores, available_memory_mib

Progress = Callable[[int, int], None]

NEARLY_BLACK = 24
"""An image whose largest pixel is below this shows nothing; 12 bits read as 16 reach 15, and a
little more if resizing overshoots."""

_FORMAT_VERSION = 3
_MIB = 2**20


@dataclass(frozen=True)
class CacheSettings:
    """How and where decoded images are stored.

    Args:
        memory_budget_mib: larger arrays go to disk; None is a quarter of the available memory.
        cache_dir: folder of the arrays on disk; None is $VITUNE_CACHE or ~/.cache/vitune.
        num_workers: decoding threads; None is the number of cores, at most 8.
        skip_bad_images: leave out and list images that cannot be decoded instead of stopping.
        on_progress: called with (images done, total images) during decoding.

    Raises:
        DataError: a negative budget or no workers.
    """

    memory_budget_mib: float | None = None
    cache_dir: str | Path | None = None
    num_workers: int | None = None
    skip_bad_images: bool = False
    on_progress: Progress | None = None

    def __post_init__(self) -> None:
        if self.memory_budget_mib is not None and self.memory_budget_mib < 0:
            raise DataError(
                f"memory_budget_mib: got {self.memory_budget_mib!r}, expected 0 or more MiB."
            )
        if self.num_workers is not None and self.num_workers < 1:
            raise DataError(f"num_workers: got {self.num_workers!r}, expected at least 1.")

    @property
    def budget_mib(self) -> float:
        """The budget, measured now if none was given."""
        if self.memory_budget_mib is not None:
            return self.memory_budget_mib
        return available_memory_mib() / 4

    @property
    def folder(self) -> Path:
        """The folder of the arrays on disk."""
        return Path(self.cache_dir) if self.cache_dir else default_cache_dir()

    @property
    def workers(self) -> int:
        """Decoding threads."""
        return self.num_workers or min(8, available_cores())


@dataclass(frozen=True, eq=False)
class Pictures:
    """Decoded images.

    Shapes:
        images: (b, height, width, 3) uint8, an array or a read-only memory map.
        kept: (b,) which of the records they are, ascending.
        digests: (b, 32) sha256 of each file's bytes.

    Args:
        skipped: names of records that cannot be decoded.
        dark: names of records whose decoded pixels are nearly black.
    """

    images: Pixels
    kept: np.ndarray
    digests: Pixels
    skipped: tuple[str, ...]
    dark: tuple[str, ...] = ()


def load_pictures(
    records: Sequence[Record], decoding: Decoding, settings: CacheSettings
) -> Pictures:
    """Decode and resize every record once, or map an array that an earlier run left on disk.

    Args:
        records: what to decode; at least one.
        decoding: size, interpolation, crop and limit.
        settings: budget, folder, threads and treatment of bad images.

    Raises:
        DataError: an image that cannot be decoded (unless skipped), no image left, or a full disk.
    """
    shape = (len(records), *decoding.size, 3)
    key = _cache_key(records, decoding)
    found = _stored(settings.folder, key, settings.skip_bad_images)
    if found:
        if settings.on_progress:
            settings.on_progress(len(records), len(records))
        return found
    with quiet_pillow():
        if np.prod(shape, dtype=np.float64) <= settings.budget_mib * _MIB:
            return _into_memory(records, decoding, settings, shape)
        return _onto_disk(records, decoding, settings, shape, key)


class _Outcomes:
    """Decoded images one after the other, with those kept and skipped so far."""

    def __init__(self, records: Sequence[Record], settings: CacheSettings) -> None:
        self.records, self.settings = records, settings
        self.kept: list[int] = []
        self.digests: list[bytes] = []
        self.skipped: list[str] = []
        self.dark: list[str] = []

    def good(self, decoding: Decoding) -> Iterator[Pixels]:
        """Pixels of the good images in the records' order; a bad one is raised or skipped."""
        for index, outcome in decoded(self.records, decoding, self.settings.workers):
            if isinstance(outcome, DataError):
                if not self.settings.skip_bad_images:
                    raise outcome
                self.skipped.append(self.records[index].name)
            else:
                self.kept.append(index)
                self.digests.append(outcome[1])
                if outcome[0].max() < NEARLY_BLACK:
                    self.dark.append(self.records[index].name)
                yield outcome[0]
            if self.settings.on_progress:
                self.settings.on_progress(index + 1, len(self.records))
        if not self.kept:
            raise DataError(
                f"images: got {len(self.skipped)} that cannot be decoded and none that can, the "
                f"first {self.skipped[0]!r}, expected at least one intact image."
            )


def _into_memory(
    records: Sequence[Record],
    decoding: Decoding,
    settings: CacheSettings,
    shape: tuple[int, ...],
) -> Pictures:
    images = np.empty(shape, dtype=np.uint8)
    outcomes = _Outcomes(records, settings)
    for place, pixels in enumerate(outcomes.good(decoding)):
        images[place] = pixels
    return Pictures(
        images[: len(outcomes.kept)],
        np.array(outcomes.kept, np.int64),
        np.frombuffer(b"".join(outcomes.digests), np.uint8).reshape(-1, 32),
        tuple(outcomes.skipped),
        tuple(outcomes.dark),
    )


def _onto_disk(
    records: Sequence[Record],
    decoding: Decoding,
    settings: CacheSettings,
    shape: tuple[int, ...],
    key: str,
) -> Pictures:
    outcomes = _Outcomes(records, settings)
    with new_array(settings.folder, key, shape) as writer:
        for pixels in outcomes.good(decoding):
            writer.append(pixels)
    index = {
        "kept": outcomes.kept,
        "digests": b"".join(outcomes.digests).hex(),
        "skipped": outcomes.skipped,
        "dark": outcomes.dark,
    }
    store_index(settings.folder, key, index)
    found = _stored(settings.folder, key, skip_bad_images=True)
    assert found is not None, "an array just written is whole"
    return found


def _stored(folder: Path, key: str, skip_bad_images: bool) -> Pictures | None:
    """An earlier run's array; one with gaps is used only if bad images are skipped."""
    found = lookup(folder, key)
    if found is None:
        return None
    images, index = found
    try:
        kept = np.array(index["kept"], np.int64)
        digests = np.frombuffer(bytes.fromhex(index["digests"]), np.uint8).reshape(-1, 32)
        skipped, dark = tuple(index["skipped"]), tuple(index["dark"])
    except (KeyError, TypeError, ValueError):
        return None
    if not len(kept) == len(digests) == len(images) or (skipped and not skip_bad_images):
        return None
    return Pictures(images, kept, digests, skipped, dark)


def decoded(
    records: Sequence[Record], decoding: Decoding, workers: int
) -> Iterator[tuple[int, tuple[Pixels, bytes] | DataError]]:
    """Results in the records' order, with few in flight, so that finished ones do not pile up."""
    waiting: deque[Future[tuple[Pixels, bytes] | DataError]] = deque()
    images = iter([record.image for record in records])
    depth = 4 * workers
    with ThreadPoolExecutor(workers) as pool:
        waiting.extend(pool.submit(_outcome, image, decoding) for image in islice(images, depth))
        for index in range(len(records)):
            outcome = waiting.popleft().result()
            waiting.extend(pool.submit(_outcome, image, decoding) for image in islice(images, 1))
            yield index, outcome


def _outcome(image: Path | Drawing, decoding: Decoding) -> tuple[Pixels, bytes] | DataError:
    try:
        return decode_image(image, decoding)
    except DataError as error:
        return error


def _cache_key(records: Sequence[Record], decoding: Decoding) -> str:
    """A key that changes with any file's path or stamp, the decoding settings, and Pillow."""
    preprocessing = asdict(decoding.preprocessing)
    del preprocessing["mean"], preprocessing["std"]
    settings = [_FORMAT_VERSION, PIL.__version__, preprocessing, decoding.resize_to]
    key = hashlib.sha256(json.dumps([*settings, decoding.max_megapixels]).encode())
    for record in records:
        key.update(json.dumps(_identity(record)).encode())
    return key.hexdigest()[:40]


def _identity(record: Record) -> list[str | int]:
    if not isinstance(record.image, Path):
        return [record.name, record.image.content.hex()]
    try:
        status = record.image.stat()
    except OSError:
        return [record.name]
    return [str(record.image.absolute()), *stamp_of(status)]
