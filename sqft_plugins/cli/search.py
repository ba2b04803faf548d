"""sqft search: which rank for which layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sqft_plugins.cli.common import table
from sqft_plugins.cli.verb import Found, Overwrite, verb
from sqft_plugins.search.methods import check_outputs, method_of
from sqft_plugins.search.settings import SearchInputs, SearchSettings
from sqft_plugins.settings import option
from sqft_plugins.settings.checked import ADAPTER_FOLDER, MODEL


class StudySettings(Overwrite):
    """Where the trials are, and what is written."""

    study: str | None = option(
        None,
        "Where the trials are: a journal, *.db (SQLite), or a database; #NAME names one of several. "
        "[default: OUT.journal]",
        metavar="FILE|URL",
    )
    worker: bool = option(False, "Only evaluate for --study, beside the process that has --out.")
    grid: str | None = option(None, "The quantized folder of a quantization-aware ADAPTER.", "file", metavar="DIR")
    out: str | None = option(None, "Where to write. Must not exist.", "place", metavar="DIR")


@verb(
    "sqft search models/gemma-50 adapters/math --data heldout.jsonl --out search/math --save searched",
    "sqft search models/gemma-50 adapters/math --data heldout.jsonl --method tpe --minutes 30 --out search/tpe",
    "sqft search models/gemma-50 adapters/math --task word-problems --method nsga2 --against parameters --out f",
    "sqft search models/gemma-50 adapters/math --data heldout.jsonl --study search/math.journal --worker",
    inputs=SearchInputs,
    settings=SearchSettings,
    study=StudySettings,
)
@click.argument("model", type=MODEL)
@click.argument("adapter", type=ADAPTER_FOLDER)
def command(model: str, adapter: str, inputs: SearchInputs, settings: SearchSettings, study: StudySettings) -> Found:
    """Search the best rank of every layer of ADAPTER over MODEL.

    Finalists are scored again on questions that the search never saw; the reported score is of others still, beside the
    heuristic's on the same questions. Killed, the same command goes on; a second one with --worker shares the work.

    OUT has configuration.json (for --rank), trials.csv, pareto.csv, pareto.png, front/ and search.json.
    """
    if (inputs.data is None) == (inputs.task is None):
        raise click.UsageError("give the questions: either --data FILE or --task NAME")
    if study.worker == (study.out is not None):
        raise click.UsageError("give --out DIR, or --worker and --study for a process that only evaluates")
    check_outputs(Path(adapter), study.out, study.study, inputs.save, study.overwrite)
    method_of(settings)
    inputs.check_starts("--start")
    questions = inputs.questions("--task")
    from sqft_plugins.search.run import search_adapter

    result = search_adapter(
        model,
        adapter,
        questions,
        settings,
        starts=inputs.starts,
        save=inputs.save,
        **study.model_dump(exclude={"worker"}),
    )
    return Found(result, lambda: _show(result))


def _show(result: dict[str, Any]) -> None:
    spent = f"{result['evaluations']} of {result['space']['size']} configurations, {result['ended']}"
    if "chosen" not in result:
        click.echo(f"{result['study']}: {spent}; {result['evaluations_of_this_call']} by this process")
        return

    # the finalists
    rows = [
        [row["name"], _score(row["search"]), _score(row["recheck"]), f"{row['parameters']:,.0f}"]
        for row in result["finalists"]
    ]
    questions = result["finalists"][0]["recheck"]["questions"]
    columns = ["finalist", "search", f"re-check, {questions} fresh questions", "parameters"]
    table(columns, rows, title=f"{result['settings']['objective']}, {result['unit']}; {spent}")

    # the winner, on questions of its own
    chosen, heuristic, difference = result["chosen"], result["heuristic"], result["difference"]
    click.echo(
        f"{Path(result['out']) / 'configuration.json'}: {chosen['name']}, {_score(chosen)} on {chosen['questions']} "
        f"questions that no choice was made by; heuristic {_score(heuristic)}, difference {_score(difference)} "
        f"(paired): {result['verdict']}"
    )

    if "saved" in result:
        saved = Path(result["saved"])
        click.echo(f"{saved}: as --rank {saved}, and served as {Path(result['adapter']).name}@{saved.stem}")


def _score(value: dict[str, float] | None) -> str:
    return "-" if value is None else f"{value['score']:.4f} ± {value['stderr']:.4f}"
