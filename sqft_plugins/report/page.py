"""The page: one HTML file that needs nothing else, no script either. templates/page.html.jinja has its words; here is
what its sections show, tables and charts made of the `Report`."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from datetime import datetime
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined

from sqft_plugins._version import VERSION
from sqft_plugins.progress import say
from sqft_plugins.report import charts, draw
from sqft_plugins.report.data import Artefact, Layers, Report, Search, Training
from sqft_plugins.report.read import FRACTIONS
from sqft_plugins.report.summary import main_scores, percent, perplexity, shown

GENERATOR = "sqft-plugins"
HEADINGS = {
    "artefacts": "Artefacts",
    "scores": "Scores",
    "training": "Training",
    "search": "Search over ranks",
    "sparsity": "Sparsity by layer",
    "codes": "codes",
    "sizes": "Sizes",
    "making": "How it was made",
    "left_out": "Left out",
}
NONE = "–"
EVEN = 0.05
"""Layers whose zeros differ by less, in per cent, need no map."""
NOTES = {
    "±": "one standard error",
    "zeros": "of the weights of the linear layers, those that are exactly 0",
    "zeros kept": "of the weights that pruning removed, those that are exactly 0 now",
    "bits / weight": "on disk, of the linear layers, with their scales",
    "MB": "weight files, 10⁶ bytes",
    "seconds": "to make it, and to score it where the run counted that in",
}
COSTS = {"parameters": "parameters of the sub-adapter", "latency": "latency, µs a token"}
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")


class Table(NamedTuple):
    """The first column names the row, the others are numbers. words: the column of running text. left: other columns of
    text."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: int | None = None
    left: Sequence[int] = ()


def page(report: Report) -> str:
    """The report as a whole HTML document. Without matplotlib it has the tables alone, and says so."""
    without_charts = "" if draw.has_matplotlib() else "pip install 'sqft-plugins[plot]' for them"
    if without_charts:
        say(f"no charts: {without_charts}")

    report = printable(report)
    made = {
        "artefacts": artefacts(report.artefacts),
        "scores": scores(report.artefacts),
        "training": training(report.trainings),
        "search": [searched(search, report) for search in report.searches],
        "sparsity": sparsity(report.layers),
        "codes": list(codes(report.layers)),
        "sizes": sizes(report.artefacts),
        "making": {"steps": steps(report)},
        "left_out": Table(["", "why"], list(report.left_out.items()), words=1) if report.left_out else None,
    }

    environment = Environment(
        loader=PackageLoader(__package__),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"plain": plain, "plus_minus": plus_minus}
    return environment.get_template("page.html.jinja").render(
        report=report,
        parts={name: part for name, part in made.items() if part},
        headings=HEADINGS,
        generator=f"{GENERATOR} {VERSION}",
        now=f"{datetime.now().astimezone():%Y-%m-%d %H:%M %Z}",
        without_charts=without_charts,
    )


# --- sections ---


def artefacts(rows: Sequence[Artefact]) -> dict[str, Any] | None:
    """The table of everything that was found, with a note on each of its columns."""
    if not rows:
        return None

    tasks = list(dict.fromkeys(task for row in rows for task in main_scores(row)))
    columns = [(_heading(task, rows), [_cell(main_scores(row).get(task), shown) for row in rows]) for task in tasks]
    columns += [
        ("perplexity", [_cell(perplexity(row), shown) for row in rows]),
        ("zeros", [_cell(row.zeros, percent) for row in rows]),
        ("zeros kept", [_cell(row.zeros_kept, percent) for row in rows]),
        ("bits / weight", [_cell(row.bits_per_weight, "{:.2f}".format) for row in rows]),
        ("MB", _column([row.bytes and row.bytes / 1e6 for row in rows], 10, 1, 3)),
        ("seconds", _column([row.seconds for row in rows], 100, 0, 1)),
    ]
    used = [(name, cells) for name, cells in columns if any(cell != NONE for cell in cells)]

    names = [name for name, _ in used]
    body = [[row.name, *(cells[i] for _, cells in used), row.what] for i, row in enumerate(rows)]
    notes = [f"{name}: {text}" for name, text in NOTES.items() if name in names or (name == "±" and tasks)]
    head = ["", *names, "what it is"]
    return {"table": Table(head, body, words=len(head) - 1), "notes": "; ".join(notes)}


