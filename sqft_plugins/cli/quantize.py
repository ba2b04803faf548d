"""sqft quantize: INT4 with the mask kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from sqft_plugins.checkpoint.hub import local_folder
from sqft_plugins.cli.common import emit, examples, json_option, out_option, overwrite_option
from sqft_plugins.compress.settings import QuantizeSettings
from sqft_plugins.settings.checked import MODEL_NAME
from sqft_plugins.settings.click_options import options


@click.command(
    epilog=examples(
        "sqft quantize models/gemma-50 --out models/gemma-50-int4",
        "sqft quantize models/gemma-50 --method gptq --out models/gemma-50-int4",
        "sqft quantize models/gemma-50 --group-size 64 --asymmetric --out models/gemma-50-int4",
        "sqft quantize models/gemma-50 --group-size -1 --out models/gemma-50-int4 --json",
    )
)
@click.argument("model", type=MODEL_NAME)
@options(settings=QuantizeSettings)
@out_option
@overwrite_option
@json_option
def command(model: str, settings: QuantizeSettings, out: str, overwrite: bool, as_json: bool) -> None:
    """Put MODEL on the INT4 grid.

    MODEL is a float model, sparse or dense; the linear layers of its blocks become INT4, pruned weights stay zero.

    The result is a compressed-tensors `pack-quantized` folder, which stock transformers and stock vLLM load. gptq reads
    a block, quantizes it over calibration text and writes it; killed, the same command goes on where it was.
    """
    local_folder(model)  # a name that the hub does not know is refused before torch is imported
    from sqft_plugins.compress.quantize import quantize_folder

    report = quantize_folder(model, out, overwrite=overwrite, **settings.keywords())
    emit(as_json, report, lambda: _show(report))


def _show(report: Mapping[str, Any]) -> None:
    worst = max(report["layers"], key=lambda layer: layer["error"])
    symmetry = "symmetric" if report["symmetric"] else "asymmetric"
    click.echo(
        f"{report['out']}: {report['weights'] / 1e6:.1f} M weights in {report['modules']} layers on INT4 "
        f"({report['method']}, group {report['group_size']}, {symmetry}), {report['sparsity']:.2%} pruned, "
        f"{report['zeros']:.2%} zero, worst error {worst['error']:.1%} in {worst['name']}, "
        f"{report['bytes'] / 2**20:.0f} MiB, {report['seconds']:.0f} s, peak {report['peak_memory_mib']} MiB"
    )
