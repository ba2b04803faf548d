"""sqft eval: accuracy on tasks and perplexity, on any runtime."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click
from click.core import ParameterSource

from sqft_plugins.cli.common import emit, examples, json_option, overwrite_option, rank_option
from sqft_plugins.elastic import Rank
from sqft_plugins.evaluate.settings import EvalSettings
from sqft_plugins.settings.checked import ADAPTER_FOLDER, THERE
from sqft_plugins.settings.click_options import options


@click.command(
    epilog=examples(
        "sqft eval models/gemma-50",
        "sqft eval models/gemma-50 --task arc-easy --task openbookqa --data-dir data --limit 300",
        "sqft eval models/gemma-50 --adapter adapters/math --rank min --data test.jsonl",
        "sqft eval models/gemma-int4 --accelerate --task arc-easy --data-dir data",
        "sqft eval gemma.gguf --task word-problems --limit 100 --json",
        "sqft eval --server http://localhost:8000 --model math@heuristic --task svamp --data-dir data",
    )
)
@click.argument("model", type=THERE, required=False)
@click.option("--adapter", type=ADAPTER_FOLDER, help="An adapter over MODEL, unmerged.")
@rank_option
@options(settings=EvalSettings)
@click.option("--server", metavar="URL", help="Ask a running vLLM server instead of loading MODEL.")
@click.option("--model", "served", metavar="NAME", help="The model that the server is asked for.")
@click.option("--no-cache", is_flag=True, help="Ask the model again what it has answered before.")
@click.option("--samples", type=click.Path(), metavar="FILE", help="Write every question with its answer, as JSONL.")
@overwrite_option
@json_option
@click.pass_context
def command(
    context: click.Context,
    model: str | None,
    adapter: str | None,
    rank: Rank,
    settings: EvalSettings,
    server: str | None,
    served: str | None,
    no_cache: bool,
    samples: str | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Score MODEL: tasks, perplexity; each number with its standard error.

    MODEL is a folder or a .gguf file. Answers are greedy, options are judged by log-likelihood. What an unchanged model
    has answered before is not asked again.
    """
    from sqft_plugins.checkpoint import check_output
    from sqft_plugins.evaluate.harness import choose_tasks

    # everything that can be refused without loading anything
    if not model and not server:
        raise click.UsageError("no model: give a folder or a .gguf file, or --server URL")
    if server and (model or adapter):
        raise click.UsageError("--server has its model: choose it with --model, and leave out MODEL and --adapter")
    if served and not server:
        raise click.UsageError("--model names what a --server is asked for: give the path of a model without it")
    if not adapter and context.get_parameter_source("rank") is ParameterSource.COMMANDLINE:
        raise click.UsageError("--rank is that of an adapter: give it with --adapter")
    if samples:
        check_output(samples, overwrite, "--samples")
    chosen = choose_tasks(settings.tasks, settings.data)

    from sqft_plugins.cli.eval_output import show, write_samples
    from sqft_plugins.evaluate.report import evaluate_model, open_candidate

    prose = settings.prose("--text")
    candidate = open_candidate(
        model,
        adapter,
        rank,
        server=server,
        served=served,
        cache=not no_cache,
        batch_size=settings.batch_size,
        **settings.runtime(),
    )

    try:
        report = evaluate_model(candidate, chosen, text=prose, samples=bool(samples), **settings.questions())
    finally:
        candidate.close()

    if samples:
        write_samples(samples, report.pop("samples"), overwrite)
    about = {"model": candidate.name, "adapter": adapter, "rank": rank if adapter else None}
    result = {**about, **_short(report), **report}
    emit(as_json, result, lambda: show(result))


def _short(report: Mapping[str, Any]) -> dict[str, Any]:
    """For a single task that is judged by accuracy, its numbers at the top."""
    found = {name: scores for name, scores in report["results"].items() if name != "perplexity"}
    short = {"perplexity": report["results"].get("perplexity", {}).get("perplexity,none")}
    if len(found) != 1:
        return short
    ((task, scores),) = found.items()
    if "acc,none" not in scores:
        return short | {"task": task}
    questions = report["n-samples"].get(task, {}).get("effective")
    return short | {
        "task": task,
        "questions": questions,
        "accuracy": scores["acc,none"],
        "accuracy_stderr": scores["acc_stderr,none"],
    }
