"""What a search chooses from: one rank for each group of modules."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from sqft_plugins.elastic import configuration, share_key
from sqft_plugins.errors import SQFTError

Choice = tuple[int, ...]
"""One configuration, as the rank of each group in the order of `Space.groups`."""


@dataclass(frozen=True)
class Space:
    """modules: the adapted modules. rank_choices: what each group may have. share_rank: "layer" (one rank for a block)
    or "module" (`sqft_plugins.elastic.share_key`)."""

    modules: Sequence[str]
    rank_choices: Sequence[int]
    share_rank: str = "layer"

    @cached_property
    def members(self) -> dict[str, list[str]]:
        """Group → its modules."""
        found: dict[str, list[str]] = {}
        for module in self.modules:
            found.setdefault(share_key(module, self.share_rank), []).append(module)
        return found

    @property
    def groups(self) -> list[str]:
        return list(self.members)

    @cached_property
    def ordered(self) -> list[int]:
        """The rank choices, smallest first."""
        return sorted(set(self.rank_choices))

    @property
    def size(self) -> int:
        """How many configurations there are."""
        return int(len(self.ordered) ** len(self.members))

    def expand(self, choice: Choice) -> dict[str, int]:
        """Module → rank."""
        pairs = zip(self.members.values(), choice, strict=True)
        ranks = {module: rank for modules, rank in pairs for module in modules}
        return {module: ranks[module] for module in self.modules}

    def choice(self, ranks: int | str | Mapping[str, int]) -> Choice:
        """The configuration that a rank, a name or module (or pattern) → rank means. Raises SQFTError for an unknown
        module, a rank outside the search space, a module without a rank, and ranks that differ within a group."""
        numbers = configuration(ranks, self.modules, self.rank_choices)
        result = []
        for group, modules in self.members.items():
            values = {numbers[module] for module in modules}
            if len(values) > 1:
                raise SQFTError(
                    f"the configuration gives {group} the ranks {sorted(values)}, but its modules share one: search "
                    "with --share-rank module"
                )
            result.append(values.pop())
        return tuple(result)

    def neighbours(self, choice: Choice) -> Iterator[Choice]:
        """Those that differ in one group, by one step up or down in the rank choices."""
        for index, rank in enumerate(choice):
            place = self.ordered.index(rank)
            for other in (place - 1, place + 1):
                if 0 <= other < len(self.ordered):
                    yield (*choice[:index], self.ordered[other], *choice[index + 1 :])

    def mutate(self, choice: Choice, groups: int, generator: random.Random) -> Choice:
        """Another rank, drawn uniformly, in `groups` random groups."""
        changed = list(choice)
        for index in generator.sample(range(len(choice)), min(groups, len(choice))):
            changed[index] = generator.choice([rank for rank in self.ordered if rank != choice[index]])
        return tuple(changed)
