"""The report in one sentence: what the numbers say, and nothing that they do not."""

from __future__ import annotations

from sqft_plugins.report.data import Artefact, Report, Score, Search
from sqft_plugins.report.read import FRACTIONS


def main_scores(artefact: Artefact) -> dict[str, Score]:
    """Task → the metric that stands for it, its first; the others stand in a table of their own."""
    found: dict[str, Score] = {}
    for score in artefact.scores:
        if score.metric != "perplexity":
            found.setdefault(score.task, score)
    return found


def perplexity(artefact: Artefact) -> Score | None:
    return next((score for score in artefact.scores if score.metric == "perplexity"), None)


def shown(score: Score, error: bool = True) -> str:
    """35.0 ± 3.8 %, or 18.5."""
    unit, factor = (" %", 100.0) if score.metric in FRACTIONS else ("", 1.0)
    text = f"{factor * score.value:.1f}"
    if error and score.stderr is not None:
        text += f" ± {factor * score.stderr:.1f}"
    return text + unit


def percent(fraction: float) -> str:
    """50.00 %; never 100.00 % where something is missing."""
    rounded = f"{100 * fraction:.2f}"
    return f"{'<100' if rounded == '100.00' and fraction < 1 else rounded} %"


def summary(report: Report) -> str:
    """Ends with a full stop."""
    parts = [_scored(report), *map(_searched, report.searches)]
    if not any(parts):
        parts = [_trained(report), _measured(report)]
    said = "; ".join(part for part in parts if part) or f"{len(report.artefacts)} artefacts"
    return f"{said[0].upper()}{said[1:]}."


def _scored(report: Report) -> str:
    """From the first scored artefact to the last of the smallest weights, on the first task."""
    tasks = [task for artefact in report.artefacts for task in main_scores(artefact)]
    if not tasks:
        return ""
    task = tasks[0]
    rows = [artefact for artefact in report.artefacts if task in main_scores(artefact)]
    first, last = rows[0], min(rows, key=lambda row: (row.bits_per_weight or 99.0, -rows.index(row)))
    text = f"{task}: {first.name} {shown(main_scores(first)[task])}"
    if last is first:
        return text
    facts = [f"{last.bits_per_weight:.2f} bits a weight"] if last.bits_per_weight else []
    if last.zeros_kept is not None:
        kept = "every pruned weight" if last.zeros_kept == 1 else f"{percent(last.zeros_kept)} of the pruned weights"
        facts.append(f"{kept} still zero")
    return f"{text}, {last.name} {shown(main_scores(last)[task])}" + (f" at {' and '.join(facts)}" if facts else "")


def _searched(search: Search) -> str:
    result = search.result
    return (
        f"the search by {result['settings']['method']} chose {result['chosen']['name']} after {result['evaluations']} "
        f"evaluations ({result['verdict']})"
    )


def _trained(report: Report) -> str:
    told = [
        f"{len(training.losses)} steps of {training.name} took the loss from {training.losses[0]:.2f} to "
        f"{training.losses[-1]:.2f}"
        for training in report.trainings
        if training.losses
    ]
    return "; ".join(told)


def _measured(report: Report) -> str:
    told = []
    for artefact in report.artefacts:
        facts = [f"{percent(artefact.zeros)} zeros"] if artefact.zeros is not None else []
        facts += [f"{artefact.bits_per_weight:.2f} bits a weight"] if artefact.bits_per_weight else []
        facts += [f"{artefact.bytes / 1e6:,.1f} MB"] if artefact.bytes else []
        told.append(f"{artefact.name} has {', '.join(facts)}" if facts else artefact.name)
    return "; ".join(told[:4]) + (f"; and {len(told) - 4} more" if len(told) > 4 else "")
