"""Colours and type of the figures, one set for paper and, as CSS variables, light and dark ones for the page.

Figures are drawn in the light colours. On the page each of these is replaced by a CSS variable, so one drawing
serves both themes.
"""

import io
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

INK, MUTED, GRID, PAPER, FAINT = "ink", "muted", "grid", "paper", "faint"

# role -> (light, dark). The series keep a contrast of 3 to the background in both and stay apart for colour-blind
# readers as far as ten colours can; markers and dashes say the same again.
COLOURS = {
    INK: ("#1b1f24", "#e6e8eb"),
    MUTED: ("#5c6570", "#a3abb5"),
    GRID: ("#dfe3e8", "#343b44"),
    PAPER: ("#fffffe", "#14181d"),
    FAINT: ("#7d8590", "#8b949e"),
    "series0": ("#0072b2", "#4aa8ea"),
    "series1": ("#d55e00", "#ff9040"),
    "series2": ("#00855f", "#35d0a2"),
    "series3": ("#b5478b", "#f29ac9"),
    "series4": ("#7d6300", "#e3c64b"),
    "series5": ("#5b3fa8", "#b8a0f5"),
    "series6": ("#3f474f", "#c6ccd3"),
    "series7": ("#a6192e", "#ff7583"),
    "series8": ("#4d7a1e", "#a9d36b"),
    "series9": ("#2a8fae", "#8fdcf5"),
}
_SERIES = [role for role in COLOURS if role.startswith("series")]
_MARKERS = "osD^vPX<>*"
_DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)))

_SETTINGS = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.edgecolor": COLOURS[MUTED][0],
    "axes.labelcolor": COLOURS[MUTED][0],
    "axes.titlecolor": COLOURS[INK][0],
    "axes.facecolor": "none",
    "axes.unicode_minus": True,
    "grid.color": COLOURS[GRID][0],
    "grid.linewidth": 0.8,
    "xtick.color": COLOURS[MUTED][0],
    "ytick.color": COLOURS[MUTED][0],
    "text.color": COLOURS[INK][0],
    "text.parse_math": False,  # a name may hold a dollar sign
    "legend.frameon": False,
    "svg.fonttype": "none",
    "savefig.facecolor": "none",
}


@dataclass(frozen=True)
class Style:
    """How a system looks in every figure: the role of its colour, its marker and its dashes."""

    role: str
    marker: str
    dashes: Any

    @property
    def colour(self) -> str:
        """The light colour, in which figures are drawn."""
        return colour(self.role)


def colour(role: str) -> str:
    """The light colour of a role."""
    return COLOURS[role][0]


def styles(systems: Iterable[str]) -> dict[str, Style]:
    """A style for each system, by its place in the table."""
    return {
        name: Style(_SERIES[i % len(_SERIES)], _MARKERS[i % len(_MARKERS)], _DASHES[i // 3 % len(_DASHES)])
        for i, name in enumerate(systems)
    }


def settings() -> Any:
    """A context in which figures are made and drawn: only inside it are matplotlib's settings changed."""
    return matplotlib.rc_context(_SETTINGS)


def to_png(figure: Figure) -> bytes:
    """The figure on white, 160 dots an inch."""
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=160, facecolor="white")
    return buffer.getvalue()


def to_svg(figure: Figure, label: str) -> str:
    """The figure as an `<svg>` element to put into a page: no header, no names of other documents, themed.

    Args:
        figure: drawn in the light colours.
        label: what a screen reader says; also keeps the element's ids apart from those of other figures.
    """
    FigureCanvasSVG(figure)
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": label}):
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    head, body = text.split(">", 1)
    box = re.search(r'viewBox="[^"]*"', head)
    body = re.sub(r'<g id="[^"]*"', "<g", body)  # only what is referred to keeps an id: a page has many figures
    for role, (light, _) in COLOURS.items():
        body = body.replace(light, f"var(--{role})")
    body = re.sub(r"<!--.*?-->", "", body, flags=re.DOTALL)
    body = body.replace("xlink:href", "href").replace("'DejaVu Sans'", "system-ui")
    return f'<svg {box[0] if box else ""} role="img">' + body


def css() -> str:
    """The colours as CSS variables, light and dark."""
    light, dark = ("".join(f"--{role}:{pair[i]};" for role, pair in COLOURS.items()) for i in (0, 1))
    return f":root{{color-scheme:light dark;{light}}}@media (prefers-color-scheme:dark){{:root{{{dark}}}}}"
