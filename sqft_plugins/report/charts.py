"""The charts of a run: loss and drawn ranks, the search, maps over the layers, codes, sizes, scores.

Each returns one picture as SVG, or None where there is nothing to draw.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from sqft_plugins.report.draw import (
    C1,
    C2,
    C3,
    DOT,
    PAPER,
    REST,
    Picture,
    axes,
    cells,
    chart,
    logarithmic_ticks,
    thousands,
    whole,
)
from sqft_plugins.tune.loss_plot import smoothed

WIDTH = 460
"""Of a chart in half a page."""
WIDE = 1040
"""Of a map over the layers."""
POINTS = 1000
"""Of a loss curve, at most: of more steps, the lowest and the highest of each part, and the mean for the bold line."""
BINS = 120
"""Columns of the strip of drawn ranks, at most."""
ORDER = ("q_proj", "k_proj", "v_proj", "qkv_proj", "o_proj", "gate_proj", "gate_up_proj", "up_proj", "down_proj")
"""Layers as they follow each other in a block."""
LOGARITHMIC = 20
"""Values further apart than this factor are drawn on a logarithmic scale."""
Point = tuple[float, float]


@chart
def loss_chart(
    name: str, losses: Sequence[float], held_out: Sequence[tuple[int, float]] = (), limits: Point | None = None
) -> Picture | None:
    """The loss of every step, smoothed, and that of held-out examples. limits: of the y axis, to compare several."""
    steps = [(step, loss) for step, loss in enumerate(losses, 1) if math.isfinite(loss)]
    if len(steps) < 2:
        return None

    size = math.ceil(len(steps) / POINTS)
    parts = [steps[at : at + size] for at in range(0, len(steps), size)]
    drawn = [point for part in parts for point in sorted({min(part, key=_loss), max(part, key=_loss)})]
    middles = [fmean(step for step, _ in part) for part in parts]
    means = smoothed([fmean(map(_loss, part)) for part in parts])

    axis = axes(WIDTH, 250, x="step", y="loss, nats a learned token")
    axis.plot(*zip(*drawn, strict=True), color=C1, alpha=0.45, linewidth=1)
    axis.plot(middles, means, color=C1, linewidth=2.5, label=f"smoothed, {means[-1]:.2f} at the end")
    if held_out:
        style: dict[str, Any] = {"color": C2, "marker": "o", "markersize": 6, "markeredgecolor": PAPER, "linewidth": 2}
        axis.plot(*zip(*held_out, strict=True), **style, label=f"held out, {held_out[-1][1]:.2f} at the end")
    if limits is not None and limits[0] < limits[1]:
        margin = 0.06 * (limits[1] - limits[0])
        axis.set_ylim(limits[0] - margin, limits[1] + margin)
    axis.legend(loc="upper right")
    whole(axis.xaxis)

    said = f"{len(losses)} steps, smoothed from {means[0]:.3g} to {means[-1]:.3g}"
    held = "".join(f"; held out {loss:.3g} at step {step}" for step, loss in held_out)
    return Picture(axis, f"Loss of {name}", f"{said}{held}.")


def _loss(point: tuple[int, float]) -> float:
    return point[1]


@chart
def draws_chart(name: str, choices: Sequence[int], draws: Sequence[Sequence[int]]) -> Picture | None:
    """Which ranks each step had: a row a rank, the stronger the more modules drew it. draws: for each step, how many
    modules drew each of `choices`, largest rank first."""
    if not draws or not any(map(sum, draws)):
        return None

    size = max(1, math.ceil(len(draws) / BINS))
    bins = [[sum(counts) for counts in zip(*draws[at : at + size], strict=True)] for at in range(0, len(draws), size)]
    total = [sum(counts) for counts in zip(*draws, strict=True)]
    shares = [count / sum(total) for count in total]

    axis = axes(WIDTH, 70 + 20 * len(choices), "rank drawn; the stronger, by the more modules", x="step", grid=None)
    drawn = [
        ((column + 0.5) * size + 0.5, row, count / max(sum(counts), 1))
        for column, counts in enumerate(bins)
        for row, count in enumerate(counts)
        if count
    ]
    cells(axis, drawn, (0, 1), (size, 0.85))
    axis.set(xlim=(0.5, len(bins) * size + 0.5), ylim=(len(choices) - 0.5, -0.5))
    axis.set_yticks(range(len(choices)), [f"{rank}" for rank in choices])
    right = axis.secondary_yaxis("right")
    right.set_yticks(range(len(choices)), [f"{share:.0%}" for share in shares])
    right.spines["right"].set_visible(False)
    whole(axis.xaxis)

    said = ", ".join(f"rank {rank} {share:.0%}" for rank, share in zip(choices, shares, strict=True))
    return Picture(axis, f"Ranks drawn while training {name}", f"Share of all draws: {said}.")


@chart
def front_chart(
    points: Sequence[tuple[float, float, float]],
    front: Sequence[Point],
    marked: Mapping[str, Point],
    names: tuple[str, str],
    better: str,
) -> Picture | None:
    """Every trial by cost and score. points: (cost, score, stderr). marked: "chosen", "heuristic" → (cost, score).
    names: of cost and score."""
    if not points:
        return None

    axis = axes(WIDTH, 320, x=names[0], y=f"{names[1]}; {better}")
    costs, scores, errors = zip(*points, strict=True)
    axis.errorbar(costs, scores, yerr=errors, fmt="none", ecolor=DOT, alpha=0.6)
    axis.scatter(costs, scores, s=40, color=DOT, edgecolor=PAPER, zorder=2)
    if front:
        at, best = zip(*sorted(front), strict=True)
        axis.step(at, best, where="post", color=C1, linewidth=2)
        axis.scatter(at, best, s=60, color=C1, edgecolor=PAPER, zorder=3)
    for name, (cost, score) in marked.items():
        marker, colour, size = ("D", C2, 110) if name == "chosen" else ("s", C3, 100)
        axis.scatter(cost, score, s=size, marker=marker, color=colour, edgecolor=PAPER, label=name, zorder=4)
    if marked:
        axis.legend(ncols=2, loc="upper right")
    thousands(axis.xaxis)

    said = f"{len(points)} trials, {len(front)} of them on the front; {better}. Whiskers: one standard error."
    return Picture(axis, f"What the search saw: {names[1]} against {names[0]}", said)


@chart
def history_chart(trials: Sequence[tuple[int, float]], minimize: bool, score: str) -> Picture | None:
    """The score of each trial in its order, and the best so far as a line."""
    if len(trials) < 2:
        return None

    numbers, values = zip(*trials, strict=True)
    best = [(min if minimize else max)(values[: place + 1]) for place in range(len(values))]
    axis = axes(WIDTH, 320, x="evaluation", y=score)
    axis.scatter(numbers, values, s=40, color=DOT, edgecolor=PAPER)
    axis.step(numbers, best, where="post", color=C1, linewidth=2, label=f"best so far, {best[-1]:.4g} in the end")
    axis.legend(loc="upper right" if minimize else "lower right")
    whole(axis.xaxis)
    said = f"{len(trials)} evaluations; the best is {best[-1]:.4g}."
    return Picture(axis, f"Best {score} so far, by evaluation", said)


@chart
def layer_map(
    title: str, values: Mapping[tuple[int, str], float], limits: Point, written: str, unit: str
) -> Picture | None:
    """A heat map, kinds of layer × blocks. values: (block, kind) → value. limits: value of no colour, of the strongest.
    written: the format of a value, printed into the cells where it fits."""
    if not values:
        return None

    blocks, kinds = sorted({block for block, _ in values}), _ordered({kind: None for _, kind in values})
    left = 30 + 7 * max(map(len, kinds))
    cell = min(48.0, max(7.0, (WIDE - left) / len(blocks)))
    fits = max(len(format(value, written)) for value in values.values()) * 6.4 + 4 <= cell
    column = {block: place for place, block in enumerate(blocks)}

    def tip(x: float, y: float, value: float) -> str:
        return f"block {blocks[int(x)]}, {kinds[int(y)]}: {format(value, written)}{unit}"

    width = max(left + len(blocks) * cell, 7 * len(title))
    axis = axes(width, 72 + 24 * len(kinds), title, x="block", grid=None)
    places = [(column[block], kinds.index(kind), value) for (block, kind), value in values.items()]
    cells(axis, places, limits, (0.96, 0.94), tip)
    if fits:
        for x, y, value in places:
            axis.text(x, y, format(value, written), ha="center", va="center", fontsize=11)
    # where the title is wider than the cells, they keep their width
    axis.set(xlim=(-0.5, max(len(blocks), (width - left) / cell) - 0.5), ylim=(len(kinds) - 0.5, -0.5))
    every = max(1, math.ceil(26 / cell))
    axis.set_xticks(range(0, len(blocks), every), [f"{block}" for block in blocks[::every]])
    axis.set_yticks(range(len(kinds)), kinds)
    axis.spines["bottom"].set_visible(False)

    low, high = (format(end, written) + unit for end in (min(values.values()), max(values.values())))
    return Picture(axis, title, f"{len(blocks)} blocks, {len(kinds)} kinds of layer, from {low} to {high}.")


@chart
def codes_chart(name: str, shares: Sequence[float], zero: int | None, of: str) -> Picture | None:
    """A bar a code. shares: fraction of `of` with each code. zero: the code of an exact zero, if all share one."""
    if not shares:
        return None

    exact = f" ({zero} is an exact zero)" if zero is not None else ""
    axis = axes(WIDTH, 250, f"{name}: % of {of}", x=f"code{exact}", grid=None)
    colours = [C2 if code == zero else C1 for code in range(len(shares))]
    bars = axis.bar(range(len(shares)), [100 * share for share in shares], color=colours)
    if len(shares) <= 16:
        axis.bar_label(bars, [f"{100 * share:.1f}" for share in shares], fontsize=11)
    axis.set_xticks(range(0, len(shares), 1 if len(shares) <= 16 else 4))
    axis.set_yticks([])

    said = ", ".join(f"{code} {share:.1%}" for code, share in enumerate(shares))
    return Picture(axis, f"codes of {name}", f"Of {of}: {said}.")


@chart
def sizes_chart(rows: Sequence[tuple[str, int, int]]) -> Picture | None:
    """A bar a file or folder. rows: (name, bytes of the linear layers, all bytes); 0 layers where nobody counted."""
    if not rows:
        return None

    names = [_short(name) for name, _, _ in rows]
    layers, rest = [part / 1e6 for _, part, _ in rows], [(total - part) / 1e6 for _, part, total in rows]
    axis = axes(WIDTH + 220, 80 + 30 * len(rows), "MB of weights on disk", grid=None)
    places = range(len(rows))
    if any(layers):
        axis.barh(places, layers, height=0.65, color=C1, label="linear layers of the blocks")
    label = "the rest, or not told apart" if any(layers) else None
    bars = axis.barh(places, rest, left=layers, height=0.65, color=REST, label=label)
    axis.bar_label(bars, [f"{_megabytes(total)} MB" for _, _, total in rows], padding=6, fontweight="bold")
    axis.set_yticks(places, names)
    axis.invert_yaxis()
    axis.margins(x=0.14)
    if any(layers):
        axis.legend(ncols=2, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.4)

    said = ", ".join(f"{name} {_megabytes(total)} MB" for name, _, total in rows)
    return Picture(axis, "Sizes on disk", f"{said}.")


@chart
def scores_chart(title: str, unit: str, rows: Sequence[tuple[str, float, float | None]]) -> Picture | None:
    """A dot a row with its standard error as whiskers. rows: (name, value, stderr), in `unit`."""
    if len(rows) < 2:
        return None

    values, errors = [value for _, value, _ in rows], [error or 0.0 for _, _, error in rows]
    ends = [value + sign * error for value, error in zip(values, errors, strict=True) for sign in (-1, 1)]
    low, high = min(ends), max(ends)
    logarithmic = low > 0 and high > LOGARITHMIC * low
    axis = axes(WIDTH, 80 + 26 * len(rows), title, x=unit + (" (log scale)" if logarithmic else ""), grid="x")
    if logarithmic:
        logarithmic_ticks(axis)
    axis.errorbar(values, range(len(rows)), xerr=errors, fmt="o", color=C1, markersize=8, markeredgecolor=PAPER)
    for place, (value, error) in enumerate(zip(values, errors, strict=True)):
        beside: dict[str, Any] = {"xytext": (8, 0), "textcoords": "offset points", "va": "center", "weight": "bold"}
        axis.annotate(f"{value:.1f}", (value + error, place), **beside)
    axis.margins(x=0.12)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    if low >= 0 and not logarithmic:
        axis.set_xlim(left=max(0.0, axis.get_xlim()[0]))
    axis.set_yticks(range(len(rows)), [_short(name) for name, _, _ in rows])

    said = ", ".join(f"{name} {value:.3g}" + (f" ± {error:.2g}" if error else "") for name, value, error in rows)
    return Picture(axis, title, f"{said}.")


def _ordered(kinds: Iterable[str]) -> list[str]:
    """As they follow each other in a block where their names are known, the others behind."""
    known = {name: place for place, name in enumerate(ORDER)}
    return sorted(kinds, key=lambda kind: known.get(kind.rpartition(".")[2], len(ORDER)))


def _short(name: str) -> str:
    """A name that leaves width for the chart."""
    return name if len(name) <= 26 else f"{name[:12]}…{name[-13:]}"


def _megabytes(size: int) -> str:
    digits = 0 if size >= 100e6 else 1 if size >= 1e6 else 3
    return f"{size / 1e6:,.{digits}f}"
