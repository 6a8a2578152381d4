"""Which image files are read: suffixes, and the formats whose decoders may be used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import cache
from importlib.util import find_spec
from os.path import splitext

_SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".bmp", ".dib", ".gif", ".webp", ".tif",
    ".tiff", ".ppm", ".pgm", ".pbm", ".pnm",
)  # fmt: skip
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
_HEIC = (".heic", ".heif", ".hif")

COMPANIONS = frozenset(
    (".csv", ".db", ".html", ".ini", ".json", ".jsonl", ".log", ".md", ".tsv", ".txt", ".xml",
     ".yaml", ".yml")
)  # fmt: skip
"""Suffixes of files found next to images that are clearly not images."""


@cache
def image_suffixes() -> frozenset[str]:
    """Suffixes that are read, in lower case; AVIF and HEIC if their libraries are installed."""
    avif = (".avif",) if _reads_avif() else ()
    return frozenset((*_SUFFIXES, *avif, *(_HEIC if _reads_heic() else ())))


@cache
def image_formats() -> tuple[str, ...]:
    """Pillow's names of the formats that are decoded; no other decoder is used."""
    avif = ("AVIF",) if _reads_avif() else ()
    if not _reads_heic():
        return (*_FORMATS, *avif)
    from pillow_heif import register_heif_opener

    register_heif_opener()
    return (*_FORMATS, *avif, "HEIF")


def is_image(name: str) -> bool:
    """Whether a file of that name is read: a visible one with an image's suffix."""
    return not name.startswith(".") and splitext(name)[1].lower() in image_suffixes()


def counted_suffixes(names: Iterable[str]) -> str:
    """How many files of which kind: "30 .heic, 4 .mov, 1 without a suffix"."""
    counts = Counter(splitext(name)[1].lower() for name in names)
    return ", ".join(f"{n:,} {suffix or 'without a suffix'}" for suffix, n in counts.most_common())


def suffix_hint(names: Iterable[str]) -> str:
    """What can be done about files that are not read."""
    if any(splitext(name)[1].lower() in _HEIC for name in names) and not _reads_heic():
        return "for HEIC: pip install 'vitune[heic]'"
    return "convert images to JPEG or PNG"


def _reads_avif() -> bool:
    from PIL import features

    return bool(features.check("avif"))


def _reads_heic() -> bool:
    return find_spec("pillow_heif") is not None
