"""`sqft export gguf` and `sqft export gguf-lora`."""

from __future__ import annotations

from typing import Self

import click
from pydantic import model_validator

from gguf_ext.settings import Options
from gguf_ext.write.split import check_target
from sqft_plugins.checkpoint.files import check_output_file
from sqft_plugins.cli.verb import Found, Overwrite, verb
from sqft_plugins.settings import option
from sqft_plugins.settings.checked import ADAPTER_FOLDER, MODEL_FOLDER


class FileOutput(Overwrite):
    """The file that a format writes. Raises SQFTError, before anything is imported, for one that it cannot write."""

    out: str = option(..., "Where to write. Must not exist.", "place", metavar="FILE.gguf")

    @model_validator(mode="after")
    def _check_out(self) -> Self:
        check_output_file(self.out, self.overwrite)
        return self


class LoraSettings(FileOutput):
    base: str | None = option(None, "Folder of the base. Default: the adapter's own.", "file", metavar="MODEL")


@verb(
    "sqft export gguf merged-int4 --out model.gguf",
    "sqft export gguf merged --float-type f32 --out model-f32.gguf",
    "sqft export gguf merged-int4 --embedding-type q8_0 --split-max-size 2G --out model.gguf",
    "sqft export gguf olmo-int4 --template-gguf olmo-base.gguf --out olmo.gguf",
    name="gguf",
    settings=Options,
    output=FileOutput,
)
@click.argument("model", type=MODEL_FOLDER)
def export_command(model: str, settings: Options, output: FileOutput) -> Found:
    """Write MODEL for llama.cpp.

    MODEL is a folder with float or INT4 weights; the GGUF file holds the very same ones. Where an option makes it
    round some, the largest error is reported.
    """
    check_target(output.out, output.overwrite, settings.limit is not None)
    from gguf_ext.export import export_gguf

    report = export_gguf(model, output.out, overwrite=output.overwrite, **settings.model_dump(exclude_unset=True))
    types = ", ".join(f"{count} {name}" for name, count in sorted(report.types.items()))
    parts = f"{len(report.parts)} parts, " if report.parts else ""
    equal = "bit-equal" if report.exact else f"equal but for rounding, by {report.largest_error:.3g} at most"
    lines = [
        f"{report.path}: {parts}{report.bytes / 1e6:.1f} MB in {report.seconds:g} s, {report.architecture}, {types}",
        f"verified: {report.verified} tensors {equal}; {report.pruned} pruned weights all 0; "
        f"tokenizer {report.tokenizer}",
        *unchecked_line(report.unchecked),
    ]
    return Found(report.as_dict(), "\n".join(lines))


@verb(
    "sqft export gguf-lora adapters/math-heuristic --out math.gguf",
    "sqft export gguf-lora adapters/math-heuristic --base models/sparse --out math.gguf --json",
    "llama-cli -m sparse.gguf --lora math.gguf",
    name="gguf-lora",
    settings=LoraSettings,
)
@click.argument("adapter", type=ADAPTER_FOLDER)
def lora_command(adapter: str, settings: LoraSettings) -> Found:
    """Write a dense ADAPTER for llama.cpp.

    ADAPTER is a plain LoRA, such as `sqft extract` makes of a dense one. Masked and quantization-aware adapters are
    merged instead.
    """
    from gguf_ext.lora.export import export_lora

    report = export_lora(adapter, settings.out, base=settings.base, overwrite=settings.overwrite)
    ranks = ", ".join(f"{count} of rank {rank}" for rank, count in report.ranks.items())
    line = f"{report.path}: {report.bytes / 1e6:.1f} MB, {report.architecture}, {report.modules} modules ({ranks})"
    return Found(report.as_dict(), line)


def unchecked_line(names: list[str]) -> list[str]:
    return [f"compared with nothing: {', '.join(names)}"] if names else []
