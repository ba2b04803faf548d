"""matplotlib's pictures as part of a page: SVG whose texts are texts and whose colours follow the page's light or dark.

matplotlib draws with the stand-in colours below; in its SVG each becomes the CSS variable of that name, which
templates/style.css sets.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable
from functools import wraps
from importlib.util import find_spec
from io import StringIO
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, ParamSpec

from markupsafe import Markup

if TYPE_CHECKING:
    from matplotlib.axes import Axes

P = ParamSpec("P")
COLOURS = ("", "ink", "soft", "rule", "paper", "c1", "c2", "c3", "heat", "dot", "rest")
"""CSS variables. The first place is free: matplotlib writes no fill where it is black."""
INK, SOFT, RULE, PAPER, C1, C2, C3, HEAT, DOT, REST = (f"#0000{number:02x}" for number in range(1, len(COLOURS)))
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a name may hold a $
    "figure.constrained_layout.use": True,
    "font.size": 12,
    "text.color": INK,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": SOFT,
    "axes.titlecolor": SOFT,
    "axes.titlelocation": "left",
    "axes.titlesize": 12,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "legend.borderpad": 0,
    "lines.solid_joinstyle": "round",
}
STRONGEST = 0.75
"""The opacity of the largest value in a map: ink on it stays readable."""
TIP = "tip:"
"""An artist of matplotlib with this before its id: the rest is shown by the pointer."""


class Picture(NamedTuple):
    """What a chart has drawn. title, said: read out in place of the picture."""

    axes: Axes
    title: str
    said: str


def has_matplotlib() -> bool:
    return find_spec("matplotlib") is not None


def chart(draw: Callable[P, Picture | None]) -> Callable[P, Markup | None]:
    """Makes a function that draws one that returns SVG, or None where there is nothing to draw, or no matplotlib."""

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> Markup | None:
        if not has_matplotlib():
            return None
        from matplotlib import rc_context

        with rc_context({**STYLE, "svg.hashsalt": repr((args, kwargs))}), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing")  # the reader's fonts draw the text
            picture = draw(*args, **kwargs)
            return None if picture is None else _svg(picture)

    return drawn


def axes(
    width: float, height: float, title: str = "", *, x: str = "", y: str = "", grid: Literal["x", "y"] | None = "y"
) -> Axes:
    """An empty picture of so many CSS pixels. x, y: titles of the axes; that of y stands above, to be read unturned."""
    from matplotlib.figure import Figure

    axis = Figure(figsize=(width / 72, height / 72)).subplots()
    axis.set_title(title or y)
    axis.set_xlabel(x)
    axis.grid(visible=grid is not None, axis=grid or "both")
    return axis


def cells(
    axis: Axes,
    values: Iterable[tuple[float, float, float]],
    limits: tuple[float, float],
    size: tuple[float, float],
    tip: Callable[[float, float, float], str] | None = None,
) -> None:
    """A heat map. values: (x, y, value) of a cell around x and y. limits: the value of no colour, of the strongest.
    size: of a cell, where 1 leaves no gap."""
    from matplotlib.patches import Rectangle

    width, height = size
    for x, y, value in values:
        share = (value - limits[0]) / ((limits[1] - limits[0]) or 1)
        cell = Rectangle((x - width / 2, y - height / 2), width, height, facecolor=HEAT, clip_on=False)
        cell.set_alpha(STRONGEST * min(1.0, max(0.0, share)))
        if tip is not None:
            cell.set_gid(TIP + tip(x, y, value))
        axis.add_patch(cell)


def thousands(axis: Any) -> None:
    """Ticks such as 12k and 5.6M on one axis of a chart."""
    from matplotlib.ticker import EngFormatter

    axis.set_major_formatter(EngFormatter(sep=""))


def logarithmic_ticks(axis: Axes) -> None:
    """A logarithmic scale along x, with ticks at 10, 20, 50 and so on."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())


def whole(axis: Any, count: int = 6) -> None:
    """Ticks at whole numbers on one axis of a chart."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(count, integer=True))


def _svg(picture: Picture) -> Markup:
    figure: Any = picture.axes.figure  # get_figure(root=True) is of matplotlib 3.10
    file = StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(file, format="svg", transparent=True, metadata=nothing)

    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, count=1, flags=re.DOTALL)  # it styles all elements
    svg = re.sub(r' clip-path="[^"]*"|<defs>\s*<clipPath.*?</defs>', "", svg, flags=re.DOTALL)  # nothing is outside
    svg = re.sub(r'width="([\d.]+)pt" height="([\d.]+)pt"', r'width="\1" height="\2"', svg, count=1)

    # ids that nothing refers to would be there twice on a page; those of markers have a salt
    svg = re.sub(rf"<g id=(['\"]){TIP}(.*?)\1>", r"<g><title>\2</title>", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r"#0000(0[0-9a-f])", lambda found: f"var(--{COLOURS[int(found[1], 16)]})", svg)
    svg = re.sub(r" ?font-family: [^;\"]*;?| transform=\"rotate\(-0 [^\"]*\"", "", svg)
    svg = re.sub(r"\s*\n\s*", " ", re.sub(r"(\.\d\d)\d+", r"\1", svg))

    head = Markup('<svg role="img" aria-label="{0}. {1}" {2}<title>{0}</title><desc>{1}</desc>{3}')
    attributes, end, inside = svg.removeprefix("<svg").partition(">")
    return head.format(picture.title, picture.said, Markup(attributes + end), Markup(inside))
