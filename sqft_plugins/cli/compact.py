"""sqft compact: the compact form of an INT4 folder, and back."""

from __future__ import annotations

import click

from sqft_plugins.cli.verb import Found, Output, verb
from sqft_plugins.settings import option
from sqft_plugins.settings.checked import MODEL_FOLDER


class CompactSettings(Output):
    expand: bool = option(False, "The way back: MODEL is compact, the INT4 folder is restored.")


@verb(
    "sqft compact models/gemma-50-int4 --out models/gemma-50-compact",
    "sqft compact --expand models/gemma-50-compact --out models/gemma-50-int4",
    "sqft compact models/gemma-50-int4 --out models/gemma-50-compact --json",
    settings=CompactSettings,
)
@click.argument("model", type=MODEL_FOLDER)
def command(model: str, settings: CompactSettings) -> Found:
    """Shrink the sparse INT4 folder MODEL to ship it.

    Mask, kept codes and scales: about 3 bits a weight and the scales at 50 % sparsity. Nothing is lost: --expand
    restores every file byte for byte. `sqft inspect`, `sqft export gguf` and whatever loads the model as float
    weights read the compact form; merging into INT4 and stock libraries need it expanded.
    """
    from sqft_plugins.checkpoint.compact_convert import compact_folder, expand_folder

    if settings.expand:
        report = expand_folder(model, settings.out, settings.overwrite)
        text = f"{report['modules']} layers restored, {report['bytes'] / 2**20:.1f} MiB"
    else:
        report = compact_folder(model, settings.out, settings.overwrite)
        text = (
            f"{report['weights'] / 1e6:.1f} M weights in {report['modules']} layers, {report['sparsity']:.2%} pruned, "
            f"{report['bits_per_weight_before']:.3f} → {report['bits_per_weight']:.3f} bits a weight with the mask, "
            f"{report['bytes_before'] / 2**20:.1f} → {report['bytes'] / 2**20:.1f} MiB"
        )
    return Found(report, f"{report['out']}: {text}, {report['seconds']:.0f} s")
