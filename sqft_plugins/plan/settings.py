"""The options of `sqft plan`: those of prune, quantize and train that decide sizes, memory and times."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import field_validator

from sqft_plugins.compress.settings import GRIDS, PruneSettings, QuantizeSettings, bits_of, check_pattern
from sqft_plugins.errors import SQFTError, nearest
from sqft_plugins.names import resolve, select
from sqft_plugins.settings import Offered, Settings, like, option
from sqft_plugins.tune.settings import ALL_LINEAR, PAPER_TARGETS, AdapterSettings, TrainSettings

if TYPE_CHECKING:
    from sqft_plugins.checkpoint.stamp import GridStamp
    from sqft_plugins.compress.float_model import FloatModel
    from sqft_plugins.mask import Pattern

PRUNE, QUANTIZE, TRAIN = "Of `sqft prune`.", "Of `sqft quantize`.", "Of `sqft train`."


class PlanSettings(Settings):
    """target_modules: None stands for those of the paper's that the model has."""

    sparsity: float | str = option(0.5, "As for `sqft prune`: a fraction, or N:M.")
    overrides: dict[str, float | str] = option(
        dict, "As for `sqft prune`. Repeatable.", name="--sparsity-of", metavar="PATTERN=SPARSITY"
    )
    exclude: list[str] = like(PruneSettings, "exclude")
    method: str = like(PruneSettings, "method", PRUNE)
    recover: bool = option(False, "Also what `sqft recover` takes, which has both models in memory.")
    quantize_method: str = option("round-to-nearest", QUANTIZE, Offered("sqft_quantizers"))
    grid: str = option("int4", "Of `sqft quantize`: int2 to int8.", metavar="NAME")
    group_size: int = like(QuantizeSettings, "group_size", QUANTIZE)
    symmetric: bool = like(QuantizeSettings, "symmetric", QUANTIZE)
    sequences: int = like(PruneSettings, "sequences", "Calibration sequences.")
    length: int = like(PruneSettings, "length", "Tokens of each.")
    rank: int = like(AdapterSettings, "rank", TRAIN)
    rank_choices: list[int] | None = like(AdapterSettings, "rank_choices", TRAIN)
    target_modules: list[str] | None = option(
        None, "Of `sqft train`, or all-linear.", metavar="NAME,…", commas=True, examples=[["q_proj", "v_proj"]]
    )
    steps: int = like(TrainSettings, "steps", TRAIN)
    batch_size: int = like(TrainSettings, "batch_size", TRAIN)
    example_tokens: int = option(64, "Tokens of one training example, for the times.", ge=1)

    _check_sparsity = field_validator("sparsity", "overrides")(check_pattern)

    @field_validator("grid")
    @classmethod
    def _check_grid(cls, value: str) -> str:
        if value not in GRIDS:
            raise SQFTError(f"grid={value!r} has no plan: {nearest(value, GRIDS)}")
        return value

    @property
    def stamp(self) -> GridStamp:
        from sqft_plugins.checkpoint.stamp import GridStamp

        return GridStamp(bits=bits_of(self.grid), group_size=self.group_size, symmetric=self.symmetric)

    def adapter(self) -> AdapterSettings:
        """Raises SQFTError for ranks that make no search space."""
        return AdapterSettings(rank=self.rank, rank_choices=self.rank_choices)

    def patterns(self, source: FloatModel) -> dict[str, Pattern]:
        """Module → what is pruned of it. Raises SQFTError naming a layer whose `in` an M does not divide."""
        from sqft_plugins.compress.prune import as_pattern

        values = {name: as_pattern(value) for name, value in self.overrides.items()}
        patterns = resolve(values, list(source.modules), as_pattern(self.sparsity), "--sparsity-of")
        for module, pattern in patterns.items():
            pattern.check(source.modules[module][1], module)
        return patterns

    def check(self, source: FloatModel) -> None:
        """Raises SQFTError for ranks that make no search space, and for a group that does not divide `in`, naming the
        layer."""
        self.adapter()
        source.leave_undivided(self.group_size)

    def targets(self, source: FloatModel) -> list[str]:
        """The linear layers that the adapter is put on. Raises SQFTError for a name that matches no layer; [] where the
        paper's names, which are the default, match no layer."""
        names = list(source.structure.shapes)
        if self.target_modules == [ALL_LINEAR]:
            return names
        if self.target_modules is not None:
            return select(self.target_modules, names, "--target-modules")
        return [name for name in names if name.rpartition(".")[2] in PAPER_TARGETS]
