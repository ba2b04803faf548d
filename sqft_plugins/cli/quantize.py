"""sqft quantize: INT4, or another width, with the mask kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from sqft_plugins.checkpoint.hub import local_folder
from sqft_plugins.cli.verb import Found, Output, verb
from sqft_plugins.compress.settings import QuantizeSettings
from sqft_plugins.settings.checked import MODEL_NAME


@verb(
    "sqft quantize models/gemma-50 --out models/gemma-50-int4",
    "sqft quantize models/gemma-50 --method gptq --out models/gemma-50-int4",
    "sqft quantize models/gemma-50 --group-size 64 --asymmetric --out models/gemma-50-int4",
    "sqft quantize models/gemma-50 --group-size -1 --out models/gemma-50-int4 --json",
    "sqft quantize models/gemma-50 --bits 3 --asymmetric --method gptq --out models/gemma-50-int3",
    settings=QuantizeSettings,
    output=Output,
)
@click.argument("model", type=MODEL_NAME)
def command(model: str, settings: QuantizeSettings, output: Output) -> Found:
    """Put MODEL on the INT4 grid, or on that of --bits.

    MODEL is a float model, sparse or dense; the linear layers of its blocks become INT4, pruned weights stay zero. The
    kernels, vLLM on a CPU and the compact form are for 4 bits; other widths are trained through, merged and evaluated.

    The result is a compressed-tensors `pack-quantized` folder, which stock transformers and stock vLLM load. gptq reads
    a block, quantizes it over calibration text and writes it; killed, the same command goes on where it was.
    """
    local_folder(model)  # a name that the hub does not know is refused before torch is imported
    from sqft_plugins.compress.quantize import quantize_folder

    report = quantize_folder(model, output.out, overwrite=output.overwrite, **settings.model_dump())
    return Found(report, _line(report))


def _line(report: Mapping[str, Any]) -> str:
    worst = max(report["layers"], key=lambda layer: layer["error"])
    symmetry = "symmetric" if report["symmetric"] else "asymmetric"
    return (
        f"{report['out']}: {report['weights'] / 1e6:.1f} M weights in {report['modules']} layers on "
        f"INT{report['bits']} ({report['method']}, group {report['group_size']}, {symmetry}), "
        f"{report['sparsity']:.2%} pruned, {report['zeros']:.2%} zero, "
        f"worst error {worst['error']:.1%} in {worst['name']}, "
        f"{report['bytes'] / 2**20:.0f} MiB, {report['seconds']:.0f} s, peak {report['peak_memory_mib']} MiB"
    )
