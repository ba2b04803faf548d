"""`sqft export gguf` and `sqft export gguf-lora`."""

from __future__ import annotations

from pathlib import Path
from typing import Self

import click
from pydantic import model_validator

from gguf_ext.settings import Options
from gguf_ext.write.split import check_target
from sqft_plugins.checkpoint.files import check_output_file
from sqft_plugins.cli.verb import Found, Overwrite, verb
from sqft_plugins.errors import SQFTError
from sqft_plugins.settings import option
from sqft_plugins.settings.checked import ADAPTER_FOLDER, MODEL


class FileOutput(Overwrite):
    """The file that a format writes. Raises SQFTError, before anything is imported, for one that it cannot write."""

    out: str = option(..., "Where to write. Must not exist.", "place", metavar="FILE.gguf")

    @model_validator(mode="after")
    def _check_out(self) -> Self:
        check_output_file(self.out, self.overwrite)
        return self


class ExportOutput(FileOutput):
    compact: bool = option(
        False, "Keep sparse Q4_0 tensors packed in the file, which our `sqft chat` and `gguf_ext.load` open."
    )
    expand: bool = option(False, "MODEL is a compact file: write the stock file that it was made of, bit for bit.")

    @model_validator(mode="after")
    def _check_kind(self) -> Self:
        if self.compact and self.expand:
            raise SQFTError("--compact and --expand are each other's inverse: leave one out")
        return self


class LoraSettings(FileOutput):
    base: str | None = option(None, "Folder of the base. Default: the adapter's own.", "file", metavar="MODEL")


@verb(
    "sqft export gguf merged-int4 --out model.gguf",
    "sqft export gguf merged --float-type f32 --out model-f32.gguf",
    "sqft export gguf merged-int4 --embedding-type q8_0 --split-max-size 2G --out model.gguf",
    "sqft export gguf merged-int4 --compact --out model-compact.gguf",
    "sqft export gguf model-compact.gguf --expand --out model.gguf",
    "sqft export gguf olmo-int4 --template-gguf olmo-base.gguf --out olmo.gguf",
    name="gguf",
    settings=Options,
    output=ExportOutput,
)
@click.argument("model", type=MODEL)
def export_command(model: str, settings: Options, output: ExportOutput) -> Found:
    """Write MODEL for llama.cpp.

    MODEL is a folder with float or INT4 weights; the GGUF file holds the very same ones. Where an option makes it
    round some, the largest error is reported. With --compact or --expand MODEL may be such a file.
    """
    _check_kinds(model, settings, output)
    check_target(output.out, output.overwrite, settings.limit is not None)
    if output.compact or output.expand:
        return _compacted(model, settings, output)
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


def _check_kinds(model: str, settings: Options, output: ExportOutput) -> None:
    """Raises SQFTError for options that do not go together with what MODEL is."""
    file = Path(model).is_file()
    if file and not (output.compact or output.expand):
        raise SQFTError(f"{model} is a GGUF file already: add --compact or --expand, or give a model folder")
    if output.expand and not file:
        raise SQFTError(f"--expand: {model} is a folder: give a compact GGUF file")
    if given := sorted(settings.model_fields_set) if file else []:
        raise SQFTError(f"--{given[0].replace('_', '-')} is for a model folder, {model} is a file: leave it out")
    if output.compact and settings.limit is not None:
        raise SQFTError("--compact writes one file: leave --split-max-size out")


def _compacted(model: str, settings: Options, output: ExportOutput) -> Found:
    from gguf_ext.compact import compact_gguf, expand_gguf, export_compact

    if output.expand:
        report = expand_gguf(model, output.out, output.overwrite)
        text = f"{report.path}: {report.bytes / 1e6:.1f} MB of {report.before / 1e6:.1f}, the stock file bit for bit"
        return Found(report.as_dict(), text)
    if Path(model).is_file():
        report = compact_gguf(model, output.out, output.overwrite)
    else:
        report = export_compact(model, output.out, output.overwrite, **settings.model_dump(exclude_unset=True))
    text = (
        f"{report.path}: {report.bytes / 1e6:.1f} MB for {report.before / 1e6:.1f}; {report.tensors} sparse tensors "
        f"take {report.packed / report.unpacked:.2f} of their Q4_0 blocks. `sqft chat` and `gguf_ext.load` open it, "
        "--expand gives the stock file back"
    )
    return Found(report.as_dict(), text)


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
