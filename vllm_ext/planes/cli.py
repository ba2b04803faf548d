"""`sqft export plane`."""

from __future__ import annotations

from typing import Any

import click

from sqft_plugins.cli.verb import Found, Overwrite, verb
from sqft_plugins.elastic import Rank
from sqft_plugins.settings import option
from sqft_plugins.settings.checked import ADAPTER_FOLDER, MODEL_FOLDER, MODEL_NAME


class PlaneSettings(Overwrite):
    ranks: list[Rank] = option(
        lambda: ["heuristic"],
        "heuristic (the median), max, min, a number, or a JSON file: module name → rank. Repeatable.",
        "rank",
        name="--rank",
        metavar="RANK",
    )
    base: str | None = option(None, "The float model that ADAPTER was trained over.", MODEL_NAME, metavar="DIR")
    out: str | None = option(
        None, "Where to write. Default: ADAPTER/planes, where a server finds them.", "place", metavar="DIR|FILE"
    )


@verb(
    "sqft export plane models/gemma-50-int4 adapters/math-qa --rank r16 --rank max",
    "sqft export plane models/gemma-50-int4 adapters/math-qa --base models/gemma-50 --rank r16",
    "sqft export plane models/gemma-50-int4 adapters/math-qa --rank ranks.json --out plane.safetensors --json",
    name="plane",
    settings=PlaneSettings,
)
@click.argument("model", type=MODEL_FOLDER)
@click.argument("adapter", type=ADAPTER_FOLDER)
def plane_command(model: str, adapter: str, settings: PlaneSettings) -> Found:
    """Write the value planes of a quantization-aware ADAPTER for vLLM.

    A plane holds the codes that `sqft merge` would write at a rank, of INT4 2 bits a weight at 50 % sparsity. MODEL is
    the folder that is served. Needed beforehand where ADAPTER was trained over the float base (--base); a server
    builds the others itself when they are first asked for.
    """
    from vllm_ext.planes.build import export_planes

    planes = export_planes(model, adapter, **settings.model_dump())
    return Found({"planes": planes}, "\n".join(map(_line, planes)))


def _line(plane: dict[str, Any]) -> str:
    return (
        f"{plane['out']}: {plane['bytes'] / 1e6:.1f} MB, {plane['modules']} modules, "
        f"{plane['bits_per_weight']:.2f} bits a weight, {plane['codes_changed']:.1%} of the kept codes changed"
    )
