"""sqft eval: accuracy on tasks and perplexity, on any runtime."""

from __future__ import annotations

import click
from click.core import ParameterSource

from sqft_plugins.cli.common import emit, examples, json_option, overwrite_option, rank_option


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
@click.argument("model", type=click.Path(), required=False)
@click.option("--adapter", type=click.Path(), help="An adapter over MODEL, unmerged.")
@rank_option
@click.option(
    "--task",
    "tasks",
    multiple=True,
    metavar="NAME",
    help="arc-easy, arc-challenge, openbookqa, boolq, gsm8k, svamp, mawps, one of a plug-in (`sqft plugins`), "
    "lm-eval:NAME of lm-evaluation-harness' own, or a task file. Repeatable. [default: word-problems]",
)
@click.option(
    "--data", type=click.Path(), metavar="FILE", help="Score a JSONL of prompt and completion instead of a task."
)
@click.option(
    "--data-dir",
    type=click.Path(),
    metavar="DIR",
    help="Local data of the tasks, a folder each (arc_easy, …). Default: $SQFT_DATA_DIR, else the hub.",
)
@click.option("--limit", type=click.IntRange(min=1), help="Only the first questions.")
@click.option("--shots", type=click.IntRange(min=0), help="Examples before each question. [default: the task's]")
@click.option("--seed", type=int, default=1234, show_default=True, help="Chooses the examples.")
@click.option(
    "--text",
    type=click.Path(),
    metavar="FILE",
    help="Text for the perplexity. Default: held-out text that Python ships.",
)
@click.option("--perplexity/--no-perplexity", default=True, help="Also the perplexity of a text. [default: on]")
@click.option("--dtype", help="fast (for this machine), auto (as stored), float32, … [default: fast]")
@click.option(
    "--accelerate",
    is_flag=True,
    help="Run INT4 layers from their packed form: less memory and mostly faster, the same up to rounding.",
)
@click.option("--threads", type=click.IntRange(min=1), help="Threads of llama.cpp. [default: all]")
@click.option("--batch-size", type=click.IntRange(min=1), default=64, show_default=True, help="Prompts at a time.")
@click.option("--server", metavar="URL", help="Ask a running vLLM server instead of loading MODEL.")
@click.option("--model", "served", metavar="NAME", help="The model that the server is asked for.")
@click.option("--no-cache", is_flag=True, help="Ask the model again what it has answered before.")
@click.option("--samples", type=click.Path(), metavar="FILE", help="Write every question with its answer, as JSONL.")
@overwrite_option
@json_option
@click.pass_context
def command(context, model, adapter, rank, tasks, data, data_dir, limit, shots, seed, text, perplexity, dtype, threads,
            accelerate, batch_size, server, served, no_cache, samples, overwrite, as_json) -> None:  # fmt: skip
    """Score MODEL: tasks, perplexity; each number with its standard error.

    MODEL is a folder or a .gguf file. Answers are greedy, options are judged by log-likelihood. What an unchanged model
    has answered before is not asked again.
    """
    from sqft_plugins.checkpoint import check_output
    from sqft_plugins.cli.eval_output import show, write_samples
    from sqft_plugins.compress.calibration import builtin_text, read_texts
    from sqft_plugins.evaluate.harness import choose_tasks
    from sqft_plugins.evaluate.report import evaluate_model, open_candidate

    if server and (model or adapter):
        raise click.UsageError("--server has its model: choose it with --model, and leave out MODEL and --adapter")
    if served and not server:
        raise click.UsageError("--model names what a --server is asked for: give the path of a model without it")
    if not adapter and context.get_parameter_source("rank") is ParameterSource.COMMANDLINE:
        raise click.UsageError("--rank is that of an adapter: give it with --adapter")
    if samples:
        check_output(samples, overwrite, "--samples")
    chosen = choose_tasks(tasks or (() if data else ("word-problems",)), data)
    prose = "\n\n".join(read_texts(text, "--text") if text else builtin_text("heldout")) if perplexity else None
    asked = {"dtype": dtype, "threads": threads, "accelerate": accelerate or None}
    options = {key: value for key, value in asked.items() if value is not None}
    candidate = open_candidate(
        model, adapter, rank, server=server, served=served, cache=not no_cache, batch_size=batch_size, **options
    )
    try:
        report = evaluate_model(
            candidate, chosen, data_dir=data_dir, limit=limit, shots=shots, seed=seed, text=prose, samples=bool(samples)
        )
    finally:
        candidate.close()
    if samples:
        write_samples(samples, report.pop("samples"), overwrite)
    result = {
        "model": candidate.name,
        "adapter": adapter,
        "rank": rank if adapter else None,
        **_short(report),
        **report,
    }
    emit(as_json, result, lambda: show(result))


def _short(report) -> dict:
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
