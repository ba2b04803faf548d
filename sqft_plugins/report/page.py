"""The page: one HTML file that needs nothing else, no script either."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqft_plugins._version import VERSION
from sqft_plugins.report import charts
from sqft_plugins.report.data import Artefact, Layers, Report, Score, Search, Training
from sqft_plugins.report.html import Markup, tag
from sqft_plugins.report.read import FRACTIONS
from sqft_plugins.report.style import CSS
from sqft_plugins.report.summary import main_scores, percent, perplexity, shown

Section = tuple[str, list[Any]]
"""Its heading and what stands below."""
NONE = "–"
EVEN = 0.05
"""Layers whose zeros differ by less, in per cent, need no map."""


def page(report: Report) -> str:
    """The report as a whole HTML document."""
    built = [
        artefacts(report.artefacts),
        scores(report.artefacts),
        training(report.trainings),
        searching(report),
        sparsity(report.layers),
        codes(report.layers),
        sizes(report.artefacts),
        making(report),
        left_out(report.left_out),
    ]
    sections = [(f"part-{index}", *section) for index, section in enumerate(built) if section is not None]
    made = f"{report.path} · sqft-plugins {VERSION} · {datetime.now().astimezone():%Y-%m-%d %H:%M %Z}"
    body = tag(
        "main",
        tag("h1", report.title),
        tag("p", report.summary, class_="lead"),
        tag("p", made, class_="note"),
        tag(
            "nav", [[tag("a", heading, href=f"#{anchor}"), " "] for anchor, heading, _ in sections], aria_label="Parts"
        ),
        [tag("section", tag("h2", heading), parts, id=anchor) for anchor, heading, parts in sections],
    )
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="generator", content=f"sqft-plugins {VERSION}"),
        tag("title", report.title),
        tag("style", Markup(CSS)),
    )
    return f"<!doctype html>\n{tag('html', head, tag('body', body), lang='en')}\n"


def artefacts(rows: Sequence[Artefact]) -> Section | None:
    """The table of everything that was found."""
    if not rows:
        return None
    tasks = list(dict.fromkeys(task for row in rows for task in main_scores(row)))
    columns: list[tuple[str, list[str]]] = [
        (_heading(task, rows), [shown_or_none(main_scores(row).get(task)) for row in rows]) for task in tasks
    ]
    columns += [
        ("perplexity", [shown_or_none(perplexity(row)) for row in rows]),
        ("zeros", [_percent(row.zeros) for row in rows]),
        ("zeros kept", [_percent(row.zeros_kept) for row in rows]),
        ("bits / weight", [_number(row.bits_per_weight, ".2f") for row in rows]),
        ("MB", _column([row.bytes and row.bytes / 1e6 for row in rows], 10, 1, 3)),
        ("seconds", _column([row.seconds for row in rows], 100, 0, 1)),
    ]
    used = [(name, cells) for name, cells in columns if any(cell != NONE for cell in cells)]
    head = ["", *(name for name, _ in used), "what it is"]
    body = [[row.name, *(cells[i] for _, cells in used), row.what] for i, row in enumerate(rows)]
    names = {name for name, _ in used}
    notes = [
        ("±", "one standard error"),
        ("zeros", "of the weights of the linear layers, those that are exactly 0"),
        ("zeros kept", "of the weights that pruning removed, those that are exactly 0 now"),
        ("bits / weight", "on disk, of the linear layers, with their scales"),
        ("MB", "weight files, 10⁶ bytes"),
        ("seconds", "to make it, and to score it where the run counted that in"),
    ]
    said = "; ".join(f"{name}: {text}" for name, text in notes if name in names or (name == "±" and tasks))
    return "Artefacts", [table(head, body, words=len(head) - 1), tag("p", f"{said}.", class_="note") if said else None]


def scores(rows: Sequence[Artefact]) -> Section | None:
    """What was scored, as pictures, and every metric as a table where the first table could not hold them."""
    tasks = list(dict.fromkeys(task for row in rows for task in main_scores(row)))
    found = []
    for task in tasks:
        scored = [(row.name, main_scores(row)[task]) for row in rows if task in main_scores(row)]
        fraction = scored[0][1].metric in FRACTIONS
        factor, axis = (100.0, "% of the questions") if fraction else (1.0, scored[0][1].metric)
        points = [(name, factor * s.value, None if s.stderr is None else factor * s.stderr) for name, s in scored]
        found.append(charts.scores_chart(f"{task}, {scored[0][1].metric}, ± one standard error", axis, points))
    texts = [(row.name, score.value, score.stderr) for row in rows if (score := perplexity(row)) is not None]
    found.append(charts.scores_chart("perplexity of other text; lower is better", "perplexity", texts))
    drawn = [figure(chart) for chart in found if chart is not None]
    every = [(row.name, score) for row in rows for score in row.scores]
    more = len(every) > sum(len(main_scores(row)) + (perplexity(row) is not None) for row in rows)
    counted = any(score.questions for _, score in every)
    if not drawn and not more and not counted:
        return None
    parts: list[Any] = [tag("div", drawn, class_="pair")] if drawn else []
    if more or counted:
        body = [
            [name, s.task, s.metric, shown(s), "" if s.questions is None else f"{s.questions:,}",
             "higher" if s.higher_is_better else "lower"]
            for name, s in every
        ]  # fmt: skip
        parts.append(table(["", "task", "metric", "value", "questions", "better"], body, left=(1, 2, 5)))
    return "Scores", parts


def training(rows: Sequence[Training]) -> Section | None:
    """A loss curve and the drawn ranks of each training."""
    if not rows:
        return None
    values = [
        loss for row in rows for loss in (*row.losses, *(held for _, held in row.held_out)) if math.isfinite(loss)
    ]
    limits = (min(values), max(values)) if values else None
    parts = []
    for row in rows:
        caption = "Thin: each step's batch. Bold: the mean of the steps around it."
        caption += " Dots: held-out examples." if row.held_out else ""
        drawn = [
            figure(charts.loss_chart(row.name, row.losses, row.held_out, limits), caption),
            figure(charts.draws_chart(row.name, row.rank_choices, row.draws)),
        ]
        facts = {"tuner": row.tuner, **row.settings}
        if row.seconds is not None:
            facts["seconds"] = round(row.seconds, 1)
        alone = len(rows) == 1  # then its facts stand beside the pictures, not below
        shown = [tag("div", drawn), definitions(facts)] if alone else [drawn, definitions(facts)]
        parts.append([tag("h3", row.name), tag("div", shown, class_="pair" if alone else None)])
    if len(rows) == 1:
        return "Training", parts
    return "Training", [tag("div", [tag("div", part) for part in parts], class_="pair")]


def searching(report: Report) -> Section | None:
    """Each search: what it found, and whether that is more than noise."""
    if not report.searches and not report.ranks:
        return None
    ranks = {row.name: {(block, kind): rank for block, kind, rank in row.cells} for row in report.ranks}
    parts: list[Any] = []
    for search in report.searches:
        parts += [tag("h3", search.name) if len(report.searches) > 1 else None, *_search(search)]
        cells = ranks.get(search.name)
        if cells:
            low, high = min(cells.values()), max(cells.values())
            limits = (low - (high - low) / 3 if high > low else 0.0, float(high))
            chart = charts.layer_map("ranks of the chosen configuration", cells, limits, ".0f", "")
            parts.append(figure(chart, wide=True))
    return "Search over ranks", parts


def _search(search: Search) -> list[Any]:
    result = search.result
    settings, unit, minimize = result["settings"], result["unit"], result["direction"] == "minimize"
    chosen, heuristic, difference = result["chosen"], result["heuristic"], result["difference"]
    better = "lower is better" if minimize else "higher is better"
    verdict = (
        f"{chosen['name']} was chosen among {result['evaluations']} evaluated configurations of {result['task']} by "
        f"{settings['method']}. On {chosen['questions']} questions that no choice was made by it scores "
        f"{_plus(chosen)} {unit}, the heuristic {_plus(heuristic)}; the difference is {_plus(difference)} (paired): "
    )
    cost = {"parameters": "parameters of the sub-adapter", "latency": "latency, µs a token"}.get(
        search.cost, search.cost
    )
    points = [(trial.cost, trial.score, trial.stderr) for trial in search.trials]
    on_front = [(trial.cost, trial.score) for trial in search.trials if trial.number in search.front]
    marked = {}
    for name, row in (("heuristic", heuristic), ("chosen", chosen)):
        trial = next((t for t in search.trials if row["name"] in (t.origin, f"trial {t.number}")), None)
        if trial is not None:
            marked[name] = (trial.cost, trial.score)
    score = f"{settings['objective']}, {unit}"
    drawn = [
        figure(
            charts.front_chart(points, on_front, marked, (cost, score), better),
            "Grey: trials, with one standard error. Blue: the front, which no other beats in score and cost. Diamond: "
            "chosen. Square: the heuristic, the median rank everywhere.",
        ),
        figure(charts.history_chart([(t.number, t.score) for t in search.trials], minimize, score)),
    ]
    rows = [
        [row["name"], _plus(row["search"]) if row.get("search") else NONE, _plus(row["recheck"]),
         f"{row['recheck']['questions']:,}", _number(row.get("parameters"), ",.0f")]
        for row in result["finalists"]
    ]  # fmt: skip
    head = ["finalist", f"search, {unit}", f"re-check, {unit}", "fresh questions", "parameters"]
    return [
        tag("p", verdict, tag("strong", result["verdict"]), "."),
        tag("div", drawn, class_="pair"),
        table(head, rows),
    ]


def sparsity(rows: Sequence[Layers]) -> Section | None:
    """Where the zeros are: a map, or one line where all layers have the same fraction."""
    flat, maps, broken = [], [], []
    for row in rows:
        cells = {(block, kind): 100 * zeros for block, kind, zeros in row.cells}
        if row.violations:
            broken.append(tag("p", f"{row.name}: {row.violations:,} pruned weights are not zero."))
        if not cells:
            continue
        title = f"{', '.join([row.name, *row.same])}: {percent(row.zeros)} zeros"
        if max(cells.values()) - min(cells.values()) < EVEN:
            flat.append(tag("p", f"{title}, in every one of {len(cells)} layers."))
            continue
        chart = charts.layer_map(f"{title}; % of each layer's weights", cells, (0, 100), ".1f", " %")
        maps.append(figure(chart, wide=True))
    return ("Sparsity by layer", [*broken, *flat, *maps]) if flat or maps else None


def codes(rows: Sequence[Layers]) -> Section | None:
    """How the INT4 codes are used, by the weights that the mask keeps."""
    found = []
    seen: list[tuple[list[str], list[int], Layers]] = []
    for row in rows:
        same = next((names for names, codes, _ in seen if codes == row.codes), None)
        if same is not None:
            same.append(row.name)
        elif sum(row.codes):
            seen.append(([row.name], row.codes, row))
    for names, _, row in seen:
        counts, of = list(row.codes), "all weights"
        caption = ""
        if row.zero_code is not None and row.pruned:
            pruned = round(row.pruned * sum(counts))
            counts[row.zero_code] = max(0, counts[row.zero_code] - pruned)
            of = "the kept weights"
            caption = f"{percent(row.pruned)} of the weights are pruned, with code {row.zero_code}; left out here."
        shares = [count / max(sum(counts), 1) for count in counts]
        found.append(figure(charts.codes_chart(", ".join(names), shares, row.zero_code, of), caption))
    return ("INT4 codes", [tag("div", found, class_="pair")]) if found else None


def sizes(rows: Sequence[Artefact]) -> Section | None:
    """Bytes on disk as bars."""
    known = [(row.name, row.layer_bytes or 0, row.bytes) for row in rows if row.bytes]
    if len(known) < 2:
        return None
    return "Sizes", [figure(charts.sizes_chart(known), wide=True)]


def making(report: Report) -> Section:
    """Recipe, command, steps, settings, and the machine of this page."""
    parts: list[Any] = []
    if report.command:
        parts.append(tag("pre", report.command))
    if report.recipe:
        parts += [tag("h3", "Recipe"), tag("pre", report.recipe)]
    if report.steps:
        total = sum(step.seconds or 0 for step in report.steps)
        rows = [[step.name, _number(step.seconds, ",.1f"), _settings(step.settings)] for step in report.steps]
        rows.append(["all", f"{total:,.1f}", ""])
        parts += [tag("h3", "Steps"), table(["", "seconds", "asked for"], rows, words=2)]
    if report.settings:
        parts += [tag("h3", "Settings"), definitions(report.settings)]
    parts += [tag("h3", "Where this page was made"), definitions(report.environment)]
    return "How it was made", parts


def left_out(found: dict[str, str]) -> Section | None:
    if not found:
        return None
    return "Left out", [table(["", "why"], [[name, why] for name, why in found.items()], words=1)]


def table(
    head: Sequence[str], rows: Iterable[Sequence[Any]], words: int | None = None, left: Sequence[int] = ()
) -> Markup:
    """The first column names the row, others are numbers, but the column `words` and those in `left`."""

    def kind(index: int) -> str | None:
        return None if index == 0 or index in left else "w" if index == words else "n"

    top = [tag("th", name, class_="n" if kind(i) == "n" else None, scope="col") for i, name in enumerate(head)]
    body = [
        tag("tr", tag("th", row[0], scope="row"), [tag("td", cell, class_=kind(i)) for i, cell in enumerate(row) if i])
        for row in rows
    ]
    return tag("div", tag("table", tag("thead", tag("tr", top)), tag("tbody", body)), class_="scroll", tabindex=0)


def figure(chart: Markup | None, caption: str = "", wide: bool = False) -> Markup | None:
    if chart is None:
        return None
    said = tag("figcaption", caption) if caption else None
    return tag("figure", chart, said, class_="wide" if wide else None)


def definitions(values: dict[str, Any]) -> Markup:
    return tag("dl", [[tag("dt", key.replace("_", " ")), tag("dd", _value(value))] for key, value in values.items()])


def shown_or_none(score: Score | None) -> str:
    return NONE if score is None else shown(score)


def _heading(task: str, rows: Sequence[Artefact]) -> str:
    found = next(main_scores(row)[task] for row in rows if task in main_scores(row))
    return task if found.metric == "acc" else f"{task}, {found.metric}"


def _percent(value: float | None) -> str:
    return NONE if value is None else percent(value)


def _column(values: Sequence[float | None], large: float, few: int, many: int) -> list[str]:
    """With `few` decimals where any value is `large`, else with `many`: those of a tiny model would all be 0."""
    decimals = few if max((value or 0.0 for value in values), default=0.0) >= large else many
    return [_number(value, f",.{decimals}f") for value in values]


def _number(value: float | None, written: str) -> str:
    return NONE if value is None else format(value, written)


def _plus(row: Mapping[str, float]) -> str:
    """Both with the decimals that the standard error calls for: two of its digits."""
    error = row["stderr"]
    decimals = min(8, max(1, 1 - math.floor(math.log10(error)))) if error > 0 else 4
    value = round(row["score"], decimals) + 0.0  # never -0.00
    return f"{value:.{decimals}f} ± {error:.{decimals}f}".replace("-", "−")


def _settings(values: dict[str, Any]) -> str:
    return ", ".join(f"{key} {_value(value)}" for key, value in values.items())


def _value(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_value, value))
    if isinstance(value, dict):
        return _settings(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else f"{value:g}" if isinstance(value, float) else str(value)
