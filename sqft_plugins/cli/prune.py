"""sqft prune: a sparse base."""

from __future__ import annotations

import click

from sqft_plugins.cli.common import emit, examples, json_option, out_option, overwrite_option


@click.command(
    epilog=examples(
        "sqft prune models/gemma --sparsity 0.5 --out models/gemma-50",
        "sqft prune models/gemma --sparsity 0.5 --calibration my-texts.jsonl --sequences 64 --out models/gemma-50",
        "sqft prune models/gemma --method magnitude --sparsity 0.3 --out models/gemma-30 --json",
    )
)
@click.argument("model")
@click.option("--sparsity", type=float, required=True, help="The fraction of weights to prune, 0..1.")
@click.option("--method", default="wanda", show_default=True, help="The pruning method; `sqft plugins` lists more.")
@click.option(
    "--calibration",
    type=click.Path(),
    metavar="FILE",
    help="Text, or JSONL with `text` or `prompt` and `completion`. Default: the language reference that Python ships.",
)
@click.option("--sequences", default=32, show_default=True, help="Calibration sequences.")
@click.option("--length", default=128, show_default=True, help="Tokens of each.")
@out_option
@overwrite_option
@json_option
def command(model, sparsity, method, calibration, sequences, length, out, overwrite, as_json) -> None:
    """Make MODEL sparse.

    MODEL is a folder, or a name on the hub; the linear layers of its blocks are pruned.

    Each layer is pruned when its inputs arrive, so it sees the pruned layers before it. The mask is stored in OUT/sqft.
    """
    from sqft_plugins.compress.prune import prune_folder

    report = prune_folder(model, out, method, sparsity, calibration, sequences, length, overwrite)
    emit(as_json, report, lambda: _show(report))


def _show(report) -> None:
    low, high = (f(layer["sparsity"] for layer in report["layers"]) for f in (min, max))
    click.echo(
        f"{report['out']}: {report['sparsity_reached']:.2%} of {report['weights'] / 1e6:.1f} M weights in "
        f"{report['modules']} layers pruned ({report['method']}; layers {low:.2%} to {high:.2%}), "
        f"{report['seconds']:.0f} s, peak {report['peak_memory_mib']} MiB"
    )
