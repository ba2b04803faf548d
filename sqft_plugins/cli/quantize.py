"""sqft quantize: INT4 with the mask kept."""

from __future__ import annotations

import click

from sqft_plugins.cli.common import (
    calibration_options,
    emit,
    examples,
    exclude_option,
    json_option,
    out_option,
    overwrite_option,
)


@click.command(
    epilog=examples(
        "sqft quantize models/gemma-50 --out models/gemma-50-int4",
        "sqft quantize models/gemma-50 --method gptq --out models/gemma-50-int4",
        "sqft quantize models/gemma-50 --group-size 64 --asymmetric --out models/gemma-50-int4",
        "sqft quantize models/gemma-50 --group-size -1 --out models/gemma-50-int4 --json",
    )
)
@click.argument("model")
@click.option("--group-size", default=32, show_default=True, help="Weights that share a scale: 32, 64, 128; -1: a row.")
@click.option(
    "--asymmetric", is_flag=True, help="A zero point for each group; its GGUF is Q5_0 where Q4_0 has no room."
)
@click.option("--method", default="round-to-nearest", show_default=True, help="Or gptq; plug-ins add more.")
@exclude_option
@calibration_options
@out_option
@overwrite_option
@json_option
def command(
    model, group_size, asymmetric, method, exclude, calibration, sequences, length, out, overwrite, as_json
) -> None:
    """Put MODEL on the INT4 grid.

    MODEL is a float model, sparse or dense; the linear layers of its blocks become INT4, pruned weights stay zero.

    The result is a compressed-tensors `pack-quantized` folder, which stock transformers and stock vLLM load. gptq reads
    a block, quantizes it over calibration text and writes it; killed, the same command goes on where it was.
    """
    from sqft_plugins.compress.quantize import quantize_folder

    report = quantize_folder(
        model, out, method, group_size, not asymmetric, overwrite, calibration, sequences, length, exclude=exclude
    )
    emit(as_json, report, lambda: _show(report))


def _show(report) -> None:
    worst = max(report["layers"], key=lambda layer: layer["error"])
    symmetry = "symmetric" if report["symmetric"] else "asymmetric"
    click.echo(
        f"{report['out']}: {report['weights'] / 1e6:.1f} M weights in {report['modules']} layers on INT4 "
        f"({report['method']}, group {report['group_size']}, {symmetry}), {report['sparsity']:.2%} pruned, "
        f"{report['zeros']:.2%} zero, worst error {worst['error']:.1%} in {worst['name']}, "
        f"{report['bytes'] / 2**20:.0f} MiB, {report['seconds']:.0f} s, peak {report['peak_memory_mib']} MiB"
    )
