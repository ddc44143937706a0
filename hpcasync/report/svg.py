"""Figures as inline SVG whose colours follow the page that holds them.

Matplotlib writes fixed colours. Here it draws with stand-ins, which are then replaced by `currentColor` for text and
axes, and by the page's `--series-N` variables, with the light scheme's colour where no page defines them.
"""

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from hpcasync.report.style import ALONE, LIGHT

INK = "#0a0b01"
WIDTH_INCHES = 6.2  # 446 points: text of 12.5 points stays readable when the figure fills a telephone
TEXT_POINTS = 12.5
PNG_DOTS_PER_INCH = 150
_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": TEXT_POINTS,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "text.color": INK,
    "text.parse_math": False,  # a dollar sign in a run's name is a dollar sign
    "svg.fonttype": "none",
}


def series(index: int) -> str:
    """The stand-in for the colour of a series."""
    return f"#0a0c{index:02x}"


@contextmanager
def figure(rows: int, height_inches: float) -> Iterator[tuple[Figure, list[Axes]]]:
    """A figure of `rows` axes above each other, sharing x."""
    with matplotlib.rc_context(_STYLE):
        drawn = Figure(figsize=(WIDTH_INCHES, height_inches), layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.04))
        axes = drawn.subplots(rows, 1, sharex=True, squeeze=False)
        yield drawn, list(axes[:, 0])


def alone(svg: str) -> str:
    """An <svg> of :func:`render` as a file of its own, which brings the colours of both schemes along."""
    opening, rest = svg.split(">", 1)
    return f"{opening}><style>{ALONE}</style>{rest}"


def save(drawn: Figure, path: Path) -> None:
    """Writes `path`.svg and `path`.png, with the colours that the figure was drawn in."""
    for kind in ("svg", "png"):
        drawn.savefig(path.with_suffix(f".{kind}"), dpi=PNG_DOTS_PER_INCH, facecolor="white")


def render(drawn: Figure, name: str, description: str) -> str:
    """The figure as an <svg> element. `name` seeds the ids, so that several figures can share a page."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}), warnings.catch_warnings():
        # The reader's browser has the glyphs that the font used for measuring lacks.
        warnings.filterwarnings("ignore", "Glyph", UserWarning)
        drawn.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r' id="[A-Za-z0-9.]+_\d+"', "", text)  # matplotlib numbers its groups alike in every figure
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r"<style[^>]*>\*\{[^}]*\}</style>", "", text)  # would apply to the whole page
    text = re.sub(r' width="[^"]*pt"', "", re.sub(r' height="[^"]*pt"', "", text, count=1), count=1)
    text = text.replace(INK, "currentColor")
    for index, colour in enumerate(LIGHT):
        text = text.replace(series(index), f"var(--series-{index}, {colour})")
    label = escape(description)
    return text.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
