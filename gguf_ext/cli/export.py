"""`sqft export gguf` and `sqft export gguf-lora`."""

from __future__ import annotations

import click

from gguf_ext.settings import Options
from sqft_plugins.cli.common import emit, examples, json_option, overwrite_option
from sqft_plugins.settings.checked import ADAPTER_FOLDER, MODEL_FOLDER
from sqft_plugins.settings.click_options import options


@click.command(
    "gguf",
    epilog=examples(
        "sqft export gguf merged-int4 --out model.gguf",
        "sqft export gguf merged --float-type f32 --out model-f32.gguf",
        "sqft export gguf merged-int4 --embedding-type q8_0 --split-max-size 2G --out model.gguf",
        "sqft export gguf olmo-int4 --template-gguf olmo-base.gguf --out olmo.gguf",
    ),
)
@click.argument("model", type=MODEL_FOLDER)
@click.option("--out", required=True, type=click.Path(), metavar="FILE.gguf", help="Where to write. Must not exist.")
@options(settings=Options)
@overwrite_option
@json_option
def export_command(model: str, settings: Options, out: str, overwrite: bool, as_json: bool) -> None:
    """Write MODEL for llama.cpp.

    MODEL is a folder with float or INT4 weights; the GGUF file holds the very same ones. Where an option makes it
    round some, the largest error is reported.
    """
    from gguf_ext.export import export_gguf

    report = export_gguf(model, out, overwrite=overwrite, **settings.model_dump(exclude_unset=True))

    def show() -> None:
        types = ", ".join(f"{count} {name}" for name, count in sorted(report.types.items()))
        parts = f"{len(report.parts)} parts, " if report.parts else ""
        click.echo(
            f"{report.path}: {parts}{report.bytes / 1e6:.1f} MB in {report.seconds:g} s, {report.architecture}, {types}"
        )
        equal = "bit-equal" if report.exact else f"equal but for rounding, by {report.largest_error:.3g} at most"
        click.echo(
            f"verified: {report.verified} tensors {equal}; {report.pruned} pruned weights all 0; "
            f"tokenizer {report.tokenizer}"
        )
        show_unchecked(report.unchecked)

    emit(as_json, report.as_dict(), show)


@click.command(
    "gguf-lora",
    epilog=examples(
        "sqft export gguf-lora adapters/math-heuristic --out math.gguf",
        "sqft export gguf-lora adapters/math-heuristic --base models/sparse --out math.gguf --json",
        "llama-cli -m sparse.gguf --lora math.gguf",
    ),
)
@click.argument("adapter", type=ADAPTER_FOLDER)
@click.option("--out", required=True, type=click.Path(), metavar="FILE.gguf", help="Where to write. Must not exist.")
@click.option("--base", type=click.Path(), metavar="MODEL", help="Folder of the base. Default: the adapter's own.")
@overwrite_option
@json_option
def lora_command(adapter: str, out: str, base: str | None, overwrite: bool, as_json: bool) -> None:
    """Write a dense ADAPTER for llama.cpp.

    ADAPTER is a plain LoRA, such as `sqft extract` makes of a dense one. Masked and quantization-aware adapters are
    merged instead.
    """
    from gguf_ext.lora.export import export_lora

    report = export_lora(adapter, out, base=base, overwrite=overwrite)
    ranks = ", ".join(f"{count} of rank {rank}" for rank, count in report.ranks.items())
    line = f"{report.path}: {report.bytes / 1e6:.1f} MB, {report.architecture}, {report.modules} modules ({ranks})"
    emit(as_json, report.as_dict(), lambda: click.echo(line))


def show_unchecked(names: list[str]) -> None:
    if names:
        click.echo(f"compared with nothing: {', '.join(names)}")
