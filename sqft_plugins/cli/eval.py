"""sqft eval: accuracy on a task and perplexity, on any runtime."""

from __future__ import annotations

import click

from sqft_plugins.cli.common import emit, examples, json_option, rank_option


@click.command(
    epilog=examples(
        "sqft eval models/gemma-50",
        "sqft eval models/gemma-50 --adapter adapters/math --rank min --data test.jsonl",
        "sqft eval gemma.gguf --task word-problems --limit 100 --json",
    )
)
@click.argument("model", type=click.Path())
@click.option("--adapter", type=click.Path(), help="An adapter over MODEL, unmerged.")
@rank_option
@click.option("--task", default="word-problems", show_default=True, help="The task; `sqft plugins` lists more.")
@click.option(
    "--data", type=click.Path(), metavar="FILE", help="Score a JSONL of prompt and completion instead of a task."
)
@click.option("--limit", type=click.IntRange(min=1), help="Only the first questions.")
@click.option(
    "--text",
    type=click.Path(),
    metavar="FILE",
    help="Text for the perplexity. Default: held-out text that Python ships.",
)
@click.option("--dtype", help="fast (for this machine), auto (as stored), float32, … [default: fast]")
@click.option("--threads", type=click.IntRange(min=1), help="Threads of llama.cpp. [default: all]")
@json_option
def command(model, adapter, rank, task, data, limit, text, dtype, threads, as_json) -> None:
    """Score MODEL: a task's questions, perplexity.

    MODEL is a folder or a .gguf file. Answers are greedy; the perplexity is that of a text.
    """
    from pathlib import Path

    from sqft_plugins.cli.common import table
    from sqft_plugins.compress.calibration import builtin_text, read_texts
    from sqft_plugins.evaluate import accuracy, open_session, perplexity
    from sqft_plugins.evaluate.tasks import JsonlTask, limited
    from sqft_plugins.plugins import get_manager

    chosen = JsonlTask(data) if data else get_manager().get("sqft_tasks", task, "--task")
    prose = "\n\n".join(read_texts(text, "--text") if text else builtin_text("heldout"))
    options = {"adapter": Path(adapter), "rank": rank} if adapter else {}
    options |= {key: value for key, value in (("dtype", dtype), ("threads", threads)) if value is not None}
    session = open_session(model, **options)
    score = accuracy(session, limited(chosen, limit))
    result = {
        "model": str(model),
        "adapter": adapter,
        "task": chosen.name,
        "questions": score.total,
        "accuracy": score.value,
        "accuracy_stderr": score.stderr,
        "perplexity": perplexity(session, prose),
    }
    session.close()
    row = [
        result["task"],
        result["questions"],
        f"{score.value:.3f} ± {score.stderr:.3f}",
        f"{result['perplexity']:.2f}",
    ]
    emit(as_json, result, lambda: table(["task", "questions", "accuracy", "perplexity"], [row], title=str(model)))
