"""sqft inspect: what is in a folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from sqft_plugins.cli.common import emit, examples, json_option, overwrite_option, table


@click.command(
    epilog=examples(
        "sqft inspect models/gemma-50",
        "sqft inspect models/gemma-50-int4 --plot sparsity.png",
        "sqft inspect adapters/math --json",
    )
)
@click.argument("path", type=click.Path())
@click.option(
    "--plot", type=click.Path(), metavar="FILE.png", help="Write a heat map of zeros, blocks × kind of layer."
)
@overwrite_option
@json_option
def command(path, plot, overwrite, as_json) -> None:
    """Show what is in PATH, layer by layer.

    PATH is a model folder, float or INT4, or an adapter.

    Zeros, the mask and weights that break it, INT4 codes and scales, bits a weight on disk, the GGUF type.
    """
    from sqft_plugins.inspect import check_plot, inspect_path, plot_sparsity

    if plot:
        check_plot(plot, overwrite)
    report = inspect_path(path)
    if plot:
        plot_sparsity(report, plot, overwrite)
    emit(as_json, report, lambda: _show_model(report) if report["kind"] == "model" else _show_adapter(report))


def _show_model(report: Mapping[str, Any]) -> None:
    total, stamp = report["total"], report["stamp"] or {}
    rows = [_model_row(row) for row in report["layers"]]
    table(["layer", "shape", "type", "zeros %", "pruned %", "broken", "bits", "scale", "GGUF"], rows)
    click.echo(
        f"{report['path']}: {report['model_type']}, {total['weights'] / 1e6:.1f} M weights in {total['layers']} layers"
    )
    click.echo(f"zeros            {total['zeros']:.2%}")
    if total["pruned"] is None:
        click.echo("mask             none")
    else:
        broken = total["violations"]
        click.echo(f"mask             {total['pruned']:.2%} pruned, {broken} pruned weights are not zero")
    click.echo(f"bits a weight    {total['bits_per_weight']:.4g}")
    click.echo(f"file             {report['bytes'] / 2**20:.1f} MiB")
    click.echo(f"as GGUF          {', '.join(f'{count} {kind}' for kind, count in total['gguf'].items())}")
    if "codes" in total:
        grid = report["grid"]
        size = "per channel" if grid["group_size"] == -1 else f"group {grid['group_size']}"
        click.echo(f"grid             INT4, {size}, {'symmetric' if grid['symmetric'] else 'asymmetric'}")
        click.echo(f"scale            {total['scale'][0]:.3g} to {total['scale'][1]:.3g}")
        click.echo(
            "codes 0..15      " + " ".join(f"{100 * n / sum(total['codes']):.1f}" for n in total["codes"]) + " %"
        )
    if total["not_finite"]:
        click.echo(f"not finite       {total['not_finite']} weights are NaN or infinite")
    if stamp:
        click.echo(f"pipeline         {' → '.join(stamp['pipeline'])} (from {stamp.get('base')})")


def _model_row(row: Mapping[str, Any]) -> list[Any]:
    scale = f"{row['scale'][0]:.2g}..{row['scale'][1]:.2g}" if "scale" in row else ""
    pruned = "" if row["pruned"] is None else f"{100 * row['pruned']:.2f}"
    broken = "" if row["violations"] is None else row["violations"]
    shape = "×".join(map(str, row["shape"]))
    return [
        row["name"],
        shape,
        row["dtype"],
        f"{100 * row['zeros']:.2f}",
        pruned,
        broken,
        row["bits_per_weight"],
        scale,
        row["gguf"],
    ]


def _show_adapter(report: Mapping[str, Any]) -> None:
    total = report["total"]
    columns = ["rank", "in", "out", "dtype", "parameters"]
    table(["module", *columns], [[row["name"], *(row[c] for c in columns)] for row in report["layers"]])
    click.echo(
        f"{report['path']}: {report['type']} adapter, {total['parameters']:,} parameters in {total['modules']} modules"
    )
    for key in ("base", "alpha", "rank_choices", "sparse", "quantization_aware", "mask_hash"):
        if report[key] is not None:
            click.echo(f"{key:16} {report[key]}")
    click.echo(f"{'ranks':16} {', '.join(f'{count} of rank {rank}' for rank, count in total['ranks'].items())}")
    click.echo(f"{'file':16} {report['bytes'] / 2**20:.2f} MiB")
    if report["stamp"]:
        click.echo(f"{'pipeline':16} {' → '.join(report['stamp'].get('pipeline', []))}")
