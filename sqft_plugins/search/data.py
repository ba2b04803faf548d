"""Three parts of the questions: those that the search sees, those that choose among its finalists, and those that give
the reported score and are used for nothing else."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence

from sqft_plugins.errors import SQFTError
from sqft_plugins.plugins.protocols import Item
from sqft_plugins.search.settings import FRESH

SUBSET = 64
LEAST = 2
"""Questions of each part: fewer have no standard error."""


def split_items(
    items: Sequence[Item], subset: int | None = None, fresh: int = FRESH, seed: int = 0
) -> dict[str, list[Item]]:
    """The questions in three parts: "search", on which every trial is scored; "recheck", on which the finalists are;
    and "report", which the reported score is of. Their order depends on their prompts and `seed` alone; equal prompts
    are in one part.

    subset: different prompts of the search (default: 64, at most half of all). fresh: at most so many others, one half
    for the re-check and one for the report. Raises SQFTError where a part would have fewer than 2.
    """
    prompts: dict[str, list[Item]] = {}
    for item in items:
        prompts.setdefault(item.prompt, []).append(item)
    ordered = sorted(prompts.values(), key=lambda same: _digest([seed, same[0].prompt]))
    wanted = min(SUBSET, len(ordered) // 2) if subset is None else subset
    rest = ordered[wanted:][:fresh]
    half = len(rest) // 2
    parts = {"search": ordered[:wanted], "recheck": rest[:half], "report": rest[half:]}

    if min(map(len, parts.values())) < LEAST:
        search, recheck, report = map(len, parts.values())
        raise SQFTError(
            f"{len(ordered)} different prompts leave {search} for the search (--subset), {recheck} to choose among its "
            f"finalists and {report} for the score (--fresh {fresh}), each needs {LEAST}: give more data or a smaller "
            "--subset"
        )
    return {name: list(itertools.chain.from_iterable(part)) for name, part in parts.items()}


def digest_of(items: Sequence[Item], more: Mapping[str, object]) -> str:
    """SHA-256 of the questions, their answers and whatever else decides their score."""
    return _digest([[[item.prompt, item.answer] for item in items], dict(more)])


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
