"""sqft run: a recipe, from prune to export."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from sqft_plugins.cli.common import duration, table
from sqft_plugins.cli.verb import Found, Overwrite, verb
from sqft_plugins.settings import option


class RunSettings(Overwrite):
    out: str | None = option(
        None, "The run folder. Default: the recipe's `out`, else its name without .yaml, here.", "place", metavar="DIR"
    )
    changes: list[str] = option(
        list,
        "On top of the recipe; STEP=false leaves a step out, model=… and out=… work, too. Repeatable.",
        name="--set",
        metavar="STEP.KEY=VALUE",
    )
    until: str | None = option(None, "The last step to make.", metavar="STEP")
    dry_run: bool = option(False, "Only show the steps: what is done, and the size, memory and time of each.")


@verb(
    "sqft run my.yaml --out runs/tickets",
    "sqft run my.yaml --dry-run",
    "sqft run my.yaml --set train.steps=10 --set eval.limit=20 --until merge --out runs/try",
    "sqft run my.yaml --set search=false --json",
    "sqft run method.yaml model.yaml task.yaml --dry-run      # three files, one recipe",
    settings=RunSettings,
)
@click.argument("recipes", type=click.Path(), nargs=-1, required=True, metavar="RECIPE.yaml…")
def command(recipes: tuple[str, ...], settings: RunSettings) -> Found:
    """Run the steps of a recipe, one after the other.

    Several files are one recipe: later ones add to earlier ones. Paths are relative to their file, those of --set to
    the current folder.

    OUT has what each step made, as OUT/STEP. Killed, the same command goes on; a step whose inputs are unchanged is not
    made again. What can be known to be wrong is refused before the first step.
    """
    from sqft_plugins.recipe.read import read_recipe

    recipe = read_recipe(recipes, settings.changes)
    from sqft_plugins.recipe.dry import plan_recipe
    from sqft_plugins.recipe.run import run_recipe

    if settings.dry_run:
        plan = plan_recipe(recipe, settings.out, until=settings.until, overwrite=settings.overwrite)
        return Found(plan, lambda: _show_plan(plan))
    report = run_recipe(recipe, settings.out, until=settings.until, overwrite=settings.overwrite)
    return Found(report, lambda: _show(report))


def _show(report: Mapping[str, Any]) -> None:
    tasks: dict[str, str] = {}  # task → the metric that is shown, the first that it has
    for row in report["artefacts"]:
        for task, scores in row["scores"].items():
            tasks.setdefault(task, next(key for key in scores if "," in key and "_stderr" not in key))

    rows = [
        [
            row["name"],
            _fraction(row.get("sparsity")),
            _fraction(row.get("zeros_kept")),
            _number(row.get("bits_per_weight"), 2),
            _number(row.get("bytes"), 1, 1e6),
            *(_score(row["scores"].get(task), metric) for task, metric in tasks.items()),
        ]
        for row in report["artefacts"]
    ]
    short = {task: metric.partition(",")[0] for task, metric in tasks.items()}
    heads = [task if task == metric else f"{task} {metric}" for task, metric in short.items()]
    table(["", "sparsity", "zeros kept", "bits/weight", "MB", *heads], rows, title=str(report["out"]))

    reused = [step["name"] for step in report["steps"] if step["reused"]]
    if reused:
        click.echo(f"done before, inputs unchanged: {', '.join(reused)}")


def _show_plan(plan: Mapping[str, Any]) -> None:
    rows = [
        [
            f"{number}/{len(plan['steps'])} {step['name']}",
            ", ".join(step["works_on"]),
            "done" if step["done"] else "",
            _number(step["peak_memory"], 1, 2**30),
            duration(step["seconds"]),
            _number(step["bytes"], 1, 1e6),
        ]
        for number, step in enumerate(plan["steps"], 1)
    ]
    table(["step", "works on", "", "peak GiB", "time", "MB on disk"], rows, title=f"{plan['recipe']} → {plan['out']}")

    machine = plan["machine"]
    if machine is None:
        click.echo("no estimates: the model is not here, or not a float one")
        return
    click.echo(
        f"estimates for this machine as busy as now: {machine['threads']} thread(s), {machine['gemm_gflops']:.0f} "
        f"GFLOP/s, {machine['memory_available'] / 2**30:.1f} GiB of memory and {machine['disk_free'] / 1e9:.0f} GB of "
        f"disk free; the steps that are left write {plan['disk_needed'] / 1e9:.2f} GB"
    )
    click.echo("fits" if plan["fits"] else "does not fit")


def _fraction(value: float | None) -> str:
    return "" if value is None else f"{value:.2%}"


def _number(value: float | None, digits: int, unit: float = 1) -> str:
    return "" if value is None else f"{value / unit:.{digits}f}"


def _score(scores: Mapping[str, Any] | None, metric: str) -> str:
    if scores is None or metric not in scores:
        return ""
    name, _, kind = metric.partition(",")
    error = scores.get(f"{name}_stderr,{kind}")
    digits = 3 if scores[metric] < 10 else 1  # an accuracy, or a perplexity
    return f"{scores[metric]:.{digits}f}" + (f" ± {error:.{digits}f}" if isinstance(error, float) else "")
