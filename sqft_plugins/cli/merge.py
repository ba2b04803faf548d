"""sqft merge: an adapter into its base."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import click
from pydantic import model_validator

from sqft_plugins.checkpoint.files import check_output
from sqft_plugins.cli.verb import AtRank, Found, verb
from sqft_plugins.settings import option
from sqft_plugins.settings.checked import ADAPTER_FOLDER, MODEL


class MergeSettings(AtRank):
    out: str = option(..., "Where to write; of a .gguf MODEL a file. Must not exist.", "place", metavar="PATH")
    tokenizer: str | None = option(None, "The folder of a tokenizer, in place of a file's.", "file", metavar="DIR")
    grid: str | None = option(
        None, "The quantized folder of a quantization-aware ADAPTER, if moved.", "file", metavar="DIR"
    )

    @model_validator(mode="after")
    def _check_out(self) -> Self:
        check_output(self.out, self.overwrite)
        return self


@verb(
    "sqft merge models/gemma-50 adapters/math --out models/gemma-50-math",
    "sqft merge models/gemma-50-int4 adapters/math-qa --rank max --out models/gemma-50-math-int4",
    "sqft merge gemma-Q4_K_M.gguf adapters/mine --out mine-Q4_K_M.gguf",
    "sqft merge models/gemma-50 adapters/math --rank configuration.json --out models/gemma-50-math --json",
    settings=MergeSettings,
)
@click.argument("model", type=MODEL)
@click.argument("adapter", type=ADAPTER_FOLDER)
def command(model: str, adapter: str, settings: MergeSettings) -> Found:
    """Merge ADAPTER into MODEL at a rank.

    A masked adapter keeps every zero, a quantization-aware one the INT4 grid, too. MODEL is what the adapter was
    trained over. The merge is checked in float32. A .gguf file stays as it is but for its codes.
    """
    from sqft_plugins.tune.merge import merge_folder

    report = merge_folder(model, adapter, **settings.model_dump())
    return Found(report, _line(report))


def _line(report: Mapping[str, Any]) -> str:
    logits = report.get("max_logit_difference")
    compared = "logits not compared" if logits is None else f"max |dlogit| {logits:.1e} in float32"
    codes = f"{report['codes_changed']:.1%} of the kept codes changed, " if "codes_changed" in report else ""
    return (
        f"{report['out']}: {report['modules']} modules merged, {codes}{report['zeros_lost']:,} zeros lost, {compared}"
    )
