"""sqft eval: accuracy on tasks and perplexity, on any runtime."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import click
from pydantic import model_validator

from sqft_plugins.checkpoint.files import check_output
from sqft_plugins.cli.verb import AtRank, Found, Overwrite, verb
from sqft_plugins.elastic import Rank
from sqft_plugins.errors import SQFTError
from sqft_plugins.evaluate.settings import EvalSettings
from sqft_plugins.settings import like, option
from sqft_plugins.settings.checked import THERE


class EvalCommand(EvalSettings, Overwrite):
    """The options that a recipe's `eval` does not have, before those that it has."""

    adapter: str | None = option(None, "An adapter over MODEL, unmerged.", "adapter")
    rank: Rank = like(AtRank, "rank")
    server: str | None = option(None, "Ask a running vLLM server instead of loading MODEL.", metavar="URL")
    served: str | None = option(None, "The model that the server is asked for.", name="--model", metavar="NAME")
    cache: bool = option(True, "Ask the model again what it has answered before.", name="--no-cache")
    samples: str | None = option(None, "Write every question with its answer, as JSONL.", "place", metavar="FILE")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.served and not self.server:
            raise SQFTError("--model names what a --server is asked for: give the path of a model without it")
        if not self.adapter and "rank" in self.model_fields_set:
            raise SQFTError("--rank is that of an adapter: give it with --adapter")
        if self.samples:
            check_output(self.samples, self.overwrite, "--samples")
        return self


@verb(
    "sqft eval models/gemma-50",
    "sqft eval models/gemma-50 --task arc-easy --task openbookqa --data-dir data --limit 300",
    "sqft eval models/gemma-50 --adapter adapters/math --rank min --data test.jsonl",
    "sqft eval models/gemma-int4 --accelerate --task arc-easy --data-dir data",
    "sqft eval gemma.gguf --task word-problems --limit 100 --json",
    "sqft eval --server http://localhost:8000 --model math@heuristic --task svamp --data-dir data",
    settings=EvalCommand,
)
@click.argument("model", type=THERE, required=False)
def command(model: str | None, settings: EvalCommand) -> Found:
    """Score MODEL: tasks, perplexity; each number with its standard error.

    MODEL is a folder or a .gguf file. Answers are greedy, options are judged by log-likelihood. What an unchanged model
    has answered before is not asked again.
    """
    from sqft_plugins.evaluate.harness import choose_tasks

    # everything that can be refused without loading anything
    if not model and not settings.server:
        raise click.UsageError("no model: give a folder or a .gguf file, or --server URL")
    if settings.server and (model or settings.adapter):
        raise click.UsageError("--server has its model: choose it with --model, and leave out MODEL and --adapter")
    chosen = choose_tasks(settings.tasks, settings.data)
    prose = settings.prose("--text")

    from sqft_plugins.cli.eval_output import show, write_samples
    from sqft_plugins.evaluate.report import evaluate_model, open_candidate

    samples = settings.samples
    candidate = open_candidate(
        model,
        **settings.model_dump(include={"adapter", "rank", "server", "served", "cache", "batch_size"}),
        **settings.runtime(),
    )

    try:
        report = evaluate_model(candidate, chosen, text=prose, samples=bool(samples), **settings.questions())
    finally:
        candidate.close()

    if samples:
        write_samples(samples, report.pop("samples"), settings.overwrite)
    about = {"adapter": settings.adapter, "rank": settings.rank if settings.adapter else None}
    result = {"model": candidate.name, **about, **_short(report), **report}
    return Found(result, lambda: show(result))


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
