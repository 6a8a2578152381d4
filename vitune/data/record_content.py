"""Content hashes of listed images, whether they are files or drawings."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from vitune.data.content import content_hashes
from vitune.data.records import Record
from vitune.errors import DataError


def record_digests(records: Sequence[Record]) -> list[str]:
    """sha256 of every image as hex digits: of the file's bytes, or of a drawing's content.

    Raises:
        DataError: a file that cannot be read.
    """
    files = [record.image for record in records if isinstance(record.image, Path)]
    of_files = iter(content_hashes(files))
    return [
        next(of_files)
        if isinstance(record.image, Path)
        else hashlib.sha256(record.image.content).hexdigest()
        for record in records
    ]


def record_hashes(records: Sequence[Record]) -> list[bytes | None]:
    """`record_digests` as bytes; None for a file that cannot be read."""
    try:
        return [bytes.fromhex(digest) for digest in record_digests(records)]
    except DataError:  # at least one file: find out which
        return [_hash_or_none(record) for record in records]


def _hash_or_none(record: Record) -> bytes | None:
    try:
        (digest,) = record_digests([record])
    except DataError:
        return None
    return bytes.fromhex(digest)