def scores(rows: Sequence[Artefact]) -> dict[str, Any] | None:
    """What was scored, as pictures, and every metric as a table where the first table could not hold them."""
    drawn = []
    for task in dict.fromkeys(task for row in rows for task in main_scores(row)):
        scored = [(row.name, main_scores(row)[task]) for row in rows if task in main_scores(row)]
        metric = scored[0][1].metric
        factor, unit = (100.0, "% of the questions") if metric in FRACTIONS else (1.0, metric)
        points = [(name, factor * s.value, None if s.stderr is None else factor * s.stderr) for name, s in scored]
        drawn.append(charts.scores_chart(f"{task}, {metric}, ± one standard error", unit, points))
    texts = [(row.name, score.value, score.stderr) for row in rows if (score := perplexity(row)) is not None]
    drawn.append(charts.scores_chart("perplexity of other text; lower is better", "perplexity", texts))
    drawn = [chart for chart in drawn if chart is not None]

    every = [(row.name, score) for row in rows for score in row.scores]
    more = len(every) > sum(len(main_scores(row)) + (perplexity(row) is not None) for row in rows)
    table = None
    if more or any(score.questions for _, score in every):
        body = [
            [name, s.task, s.metric, shown(s), "" if s.questions is None else f"{s.questions:,}",
             "higher" if s.higher_is_better else "lower"]
            for name, s in every
        ]  # fmt: skip
        table = Table(["", "task", "metric", "value", "questions", "better"], body, left=(1, 2, 5))
    return {"charts": drawn, "table": table} if drawn or table else None


def training(rows: Sequence[Training]) -> list[dict[str, Any]]:
    """A loss curve, the drawn ranks and the settings of each training; the curves have one scale."""
    values = [loss for row in rows for loss in (*row.losses, *(held for _, held in row.held_out))]
    finite = list(filter(math.isfinite, values))
    limits = (min(finite), max(finite)) if finite else None
    return [
        {
            "name": row.name,
            "losses": charts.loss_chart(row.name, row.losses, row.held_out, limits),
            "held_out": row.held_out,
            "draws": charts.draws_chart(row.name, row.rank_choices, row.draws),
            "facts": {"tuner": row.tuner, **row.settings}
            | ({} if row.seconds is None else {"seconds": round(row.seconds, 1)}),
        }
        for row in rows
    ]


def searched(search: Search, report: Report) -> dict[str, Any]:
    """A search: what it found, and whether that is more than noise."""
    result = search.result
    unit, minimize = result["unit"], result["direction"] == "minimize"

    # the two configurations that the verdict compares, where their trials are known
    marked = {}
    for name in ("heuristic", "chosen"):
        wanted = result[name]["name"]
        trial = next((trial for trial in search.trials if wanted in (trial.origin, f"trial {trial.number}")), None)
        if trial is not None:
            marked[name] = (trial.cost, trial.score)
    score = f"{result['settings']['objective']}, {unit}"
    front = charts.front_chart(
        [(trial.cost, trial.score, trial.stderr) for trial in search.trials],
        [(trial.cost, trial.score) for trial in search.trials if trial.number in search.front],
        marked,
        (COSTS.get(search.cost, search.cost), score),
        "lower is better" if minimize else "higher is better",
    )

    # the strongest colour is the largest rank, and the smallest one is not white
    cells = {(block, kind): rank for row in report.ranks if row.name == search.name for block, kind, rank in row.cells}
    low, high = (min(cells.values()), max(cells.values())) if cells else (0, 0)
    limits = (low - (high - low) / 3 if high > low else 0.0, float(high))

    body = [
        [row["name"], plus_minus(row["search"]) if row.get("search") else NONE, plus_minus(row["recheck"]),
         f"{row['recheck']['questions']:,}", _cell(row.get("parameters"), "{:,.0f}".format)]
        for row in result["finalists"]
    ]  # fmt: skip
    return {
        "name": search.name,
        "result": result,
        "front": front,
        "history": charts.history_chart([(t.number, t.score) for t in search.trials], minimize, score),
        "finalists": Table(["finalist", f"search, {unit}", f"re-check, {unit}", "fresh questions", "parameters"], body),
        "ranks": charts.layer_map("ranks of the chosen configuration", cells, limits, ".0f", ""),
    }


