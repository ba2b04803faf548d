"""sqft plan: sizes, memory and time before the long run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from sqft_plugins.checkpoint.hub import config_folder
from sqft_plugins.cli.common import duration, table
from sqft_plugins.cli.verb import Found, verb
from sqft_plugins.plan.settings import PlanSettings
from sqft_plugins.settings.checked import MODEL_NAME


@verb(
    "sqft plan models/gemma",
    "sqft plan models/gemma --sparsity 2:4 --method sparsegpt --quantize-method gptq --group-size 64",
    "sqft plan models/gemma --rank 32 --rank-choices 32,24,16 --target-modules q_proj,v_proj --steps 300",
    "sqft plan models/gemma --json && sqft prune models/gemma --sparsity 0.5 --out models/gemma-50",
    settings=PlanSettings,
)
@click.argument("model", type=MODEL_NAME)
def command(model: str, settings: PlanSettings) -> Found:
    """Say what compressing and tuning MODEL will take.

    MODEL is a float model folder; only its headers are read, and about a second is spent on measuring this machine.

    Sizes on disk are exact; peak memory and time are estimates. What a step would refuse is refused here. Exit code 1
    where memory or disk are too small.
    """
    config_folder(model)  # a name that the hub does not know is refused before torch is imported
    from sqft_plugins.plan import plan_folder

    report = plan_folder(model, settings)
    return Found(report, lambda: _show(report), code=int(not report["fits"]))


def _show(report: Mapping[str, Any]) -> None:
    from sqft_plugins.compress.coverage import describe

    click.echo(
        f"{report['model']}: {report['model_type']}, {report['weights'] / 1e6:.1f} M weights in {report['modules']} "
        "linear layers"
    )
    click.echo(f"pruned and quantized: {describe(report['coverage'])}")
    if report["targets"]:
        click.echo(f"adapted: {describe(report['adapter_coverage'])}")

    rows = [
        [
            stage["stage"],
            f"{'' if stage['exact'] else '≤ '}{stage['bytes'] / 1e6:.1f}",
            f"{stage['other'] / 1e6:.1f}",
            f"{stage['bits_per_weight']:.2f}",
        ]
        for stage in report["stages"]
    ]
    table(["on disk", "weights MB", "mask, tokenizer MB", "bits/weight"], rows)

    rows = [
        [
            step["step"],
            f"{step['peak_memory'] / 2**30:.1f}",
            duration(step["seconds"]),
            "" if step["fits"] else "does not fit",
        ]
        for step in report["steps"]
    ]
    table(["step (estimates)", "peak GiB", "time", ""], rows)

    rows = [
        [
            row["format"],
            row["of"],
            ", ".join(f"{count} {kind}" for kind, count in row["types"].items()),
            {True: "yes", False: "no", None: ""}[row["exact"]],
            "" if row["bytes"] is None else f"≤ {row['bytes'] / 1e6:.1f}",
            row["reason"],
        ]
        for row in report["exports"]
    ]
    table(["export", "of", "types", "exact", "MB", "why not"], rows)

    if not report["targets"]:
        click.echo("no adapter: the model has none of the default layers, name some with --target-modules")
    machine = report["machine"]
    click.echo(
        f"{machine['memory_available'] / 2**30:.1f} GiB of memory available; {machine['disk_free'] / 1e9:.0f} GB of "
        f"disk free, {report['disk_needed'] / 1e9:.2f} GB needed for all of it; {machine['threads']} thread(s), "
        f"{machine['gemm_gflops']:.0f} GFLOP/s (measured in {machine['measured_seconds']:.1f} s, at a load of "
        f"{machine['load']:.1f}: the times are those of a machine as busy as now)"
    )
    click.echo("fits" if report["fits"] else "does not fit")
