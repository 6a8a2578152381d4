"""The common style of the analysis plots: SVG whose colours follow light and dark mode."""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LETTERS_PER_INCH = 8.5
"""How many bold letters of a heading fit into an inch."""

NUM_SHADES = 12
ON_WHITE, ON_BLACK = (0.0, 0.9), (0.25, 1.0)
"""The part of viridis used for depth: without the palest end for white, the darkest for black."""

_DARK: dict[str, str] = {}
"""For every drawn colour, its replacement in dark mode."""


def themed(light: str, dark: str) -> str:
    """`light`, which dark mode shows as `dark`; both as #rrggbb, one dark colour for each light."""
    light = light.lower()
    assert _DARK.setdefault(light, dark.lower()) == dark.lower(), f"{light} has two dark colours"
    return light


INK = themed("#222222", "#e9eaee")
FAINT = themed("#dddddd", "#31353f")
EDGE = themed("#888888", "#7c8392")
BASE_COLOUR = themed("#b5b5b5", "#565c69")
_BLACKS = (themed("#232323", "#f2f3f5"), themed("#242424", "#101216"))
_WHITES = (themed("#fdfdfd", "#f2f3f5"), themed("#fefefe", "#101216"))
"""Inks on a shade, by whether its partner in dark mode is pale."""

RUN_COLOURS = tuple(
    themed(light, dark)
    for light, dark in (
        ("#0072B2", "#4FA9E2"), ("#D55E00", "#FF9350"), ("#009E73", "#3CCFA2"),
        ("#CC79A7", "#E7A5C9"), ("#56B4E9", "#9AD6F8"), ("#E69F00", "#F6C04A"),
        ("#1A1A1A", "#F4F4F4"),
    )
)  # fmt: skip
"""Okabe and Ito's colours, distinguishable with every kind of colour vision; without yellow."""

_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "vitune",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "axes.edgecolor": EDGE,
    "axes.labelcolor": INK,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "figure.titlesize": 12,
    "figure.titleweight": "bold",
    "legend.frameon": False,
    "xtick.color": EDGE,
    "ytick.color": EDGE,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
}

_FONTS = "'DejaVu Sans', Verdana, 'Segoe UI', system-ui, sans-serif"


@contextmanager
def new_figure(width: float, height: float) -> Iterator[Any]:
    """A matplotlib figure in the common style, sizes in inches; no window and no global state."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        yield Figure(figsize=(width, height), layout="constrained")


def svg(figure: Any) -> bytes:
    """The figure as the bytes of an SVG file: plain for any program, dark where the reader is.

    Colours in the file are those for white; a style sheet replaces each in dark mode, so that a
    program without style sheets still draws the light picture.
    """
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    content = io.StringIO()
    FigureCanvasSVG(figure).print_figure(content, format="svg", metadata={"Date": None})
    text = content.getvalue().replace("'DejaVu Sans'", _FONTS)
    text = text[text.index("<svg") :]  # without the address of an unused document type
    used = sorted(set(re.findall(r"#[0-9a-f]{6}\b", text)) & _DARK.keys())
    rules = "".join(
        f'[style*="{part}: {colour}"]{{{part}:{_DARK[colour]}!important}}'
        for colour in used
        for part in ("fill", "stroke")
    )
    dark = f"@media(prefers-color-scheme:dark){{{rules}}}"
    style = f"<style>:root{{color-scheme:light dark}}{dark}</style>"
    head, body = re.split(r"(?<=>)\s*(?=<metadata>|<defs>)", text, maxsplit=1)
    return f"{head}\n{style}\n{body}".encode()


def heading(figure: Any, title: str) -> None:
    """Write the heading over the whole figure, flush left and wrapped to fit."""
    letters = int(figure.get_figwidth() * LETTERS_PER_INCH)
    figure.suptitle(textwrap.fill(title, letters), x=0.01, ha="left")


def run_style(index: int) -> dict[str, Any]:
    """Colour and marker of the n-th run, the same in every plot; markers differ past 7 runs."""
    count = len(RUN_COLOURS)
    return {
        "color": RUN_COLOURS[index % count],
        "marker": MARKERS[(index + index // count) % len(MARKERS)],
    }


def depth_colours(deepest: int) -> Any:
    """A colour for every block from 0 to the deepest; `to_rgba(block)` and a colour bar."""
    import matplotlib
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize, to_hex

    viridis, most = matplotlib.colormaps["viridis"], max(deepest, 1)
    shades = [
        themed(*(to_hex(viridis(low + (high - low) * place)) for low, high in (ON_WHITE, ON_BLACK)))
        for place in (block / most for block in range(most + 1))
    ]
    return ScalarMappable(Normalize(-0.5, most + 0.5), ListedColormap(shades))


def heat_colours(top: float) -> Any:
    """NUM_SHADES on a scale from 0 to `top`: pale to strong, in dark mode dim to bright."""
    import matplotlib
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize, to_hex

    pale, bright = matplotlib.colormaps["YlGnBu"], matplotlib.colormaps["YlGnBu_r"]
    places = [step / (NUM_SHADES - 1) for step in range(NUM_SHADES)]
    shades = [themed(to_hex(pale(0.95 * p)), to_hex(bright(0.08 + 0.82 * p))) for p in places]
    return ScalarMappable(Normalize(0, top), ListedColormap(shades))


def readable_on(colour: Sequence[float]) -> str:
    """Ink that stands out on an (r, g, b, a) shade of `heat_colours` and on its dark partner."""
    from matplotlib.colors import to_hex, to_rgb

    inks = _BLACKS if _lightness(colour[:3]) > 0.5 else _WHITES
    return inks[_lightness(to_rgb(_DARK[to_hex(colour)])) > 0.5]


def _lightness(rgb: Sequence[float]) -> float:
    red, green, blue = rgb
    return 0.299 * red + 0.587 * green + 0.114 * blue