def sparsity(rows: Sequence[Layers]) -> dict[str, list[Any]] | None:
    """Where the zeros are: a map, or one line where all layers have the same fraction."""
    flat, maps = [], []
    broken = [f"{row.name}: {row.violations:,} pruned weights are not zero." for row in rows if row.violations]
    for row in rows:
        cells = {(block, kind): 100 * zeros for block, kind, zeros in row.cells}
        title = f"{', '.join([row.name, *row.same])}: {percent(row.zeros)} zeros"
        if cells and max(cells.values()) - min(cells.values()) < EVEN:
            flat.append(f"{title}, in every one of {len(cells)} layers.")
        elif cells:
            maps.append(charts.layer_map(f"{title}; % of each layer's weights", cells, (0, 100), ".1f", " %"))
    return {"lines": [*broken, *flat], "maps": maps} if flat or maps else None


def codes(rows: Sequence[Layers]) -> Iterator[tuple[Any, str]]:
    """(chart, caption): how the INT4 codes are used, by the weights that the mask keeps. Models with the same codes
    share a chart."""
    alike: dict[tuple[int, ...], list[Layers]] = {}
    for row in rows:
        if sum(row.codes):
            alike.setdefault(tuple(row.codes), []).append(row)

    for found in alike.values():
        row = found[0]
        counts, of, caption = list(row.codes), "all weights", ""
        if row.zero_code is not None and row.pruned:
            counts[row.zero_code] = max(0, counts[row.zero_code] - round(row.pruned * sum(counts)))
            of = "the kept weights"
            caption = f"{percent(row.pruned)} of the weights are pruned, with code {row.zero_code}; left out here."
        shares = [count / max(sum(counts), 1) for count in counts]
        chart = charts.codes_chart(", ".join(layers.name for layers in found), shares, row.zero_code, of)
        if chart is not None:
            yield chart, caption


def sizes(rows: Sequence[Artefact]) -> Any:
    """Bytes on disk as bars."""
    known = [(row.name, row.layer_bytes or 0, row.bytes) for row in rows if row.bytes]
    return charts.sizes_chart(known) if len(known) > 1 else None


def steps(report: Report) -> Table | None:
    """The steps of a run, with what each was asked for."""
    if not report.steps:
        return None
    rows = [[step.name, _cell(step.seconds, "{:,.1f}".format), plain(step.settings)] for step in report.steps]
    total = sum(step.seconds or 0 for step in report.steps)
    return Table(["", "seconds", "asked for"], [*rows, ["all", f"{total:,.1f}", ""]], words=2)


# --- texts ---


def printable(value: Any) -> Any:
    """The value, with U+FFFD for control characters and for the bytes of a file name that are no UTF-8."""
    if isinstance(value, str):
        return CONTROL.sub("�", value)
    if isinstance(value, Mapping):
        return {printable(key): printable(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(printable, value))
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: printable(getattr(value, field.name)) for field in fields(value)})
    return value


def plain(value: Any) -> str:
    """A setting as a reader writes it."""
    if isinstance(value, list):
        return ", ".join(map(plain, value))
    if isinstance(value, dict):
        return ", ".join(f"{key} {plain(inner)}" for key, inner in value.items())
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else f"{value:g}" if isinstance(value, float) else str(value)


def plus_minus(row: Mapping[str, float]) -> str:
    """Score and standard error with the decimals that the error calls for: two of its digits."""
    error = row["stderr"]
    decimals = min(8, max(1, 1 - math.floor(math.log10(error)))) if error > 0 else 4
    value = round(row["score"], decimals) + 0.0  # never -0.00
    return f"{value:.{decimals}f} ± {error:.{decimals}f}".replace("-", "−")


def _heading(task: str, rows: Sequence[Artefact]) -> str:
    found = next(main_scores(row)[task] for row in rows if task in main_scores(row))
    return task if found.metric == "acc" else f"{task}, {found.metric}"


def _cell(value: Any, write: Callable[[Any], str]) -> str:
    return NONE if value is None else write(value)


def _column(values: Sequence[float | None], large: float, few: int, many: int) -> list[str]:
    """With `few` decimals where any value is `large`, else with `many`: those of a tiny model would all be 0."""
    decimals = few if max((value or 0.0 for value in values), default=0.0) >= large else many
    return [_cell(value, f"{{:,.{decimals}f}}".format) for value in values]
