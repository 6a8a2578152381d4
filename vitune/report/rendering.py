"""From a template to one self-contained HTML file: everything is escaped, nothing is fetched."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitune.errors import VituneError
from vitune.files import write_atomic
from vitune.report import formatting

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).parent / "templates"


def write_page(
    target: Path, template: str, context: dict[str, Any], *, folder: Path | None = None
) -> Path:
    """Fill in `template` and write it to `target`, whole or not at all.

    Args:
        folder: where another room keeps its templates; they may extend and import those of here.

    Raises:
        VituneError: `target` is a folder.
    """
    if target.is_dir():
        raise VituneError(
            f"out: got the folder {str(target)!r}, expected a file name such as "
            f"{str(target / template)!r}."
        )
    html = _environment(folder).get_template(template).render(**context)
    write_atomic(target, html.encode("utf-8", errors="replace"))
    return target


def data_uri(content: bytes, media_type: str) -> str:
    """A picture as text that an <img> shows without a request; scripts in it stay dead."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


@cache
def _environment(folder: Path | None) -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader([TEMPLATES] if folder is None else [folder, TEMPLATES]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = (TEMPLATES / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment.globals.update(
        styles=Markup((TEMPLATES / "styles.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=f"sha256-{digest}",
    )
    for show in (
        formatting.count,
        formatting.short_count,
        formatting.percent,
        formatting.number,
        formatting.duration,
        formatting.size,
        formatting.memory,
        formatting.moment,
        formatting.setting,
        formatting.shorten,
    ):
        environment.filters["count_of" if show is formatting.count else show.__name__] = show
    return environment
