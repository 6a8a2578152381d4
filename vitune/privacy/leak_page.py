"""One HTML page of an audit: figures, and originals beside what was recovered."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from vitune.errors import OutputError
from vitune.files import check_output, write_atomic
from vitune.privacy.leak import LeakRow, LeakSettings, Picture
from vitune.report import write_page

MOST_SHOWN = 16
TALL = 64
"""Pixels per side at which small images are shown."""
TITLES = {
    "labels": "Labels, from the head's gradient",
    "honest": "Gradient matching, honest backbone",
    "malicious": "Tampered backbone, method's own parameters",
    "head": "Tampered backbone, head alone",
}
SHORT = {
    "labels": "Labels",
    "honest": "Matching",
    "malicious": "Tampered",
    "head": "Tampered, head",
}
"""Titles for the narrow column of the table."""
FIGURES = (
    ("mse", "MSE", 4),
    ("psnr", "PSNR, dB", 1),
    ("ssim", "SSIM", 2),
    ("ms_ssim", "MS-SSIM", 2),
    ("lpips", "LPIPS", 2),
    ("found", "Found by pixels", 2),
    ("found_by_features", "Found by features", 2),
    ("patches", "Patches recovered", 2),
)
"""Fields of `Agreement`, their titles, and digits; LPIPS only where it could be computed."""


def check_leak_page(out: str | Path, *, force: bool = False) -> None:
    """Refuse a page that, or whose figures, would destroy a file of the user's.

    Raises:
        OutputError: one of both files is there and `force` is false, or is a folder; or they would
            be one.
    """
    page, figures = Path(out), _figures_of(out)
    if page == figures:
        raise OutputError(
            f"--out: got {str(out)!r}, expected the name of a page such as "
            f"{str(page.with_suffix('.html'))!r}: its figures go into the JSON file beside it."
        )
    for file in (page, figures):
        check_output(file, force=force)


def write_leak_page(
    out: str | Path, settings: LeakSettings, rows: Sequence[LeakRow], pictures: Sequence[Picture]
) -> Path:
    """Write `out` (HTML) and the same figures as JSON beside it.

    Raises:
        VituneError: `out` is a folder.
    """
    target = Path(out)
    shown = [
        {
            "title": TITLES[picture.row.attack],
            "row": picture.row,
            "originals": _sheet(picture.originals[:MOST_SHOWN]),
            "recovered": _sheet(picture.recovered[:MOST_SHOWN]),
        }
        for picture in pictures
    ]
    page = write_page(
        target,
        "leak.html",
        {
            "settings": settings,
            "rows": rows,
            "titles": SHORT,
            "shown": shown,
            "figures": [one for one in FIGURES if one[0] != "lpips" or _has_lpips(rows)],
        },
        folder=Path(__file__).parent / "templates",
    )
    values = {"method": settings.method, "backbone": settings.backbone, "data": settings.data}
    listed: dict[str, Any] = {**values, "rows": [row.as_dict() for row in rows]}
    write_atomic(_figures_of(out), json.dumps(listed, indent=1))
    return page


def _figures_of(out: str | Path) -> Path:
    return Path(out).with_suffix(".json")


def _has_lpips(rows: Sequence[LeakRow]) -> bool:
    return any(row.found is not None and row.found.lpips is not None for row in rows)


def _sheet(images: Tensor) -> str:
    """Images side by side as a data URI, nothing between them."""
    sizes = (TALL, max(1, round(TALL * images.shape[3] / images.shape[2])))
    strip = Image.new("RGBA", (len(images) * (sizes[1] + 4) - 4, sizes[0]))
    for index, image in enumerate(images):
        pixels = (image.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
        tile = Image.fromarray(pixels).resize((sizes[1], sizes[0]), Image.Resampling.NEAREST)
        strip.paste(tile, (index * (sizes[1] + 4), 0))
    buffer = io.BytesIO()
    strip.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
