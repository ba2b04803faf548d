"""A sub-adapter out of a super-adapter: a smaller folder, no model needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqft_plugins.adapter.saved import SavedAdapter
from sqft_plugins.checkpoint import write_folder
from sqft_plugins.elastic import Rank


def extract_adapter(
    adapter: str | Path, out: str | Path, rank: Rank = "heuristic", overwrite: bool = False
) -> dict[str, Any]:
    """Writes the sub-adapter of `rank` ("heuristic", "max", "min", a number, or module → rank) to `out`.

    Its logits are those of the super-adapter at that rank: the scaling alpha / r_max is kept.
    """
    saved = SavedAdapter(adapter)
    with write_folder(out, overwrite) as target:
        ranks = saved.tuner.extract(saved.path, target, saved.choose_rank(rank))
        saved.copy_chat_template(target)
        size = sum(file.stat().st_size for file in target.iterdir())
    return {
        "out": str(out),
        "adapter": str(adapter),
        "rank": rank,
        "modules": len(ranks),
        "ranks": dict(ranks),
        "bytes": size,
    }
