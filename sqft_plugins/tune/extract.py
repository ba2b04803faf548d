"""A sub-adapter out of a super-adapter: a smaller folder, no model needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqft_plugins.checkpoint import write_folder
from sqft_plugins.elastic import Rank
from sqft_plugins.tune.adapters import check_adapter, choose_rank, copy_template, tuner_of


def extract_adapter(
    adapter: str | Path, out: str | Path, rank: Rank = "heuristic", overwrite: bool = False
) -> dict[str, Any]:
    """Writes the sub-adapter of `rank` ("heuristic", "max", "min", a number, or module → rank) to `out`.

    Its logits are those of the super-adapter at that rank: the scaling alpha / r_max is kept.
    """
    folder = check_adapter(adapter)
    tuner = tuner_of(folder)
    with write_folder(out, overwrite) as target:
        ranks = tuner.extract(folder, target, choose_rank(rank, tuner, folder))
        copy_template(folder, target)
        size = sum(file.stat().st_size for file in target.iterdir())
    return {
        "out": str(out),
        "adapter": str(adapter),
        "rank": rank,
        "modules": len(ranks),
        "ranks": dict(ranks),
        "bytes": size,
    }
