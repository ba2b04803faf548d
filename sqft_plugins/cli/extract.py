"""sqft extract: a sub-adapter out of a super-adapter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from sqft_plugins.cli.verb import AtRank, Found, verb
from sqft_plugins.settings.checked import ADAPTER_FOLDER


@verb(
    "sqft extract adapters/math --out adapters/math-heuristic",
    "sqft extract adapters/math --rank min --out adapters/math-small",
    "sqft extract adapters/math --rank configuration.json --out adapters/math-searched --json",
    settings=AtRank,
)
@click.argument("adapter", type=ADAPTER_FOLDER)
def command(adapter: str, settings: AtRank) -> Found:
    """Write the sub-adapter of ADAPTER at a rank. Its logits are those of ADAPTER at that rank.

    A dense one (`sqft train --dense`) becomes a plain LoRA that stock PEFT, vLLM and llama.cpp load.
    """
    from sqft_plugins.tune.extract import extract_adapter

    report = extract_adapter(adapter, settings.out, settings.rank, settings.overwrite)
    return Found(report, _line(report))


def _line(report: Mapping[str, Any]) -> str:
    ranks = sorted(set(report["ranks"].values()), reverse=True)
    shown = ", ".join(map(str, ranks))
    return f"{report['out']}: {report['modules']} modules at rank {shown}, {report['bytes'] / 1e6:.1f} MB"
