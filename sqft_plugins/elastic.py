"""Elastic ranks: the search space, the names of ranks, and slicing a super-adapter into a sub-adapter.

A super-adapter has the largest rank of its search space; a sub-adapter of rank r is its first r rows of A [r_max, in]
and first r columns of B [out, r_max], and **keeps the scaling** alpha / r_max (SQFT, arXiv 2410.03750, section 3.3).
Libraries that divide alpha by the rank they see get `sub_adapter_alpha` (sqft_plugins/adapter/lora_config.py) instead.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any

from sqft_plugins.errors import SQFTError
from sqft_plugins.names import resolve

if TYPE_CHECKING:
    from torch import Tensor

Rank = int | str | Mapping[str, int]
"""A rank as users write it: an int, "max", "min", "median", "heuristic", "r16", or {module name pattern: rank}."""


def check_rank_choices(rank_choices: Sequence[int], rank: int) -> list[int]:
    """The search space, largest first. Raises SQFTError where it is empty, holds what is no positive whole number, or
    its maximum is not `r`."""
    try:
        given = list(rank_choices) if isinstance(rank_choices, Collection) and not isinstance(rank_choices, str) else []
    except TypeError:  # a NumPy array without a dimension is a Collection, too
        given = []
    if not given or not all(is_rank(choice) for choice in given):
        raise SQFTError(
            f"rank_choices={given or rank_choices!r} is not a search space: give positive ranks, such as [32, 24, 16]"
        )
    choices = sorted({int(choice) for choice in given}, reverse=True)
    if choices[0] != rank:
        raise SQFTError(f"rank_choices={given} has the maximum {choices[0]} but r={rank}: make them equal")
    return choices


def check_quantization_aware(asked: bool, grid: object, **dropout: float) -> None:
    """What goes with `quantization_aware` and what without. dropout: by the name that the user gave it. Raises
    SQFTError."""
    if not asked and grid is not None:
        raise SQFTError(f"grid={str(grid)!r} needs quantization_aware=True: set it, or leave grid out")
    for name, value in dropout.items():
        if asked and value:
            raise SQFTError(
                f"{name}={value} cannot be used with quantization_aware: the adapter is inside the quantized weight "
                f"and has no input of its own. Use {name}=0"
            )


def is_rank(value: Any) -> bool:
    """A whole number from 1, also NumPy's; True, 6.0 and "6" are no ranks."""
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) > 0


def heuristic_rank(rank_choices: Sequence[int]) -> int:
    """The median of the search space (of an even number, the lower median): the paper's reference sub-adapter."""
    choices = sorted(rank_choices, reverse=True)
    return choices[len(choices) // 2]


NAMED_RANKS: Mapping[str, Callable[[Sequence[int]], int]] = {
    "max": max, "min": min, "median": heuristic_rank, "heuristic": heuristic_rank,
}  # fmt: skip
"""Name → what it chooses from a search space."""


def parse_rank(rank: int | str, rank_choices: Sequence[int]) -> int:
    """The number behind a rank's name, checked against the search space (any 1..r_max where it has one choice)."""
    names = ", ".join(sorted(NAMED_RANKS))
    if isinstance(rank, str):
        if rank in NAMED_RANKS:
            return NAMED_RANKS[rank](rank_choices)
        match = re.fullmatch(r"@?r?(\d+)", rank)
        if not match:
            raise SQFTError(f"rank={rank!r} is not a rank: use a number, r16, {names}")
        rank = int(match[1])
    if not is_rank(rank):
        raise SQFTError(f"rank={rank!r} is not a rank: use a whole number, r16, {names}")
    rank = int(rank)
    if rank not in rank_choices:
        raise SQFTError(f"rank={rank} is outside the search space: use one of {sorted(rank_choices, reverse=True)}")
    return rank


def configuration(rank: Rank, modules: Iterable[str], rank_choices: Sequence[int]) -> dict[str, int]:
    """{module name: rank} for every module. A mapping's keys are patterns (sqft_plugins.names), later ones win; every
    module must be matched and every key must match. Raises SQFTError."""
    names = list(modules)
    if not isinstance(rank, Mapping):
        number = parse_rank(rank, rank_choices)
        return dict.fromkeys(names, number)
    numbers = {pattern: parse_rank(value, rank_choices) for pattern, value in rank.items()}
    result = resolve(numbers, names, 0, "configuration key", "adapted module")
    missing = [name for name, number in result.items() if number == 0]
    if missing:
        raise SQFTError(
            f"configuration has no rank for {missing[0]!r} (and {len(missing) - 1} more): add a pattern such as '.*'"
        )
    return result


def slice_lora(A: Tensor, B: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """A [r_max, in], B [out, r_max] → A [rank, in], B [out, rank]: views of the first `rank` directions."""
    return A[:rank], B[:, :rank]


def share_key(module_name: str, share_rank: str) -> str:
    """Modules with the same key share one sampled rank: those of one block ("layer"), or each its own ("module")."""
    if share_rank == "module":
        return module_name
    block = re.match(r"(.*?\.\d+)(?:\.|$)", module_name)
    return block[1] if block else module_name


def sample_configuration(
    modules: Iterable[str], rank_choices: Sequence[int], share_rank: str, generator: random.Random
) -> dict[str, int]:
    """{module name: rank}, one uniform draw from the search space for each group of modules that shares a rank."""
    drawn: dict[str, int] = {}
    result = {}
    for name in modules:
        key = share_key(name, share_rank)
        if key not in drawn:
            drawn[key] = generator.choice(list(rank_choices))
        result[name] = drawn[key]
    return result
