"""The settings of an adapter and of a training run; unknown or impossible ones are errors before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from sqft_plugins.elastic import check_rank_choices
from sqft_plugins.errors import SQFTError, nearest

PAPER_TARGETS = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]
"""The modules that the paper adapts (arXiv 2410.03750, appendix)."""


class Settings(BaseModel):
    """A pydantic model whose errors are one line that names the field, its value and the remedy."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def make(cls, values: Mapping[str, Any]) -> Self:
        """Validates `values`. Raises SQFTError; an unknown key names the nearest known one."""
        for key in values:
            if key not in cls.model_fields:
                raise SQFTError(f"{cls.__name__} has no key {key!r}: {nearest(key, cls.model_fields)}")
        try:
            return cls(**values)
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(map(str, first["loc"])) or cls.__name__
            raise SQFTError(f"{name}={first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}") from error


class AdapterSettings(Settings):
    """An adapter. rank_choices: the search space, its maximum is `rank`; None: a fixed rank. sparse: mask the delta.
    quantization_aware: train through the INT4 grid of the base, or, where the base is float, of the INT4 folder `grid`
    that was made from it."""

    rank: int = Field(32, ge=1)
    alpha: float = Field(64, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: list[str] | str = Field(default_factory=lambda: list(PAPER_TARGETS))
    rank_choices: list[int] | None = None
    share_rank: Literal["layer", "module"] = "layer"
    sparse: bool = True
    quantization_aware: bool = False
    grid: str | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.rank_choices is not None:
            check_rank_choices(self.rank_choices, self.rank)
        return self


class TrainSettings(Settings):
    """A training run. steps: optimizer steps. text_fraction: share of each batch that is general text, against
    forgetting. max_length: tokens of an example; longer ones are an error."""

    steps: int = Field(100, ge=1)
    batch_size: int = Field(16, ge=1)
    learning_rate: float = Field(3e-4, gt=0)
    warmup_fraction: float = Field(0.05, ge=0, lt=1)
    text_fraction: float = Field(0.0, ge=0, lt=1)
    max_length: int = Field(512, ge=8)
    seed: int = 0
