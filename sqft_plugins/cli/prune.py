"""sqft prune: a sparse base."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from sqft_plugins.checkpoint.hub import local_folder
from sqft_plugins.cli.verb import Found, Output, verb
from sqft_plugins.compress.settings import PruneSettings
from sqft_plugins.settings.checked import MODEL_NAME


@verb(
    "sqft prune models/gemma --sparsity 0.5 --out models/gemma-50",
    "sqft prune models/gemma --sparsity 2:4 --method sparsegpt --out models/gemma-24",
    "sqft prune models/gemma --sparsity 0.6 --sparsity-of down_proj=0.4 --exclude v_proj --out models/gemma-60",
    "sqft prune models/gemma --sparsity 0.5 --calibration my-texts.jsonl --sequences 64 --out models/gemma-50",
    "sqft prune models/gemma --method magnitude --sparsity 0.3 --out models/gemma-30 --json",
    settings=PruneSettings,
    output=Output,
)
@click.argument("model", type=MODEL_NAME)
def command(model: str, settings: PruneSettings, output: Output) -> Found:
    """Make MODEL sparse.

    MODEL is a folder, or a name on the hub; the linear layers of its blocks are pruned, lm_head and embeddings never.

    Block after block is read, pruned and written, so that each layer sees the pruned ones before it and memory does not
    grow with depth. The mask is stored in OUT/sqft. Killed, the same command goes on where it was.
    """
    local_folder(model)  # a name that the hub does not know is refused before torch is imported
    from sqft_plugins.compress.prune import prune_folder

    report = prune_folder(model, output.out, overwrite=output.overwrite, **settings.keywords())
    return Found(report, _line(report))


def _line(report: Mapping[str, Any]) -> str:
    from sqft_plugins.compress.coverage import describe

    low, high = (f(layer["sparsity"] for layer in report["layers"]) for f in (min, max))
    return (
        f"{report['out']}: {report['sparsity_reached']:.2%} of {report['weights'] / 1e6:.1f} M weights in "
        f"{report['modules']} layers pruned ({report['method']} {report['pattern']}; layers {low:.2%} to {high:.2%}), "
        f"{report['seconds']:.0f} s, peak {report['peak_memory_mib']} MiB\n"
        f"{report['sparsity_of_model']:.2%} of the whole model pruned; {describe(report['coverage'])}"
    )
