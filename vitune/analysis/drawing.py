"""The look that all plots of the analysis share: colours, fonts, and figures turned into PNG."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

RUN_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
"""Okabe and Ito's colours, told apart with every kind of colour vision; yellow is left out."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X")
HEAT_COLOURS = "YlGnBu"
BASE_COLOUR = "#B5B5B5"
INK, FAINT = "#222222", "#DDDDDD"
DPI = 130
LETTERS_PER_INCH = 8.5
"""How many bold letters of a heading fit an inch."""

_STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": "#888888",
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
    "xtick.color": INK,
    "ytick.color": INK,
}


@contextmanager
def new_figure(width: float, height: float) -> Iterator[Any]:
    """A matplotlib figure in the shared look, sizes in inches; no window and no global state."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        yield Figure(figsize=(width, height), layout="constrained")


def png(figure: Any) -> bytes:
    """The figure as the bytes of a PNG file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    content = io.BytesIO()
    FigureCanvasAgg(figure).print_figure(
        content, format="png", dpi=DPI, metadata={"Software": None}
    )
    return content.getvalue()


def heading(figure: Any, title: str) -> None:
    """What one sees, over the whole figure, flush left and broken where it would not fit."""
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
    """Viridis without its palest end, from block 0 to the deepest; `to_rgba(block)` and a bar."""
    import matplotlib
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize

    shades = matplotlib.colormaps["viridis"]([0.9 * step / 255 for step in range(256)])
    return ScalarMappable(Normalize(0, max(deepest, 1)), ListedColormap(shades))


def readable_on(colour: Sequence[float]) -> str:
    """Black or white ink, whichever stands out on an (r, g, b, a) colour in [0, 1]."""
    red, green, blue = colour[:3]
    return "white" if 0.299 * red + 0.587 * green + 0.114 * blue < 0.5 else INK
