"""Whether every image of a list can be decoded, checked before anything depends on it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import PIL

from vitune.data.content import default_cache_dir
from vitune.data.decode import Decoding, decode_image, quiet_pillow
from vitune.data.record_content import record_digests
from vitune.data.records import Record
from vitune.errors import DataError
from vitune.files import write_atomic

FOLDER = "readable"
CHUNK = 256
"""Images handed to the threads at a time: a bad one is reported before all of them are read."""


def require_readable(
    records: Sequence[Record], decoding: Decoding, *, num_workers: int = 8
) -> None:
    """Decode every file of a test split once and discard the pixels; drawings are always good.

    A list that passed is stored in the cache folder by its content, so that the next call only
    compares hashes.

    Raises:
        DataError: the first file that is missing or cannot be decoded; the message names it.
    """
    try:
        _decode_all(records, decoding, num_workers)
    except DataError as error:
        found = str(error).partition(", expected")[0]
        raise DataError(
            f"{found}, expected an intact image file: every image of a test split is scored, so "
            "--skip-bad-images does not skip it. Repair it, or remove it from the split."
        ) from None


def _decode_all(records: Sequence[Record], decoding: Decoding, num_workers: int) -> None:
    files = [record for record in records if isinstance(record.image, Path)]
    if not files:
        return
    passed = default_cache_dir() / FOLDER / _key(files, decoding)
    if passed.exists():
        return
    with quiet_pillow(), ThreadPoolExecutor(num_workers) as pool:
        for start in range(0, len(files), CHUNK):
            part = files[start : start + CHUNK]
            for _ in pool.map(lambda record: decode_image(record.image, decoding)[1], part):
                pass
    with suppress(OSError):  # an unwritable cache is not needed
        write_atomic(passed, "")


def _key(files: Sequence[Record], decoding: Decoding) -> str:
    settings = [PIL.__version__, asdict(decoding.preprocessing), decoding.max_megapixels]
    parts = [json.dumps(settings), *sorted(set(record_digests(files)))]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:40]
