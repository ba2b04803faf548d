"""The settings of an adapter and of a training run; unknown or impossible ones are errors before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from sqft_plugins.elastic import check_rank_choices
from sqft_plugins.errors import SQFTError, nearest

PAPER_TARGETS = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]
"""The modules that the paper adapts (arXiv 2410.03750, appendix)."""

MOST_RANK = 2**16
"""More than the width of any model's layer."""
MOST_EXAMPLES = 10**9
"""Of a run, over all steps: they are laid out in training order before it begins."""

ALL_LINEAR = "all-linear"
"""PEFT's word for every linear layer but the output head."""


class Settings(BaseModel):
    """A pydantic model whose errors are one line that names the field, its value and the remedy."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

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
            cause = first.get("ctx", {}).get("error")
            if isinstance(cause, SQFTError):  # of a validator of ours: it has said what is wrong with which value
                raise cause from error
            name = ".".join(map(str, first["loc"])) or cls.__name__
            raise SQFTError(f"{name}={first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}") from error


class AdapterSettings(Settings):
    """An adapter. rank_choices: the search space, its maximum is `rank`; None: a fixed rank. sparse: mask the delta.
    quantization_aware: train through the INT4 grid of the base, or, where the base is float, of the INT4 folder `grid`
    that was made from it."""

    rank: int = Field(32, ge=1, le=MOST_RANK)
    alpha: float = Field(64, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: list[str] | str = Field(default_factory=lambda: list(PAPER_TARGETS))
    rank_choices: list[int] | None = None
    share_rank: Literal["layer", "module"] = "layer"
    sparse: bool = True
    quantization_aware: bool = False
    grid: str | None = None

    @field_validator("target_modules")
    @classmethod
    def _as_peft(cls, wanted: list[str] | str) -> list[str] | str:
        return ALL_LINEAR if wanted == [ALL_LINEAR] else wanted  # in a list it would be the name of a layer

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.rank_choices is not None:
            check_rank_choices(self.rank_choices, self.rank)
        return self


class TrainSettings(Settings):
    """A training run.

    steps: optimizer steps, or `epochs`: passes over the examples. batch_size: examples of a step over all processes;
    gradient_accumulation: into how many parts it is cut, one after the other, to save memory. warmup_fraction: of the
    steps. max_gradient_norm: 0 clips nothing. text_fraction: share of each batch that is general text, against
    forgetting. max_length: tokens of an example; `long` says what happens to longer ones, they are never cut. packing:
    several examples of a batch in one row. eval_every: steps between two evaluations of the held-out examples
    (default: a tenth of them); eval_fraction: hold out this share of the examples. keep: which adapter is written, that
    of the last step or the one with the smallest held-out loss. checkpoint_every: steps between two checkpoints.
    chat_template: a Jinja file in place of the tokenizer's template. tensorboard: folder of its log.
    """

    steps: int = Field(100, ge=1)
    epochs: float | None = Field(None, gt=0)
    batch_size: int = Field(16, ge=1)
    gradient_accumulation: int = Field(1, ge=1)
    learning_rate: float = Field(3e-4, gt=0)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_fraction: float = Field(0.05, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0)
    max_gradient_norm: float = Field(1.0, ge=0)
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    gradient_checkpointing: bool = False
    packing: bool = False
    text_fraction: float = Field(0.0, ge=0, lt=1)
    max_length: int = Field(512, ge=8)
    long: Literal["error", "drop"] = "error"
    eval_every: int | None = Field(None, ge=1)
    eval_fraction: float = Field(0.0, ge=0, lt=1)
    keep: Literal["last", "best"] = "last"
    checkpoint_every: int | None = Field(None, ge=1)
    chat_template: str | None = None
    tensorboard: str | None = None
    seed: int = Field(0, ge=0, lt=2**32)

    @model_validator(mode="after")
    def _check_training(self) -> Self:
        if self.epochs is not None and "steps" in self.model_fields_set:
            raise SQFTError(f"steps={self.steps} and epochs={self.epochs:g} are two lengths of one run: give one")
        self.check_size()
        if self.batch_size % self.gradient_accumulation:
            raise SQFTError(
                f"batch_size={self.batch_size} cannot be cut into gradient_accumulation={self.gradient_accumulation} "
                "equal parts: change one of them"
            )
        return self

    def check_size(self) -> None:
        """Raises SQFTError for a run that nobody means, whose order of examples would fill the memory."""
        if self.steps * self.batch_size > MOST_EXAMPLES:
            length = f"steps={self.steps}" if self.epochs is None else f"epochs={self.epochs:g}"
            raise SQFTError(
                f"{length} of batch_size={self.batch_size} are more than {MOST_EXAMPLES:,} examples: lower one of them"
            )
