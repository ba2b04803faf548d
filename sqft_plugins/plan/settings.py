"""What is planned: the options of prune, quantize and train, checked against the model before anything runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sqft_plugins.checkpoint.stamp import GridStamp
from sqft_plugins.compress.prune import as_pattern
from sqft_plugins.compress.source import Source
from sqft_plugins.errors import SQFTError
from sqft_plugins.grid import group_width
from sqft_plugins.mask import Pattern
from sqft_plugins.names import resolve, select
from sqft_plugins.tune.settings import ALL_LINEAR, PAPER_TARGETS, AdapterSettings


@dataclass(frozen=True)
class PlanSettings:
    """sparsity, overrides, exclude, method, sequences, length: as in `prune_folder`. quantize_method, group_size,
    symmetric: as in `quantize_folder`. rank, rank_choices, target_modules: of the adapter; target_modules None: those
    of the paper that the model has. steps, batch_size: of the training; example_tokens: of one of its examples."""

    sparsity: float | str = 0.5
    overrides: Mapping[str, float | str] = field(default_factory=dict)
    exclude: Sequence[str] = ()
    method: str = "wanda"
    quantize_method: str = "round-to-nearest"
    group_size: int = 32
    symmetric: bool = True
    sequences: int = 32
    length: int = 128
    rank: int = 32
    rank_choices: Sequence[int | str] | None = None
    target_modules: list[str] | None = None
    steps: int = 100
    batch_size: int = 16
    example_tokens: int = 64

    @property
    def grid(self) -> GridStamp:
        return GridStamp(group_size=self.group_size, symmetric=self.symmetric)

    def adapter(self) -> AdapterSettings:
        """Raises SQFTError for ranks that make no search space."""
        return AdapterSettings.make({"rank": self.rank, "rank_choices": self.rank_choices})

    def patterns(self, source: Source) -> dict[str, Pattern]:
        """Module → what is pruned of it. Raises SQFTError naming a layer whose `in` an M does not divide."""
        values = {name: as_pattern(value) for name, value in self.overrides.items()}
        patterns = resolve(values, list(source.modules), as_pattern(self.sparsity), "--sparsity-of")
        for module, pattern in patterns.items():
            pattern.check(source.modules[module][1], module)
        return patterns

    def check(self, source: Source) -> None:
        """Raises SQFTError for numbers that no step takes and for a group that does not divide, naming the layer."""
        for name in ("sequences", "steps", "batch_size", "example_tokens"):
            if getattr(self, name) < 1:
                raise SQFTError(f"{name}={getattr(self, name)} is too small: use at least 1")
        if self.length < 2:
            raise SQFTError(f"length={self.length} is too small: use at least 2")
        self.adapter()
        for module, (_, columns) in source.modules.items():
            group_width(columns, self.group_size, module)

    def targets(self, source: Source) -> list[str]:
        """The linear layers that the adapter is put on. Raises SQFTError for a name that matches none; [] where the
        paper's names, which are the default, match none."""
        names = list(source.structure.shapes)
        if self.target_modules == [ALL_LINEAR]:
            return names
        if self.target_modules is not None:
            return select(self.target_modules, names, "--target-modules")
        return [name for name in names if name.rpartition(".")[2] in PAPER_TARGETS]
