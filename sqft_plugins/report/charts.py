"""The charts of a run: loss and drawn ranks, the search, maps over the layers, codes, sizes, scores.

Each returns one picture, labelled where the thing is rather than in a legend, or None where there is nothing to draw.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from statistics import fmean

from sqft_plugins.report.html import Markup, tag
from sqft_plugins.report.svg import Scale, apart, label, line, number, picture, spanning, stroke, x_axis, y_axis
from sqft_plugins.tune.loss_plot import smoothed

WIDTH = 520
"""Of a chart in half a page."""
POINTS = 1000
"""Of a loss curve, at most: of more steps, the lowest and the highest of each part, and the mean for the bold line."""
BINS = 120
"""Columns of the strip of drawn ranks, at most."""
STRONGEST = 0.75
"""The opacity of the largest value in a map: ink on it stays readable."""
ORDER = ("q_proj", "k_proj", "v_proj", "qkv_proj", "o_proj", "gate_proj", "gate_up_proj", "up_proj", "down_proj")
"""Layers as they follow each other in a block."""
WIDE = 20
"""Values further apart than this factor are drawn on a logarithmic scale."""


def loss_chart(
    name: str,
    losses: Sequence[float],
    held_out: Sequence[tuple[int, float]] = (),
    limits: tuple[float, float] | None = None,
) -> Markup | None:
    """The loss of every step, smoothed, and that of held-out examples. limits: of the y axis, to compare several."""
    steps = [(step, loss) for step, loss in enumerate(losses, 1) if math.isfinite(loss)]
    if len(steps) < 2:
        return None
    size = math.ceil(len(steps) / POINTS)
    parts = [steps[at : at + size] for at in range(0, len(steps), size)]
    drawn = [point for part in parts for point in sorted({min(part, key=_loss), max(part, key=_loss)})]
    height, left, bottom = 250, 52, 204
    x = Scale(1, max(len(losses), 2), left, WIDTH - 62)
    y = spanning(limits or [loss for _, loss in (*steps, *held_out)], bottom, 30)
    means = smoothed([fmean(map(_loss, part)) for part in parts])
    smooth = [(fmean(step for step, _ in part), loss) for part, loss in zip(parts, means, strict=True)]
    ends = [smooth[-1], *held_out[-1:]]
    heights = apart([y(loss) for _, loss in ends], 15)
    return picture(
        WIDTH,
        height,
        f"Loss of {name}",
        f"{len(losses)} steps, smoothed from {smooth[0][1]:.3g} to {smooth[-1][1]:.3g}"
        + "".join(f"; held out {loss:.3g} at step {step}" for step, loss in held_out)
        + ".",
        y_axis(y, left, "loss, nats a learned token", grid_to=x.end, top=14),
        x_axis(x, bottom, "step"),
        line([(x(step), y(loss)) for step, loss in drawn], "thin c1"),
        line([(x(step), y(loss)) for step, loss in smooth], "bold c1"),
        line([(x(step), y(loss)) for step, loss in held_out], "medium c2"),
        [tag("circle", cx=x(step), cy=y(loss), r=4, class_="dot c2") for step, loss in held_out],
        [label(x.end + 8, at + 4, f"{loss:.2f}", kind="value") for at, (_, loss) in zip(heights, ends, strict=True)],
    )


def _loss(point: tuple[int, float]) -> float:
    return point[1]


def draws_chart(name: str, choices: Sequence[int], draws: Sequence[Sequence[int]]) -> Markup | None:
    """Which ranks each step had: a row a rank, the stronger the more modules drew it. draws: for each step, how many
    modules drew each of `choices`."""
    if not draws or not any(map(sum, draws)):
        return None
    left, top, row, right = 52, 26, 20, WIDTH - 62
    size = max(1, math.ceil(len(draws) / BINS))
    bins = [[sum(counts) for counts in zip(*draws[at : at + size], strict=True)] for at in range(0, len(draws), size)]
    wide, total = (right - left) / len(bins), [sum(counts) for counts in zip(*draws, strict=True)]
    order = sorted(range(len(choices)), key=lambda index: -choices[index])
    cells = [
        _cell(left + column * wide, top + place * row, wide + 0.3, row - 3, counts[index] / max(sum(counts), 1))
        for place, index in enumerate(order)
        for column, counts in enumerate(bins)
        if counts[index]
    ]
    shares = {choices[index]: total[index] / sum(total) for index in order}
    bottom = top + len(order) * row
    return picture(
        WIDTH,
        bottom + 44,
        f"Ranks drawn while training {name}",
        "Share of all draws: " + ", ".join(f"rank {rank} {share:.0%}" for rank, share in shares.items()) + ".",
        label(0, 14, "rank drawn; the stronger, by the more modules", kind="name"),
        cells,
        [label(left - 8, top + i * row + 13, rank, "end", "tick") for i, rank in enumerate(shares)],
        [label(right + 8, top + i * row + 13, f"{share:.0%}", kind="value") for i, share in enumerate(shares.values())],
        x_axis(Scale(1, max(len(draws), 2), left, right), bottom, "step"),
    )


def front_chart(
    points: Sequence[tuple[float, float, float]],
    front: Sequence[tuple[float, float]],
    marked: Mapping[str, tuple[float, float]],
    axes: tuple[str, str],
    better: str,
) -> Markup | None:
    """Every trial by cost and score. points: (cost, score, stderr). marked: "chosen", "heuristic" → (cost, score)."""
    if not points:
        return None
    height, left, bottom = 320, 62, 262
    x = spanning([cost for cost, _, _ in points], left, WIDTH - 16, room=0.12)
    ends = [value for _, score, error in points for value in (score - error, score + error)]
    y = spanning(ends, bottom, 34)
    found = [stroke(x(cost), y(score - error), x(cost), y(score + error), "whisker") for cost, score, error in points]
    found += [tag("circle", cx=x(cost), cy=y(score), r=3.5, class_="dot muted") for cost, score, _ in points]
    ordered = sorted(front)
    steps = [place for a, b in pairwise(ordered) for place in (a, (b[0], a[1]))] + ordered[-1:]
    found.append(line([(x(cost), y(score)) for cost, score in steps], "medium c1"))
    found += [tag("circle", cx=x(cost), cy=y(score), r=4.5, class_="dot c1") for cost, score in ordered]
    for index, (name, (cost, score)) in enumerate(sorted(marked.items(), key=lambda item: y(item[1][1]))):
        at = (x(cost), y(score))
        found.append(_diamond(*at) if name == "chosen" else _square(*at))
        beyond = at[0] > (x.start + x.end) / 2
        place = at[0] - 11 if beyond else at[0] + 11
        shift = -7 if index == 0 else 15
        found.append(label(place, at[1] + shift, name, "end" if beyond else "start", "value mark"))
    return picture(
        WIDTH,
        height,
        f"What the search saw: {axes[1]} against {axes[0]}",
        f"{len(points)} trials, {len(front)} of them on the front; {better}. Whiskers: one standard error.",
        y_axis(y, left, f"{axes[1]}; {better}", grid_to=x.end, top=14),
        x_axis(x, bottom, axes[0], ticks=4),
        found,
    )


def history_chart(trials: Sequence[tuple[int, float]], minimize: bool, score: str) -> Markup | None:
    """The score of each trial in its order, and the best so far as a line."""
    if len(trials) < 2:
        return None
    height, left, bottom = 320, 62, 262
    x = Scale(trials[0][0], max(trials[-1][0], trials[0][0] + 1), left + 6, WIDTH - 16)
    y = spanning([value for _, value in trials], bottom, 34, room=0.12)
    best = trials[0][1]
    steps: list[tuple[float, float]] = []
    for at, value in trials:
        if steps:
            steps.append((x(at), steps[-1][1]))
        best = min(best, value) if minimize else max(best, value)
        steps.append((x(at), y(best)))
    return picture(
        WIDTH,
        height,
        f"Best {score} so far, by evaluation",
        f"{len(trials)} evaluations; the best is {best:.4g}.",
        y_axis(y, left, score, grid_to=x.end, top=14),
        x_axis(Scale(x.low, x.high, x.start, x.end), bottom, "evaluation", ticks=min(6, len(trials))),
        [tag("circle", cx=x(at), cy=y(value), r=3.5, class_="dot muted") for at, value in trials],
        line(steps, "medium c1"),
        label(steps[-1][0], steps[-1][1] + (18 if minimize else -10), f"best {best:.4g}", "end", "value"),
    )


def layer_map(
    title: str,
    cells: Mapping[tuple[int, str], float],
    limits: tuple[float, float],
    written: str,
    unit: str,
    width: int = 1040,
) -> Markup | None:
    """A heat map, kinds of layer × blocks. cells: (block, kind) → value. limits: value of no colour, of the strongest.
    written: the format of a value, printed into the cells where there is room."""
    if not cells:
        return None
    blocks, kinds = sorted({block for block, _ in cells}), _ordered({kind: None for _, kind in cells})
    left = 18 + 6.8 * max(len(kind) for kind in kinds)
    wide, row, top = min(48.0, max(7.0, (width - left) / len(blocks))), 24, 26
    place = {block: left + index * wide for index, block in enumerate(blocks)}
    shown = max(len(format(value, written)) for value in cells.values()) * 6.4 + 4 <= wide
    drawn = []
    for (block, kind), value in cells.items():
        x, y = place[block], top + kinds.index(kind) * row
        share = (value - limits[0]) / ((limits[1] - limits[0]) or 1)
        said = tag("title", f"block {block}, {kind}: {format(value, written)}{unit}")
        drawn.append(_cell(x, y, wide - 1, row - 1, share, said))
        if shown:
            drawn.append(label(x + (wide - 1) / 2, y + 16, format(value, written), "middle", "cell"))
    every = max(1, math.ceil(26 / wide))
    bottom = top + len(kinds) * row
    values = list(cells.values())
    return picture(
        max(left + len(blocks) * wide + 2, 6.6 * len(title)),
        bottom + 40,
        title,
        f"{len(blocks)} blocks, {len(kinds)} kinds of layer, "
        f"from {format(min(values), written)}{unit} to {format(max(values), written)}{unit}.",
        label(0, 14, title, kind="name"),
        drawn,
        [label(left - 8, top + i * row + 16, kind, "end", "tick") for i, kind in enumerate(kinds)],
        [label(place[b] + wide / 2, bottom + 15, b, "middle", "tick") for b in blocks[::every]],
        label(left + len(blocks) * wide / 2, bottom + 34, "block", "middle", "name"),
    )


def codes_chart(name: str, shares: Sequence[float], zero: int | None, of: str) -> Markup | None:
    """A bar a code. shares: fraction of `of` with each code. zero: the code of an exact zero, if all share one."""
    if not shares:
        return None
    height, left, bottom = 250, 44, 204
    y = spanning([100 * share for share in shares], bottom, 44, zero=True)
    wide = (WIDTH - left - 8) / len(shares)
    drawn = []
    for code, share in enumerate(shares):
        x, peak = left + code * wide, y(100 * share)
        kind = "bar c2" if code == zero else "bar c1"
        drawn.append(_bar(x + 2, peak, wide - 4, bottom - peak, kind, f"code {code}: {share:.2%} of {of}"))
        if len(shares) <= 16:
            drawn.append(label(x + wide / 2, peak - 5, f"{100 * share:.1f}", "middle", "cell"))
        if len(shares) <= 16 or code % 4 == 0:
            drawn.append(label(x + wide / 2, bottom + 16, code, "middle", "tick"))
    name_of_axis = "INT4 code" + (f" ({zero} is an exact zero)" if zero is not None else "")
    return picture(
        WIDTH,
        height,
        f"INT4 codes of {name}",
        f"Of {of}: " + ", ".join(f"{code} {share:.1%}" for code, share in enumerate(shares)) + ".",
        label(0, 14, f"{name}: % of {of}", kind="name"),
        drawn,
        stroke(left, bottom, WIDTH - 8, bottom, "axis"),
        label((left + WIDTH) / 2, bottom + 36, name_of_axis, "middle", "name"),
    )


def sizes_chart(rows: Sequence[tuple[str, int, int]]) -> Markup | None:
    """A bar a file or folder. rows: (name, bytes of the linear layers, all bytes); 0 layers where nobody counted."""
    if not rows:
        return None
    row, left = 30, 22 + 7 * max(len(_short(name)) for name, _, _ in rows)
    top, split = 30, any(layers for _, layers, _ in rows)
    x = spanning([total / 1e6 for _, _, total in rows], left, WIDTH + 130, zero=True, room=0.0)
    bottom = top + row * len(rows)
    drawn = []
    for index, (name, layers, total) in enumerate(rows):
        y, cut, end = top + index * row, x(layers / 1e6), x(total / 1e6)
        drawn.append(label(left - 8, y + 17, _short(name), "end", "tick"))
        rest = "the rest, such as the embedding" if layers else "all"
        if layers:
            drawn.append(_bar(left, y + 3, cut - left, row - 10, "bar c1", f"{name}: layers {layers / 1e6:,.1f} MB"))
        drawn.append(
            _bar(cut, y + 3, end - cut, row - 10, "bar soft", f"{name}: {rest} {(total - layers) / 1e6:,.1f} MB")
        )
        drawn.append(label(end + 8, y + 17, f"{_megabytes(total)} MB", kind="value"))
    legend = [label(0, 14, "MB of weights on disk", kind="name")]
    if split:
        legend += [
            tag("rect", x=170, y=5, width=10, height=10, class_="bar c1"),
            label(186, 14, "linear layers of the blocks", kind="tick"),
            tag("rect", x=358, y=5, width=10, height=10, class_="bar soft"),
            label(374, 14, "the rest, or not told apart", kind="tick"),
        ]
    said = ", ".join(f"{name} {_megabytes(total)} MB" for name, _, total in rows)
    return picture(
        WIDTH + 220, bottom + 44, "Sizes on disk", f"{said}.", legend, drawn, x_axis(x, bottom, None, ticks=6)
    )


def scores_chart(title: str, axis: str, rows: Sequence[tuple[str, float, float | None]]) -> Markup | None:
    """A dot a row with its standard error as whiskers. rows: (name, value, stderr), in the unit of `axis`."""
    if len(rows) < 2:
        return None
    row, left, top = 26, 22 + 7 * max(len(_short(name)) for name, _, _ in rows), 30
    ends = [value + sign * (error or 0.0) for _, value, error in rows for sign in (-1, 1)]
    log = min(ends) > 0 and max(ends) > WIDE * min(ends)
    x = spanning(ends, left + 10, WIDTH - 56, log=log, room=0.08)
    if min(ends) >= 0:
        x = replace(x, low=max(x.low, 0.0))
    bottom = top + row * len(rows)
    drawn = []
    for index, (name, value, error) in enumerate(rows):
        y = top + index * row + row / 2
        drawn.append(label(left - 8, y + 4, _short(name), "end", "tick"))
        if error:
            drawn.append(stroke(x(value - error), y, x(value + error), y, "whisker c1"))
        drawn.append(tag("circle", cx=x(value), cy=y, r=4.5, class_="dot c1"))
        drawn.append(label(x(value + (error or 0.0)) + 9, y + 4, f"{value:.1f}", kind="value"))
    said = ", ".join(f"{name} {value:.3g}" + (f" ± {error:.2g}" if error else "") for name, value, error in rows)
    return picture(
        WIDTH,
        bottom + 44,
        title,
        f"{said}.",
        label(0, 14, title, kind="name"),
        x_axis(x, bottom, axis + (" (log scale)" if log else ""), grid_to=top, ticks=5),
        drawn,
    )


def _cell(x: float, y: float, width: float, height: float, share: float, said: Markup | None = None) -> Markup:
    opacity = STRONGEST * min(1.0, max(0.0, share))
    return tag(
        "rect", said, x=float(x), y=float(y), width=float(width), height=float(height), class_="heat",
        fill_opacity=round(opacity, 2),
    )  # fmt: skip


def _bar(x: float, y: float, width: float, height: float, kind: str, said: str) -> Markup:
    return tag(
        "rect",
        tag("title", said),
        x=float(x),
        y=float(y),
        width=max(0.0, float(width)),
        height=max(0.0, float(height)),
        class_=kind,
    )


def _diamond(x: float, y: float) -> Markup:
    return tag(
        "path", d=f"M{x:.1f} {y - 9:.1f}L{x + 9:.1f} {y:.1f}L{x:.1f} {y + 9:.1f}L{x - 9:.1f} {y:.1f}Z", class_="dot c2"
    )


def _square(x: float, y: float) -> Markup:
    return tag("rect", x=x - 6, y=y - 6, width=12, height=12, class_="dot c3")


def _ordered(kinds: Iterable[str]) -> list[str]:
    """As they follow each other in a block where their names are known, the others behind."""
    known = {name: place for place, name in enumerate(ORDER)}
    return sorted(kinds, key=lambda kind: known.get(kind.rpartition(".")[2], len(ORDER)))


def _short(name: str) -> str:
    """A name that leaves room for the chart."""
    return name if len(name) <= 26 else f"{name[:12]}…{name[-13:]}"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f}" if size >= 100e6 else number(round(size / 1e6, 1 if size >= 1e6 else 3))
