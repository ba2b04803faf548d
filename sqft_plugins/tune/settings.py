"""The options of `sqft train`; unknown or impossible ones are errors before anything is loaded."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from sqft_plugins.elastic import check_rank_choices
from sqft_plugins.errors import SQFTError
from sqft_plugins.settings import Offered, Settings, Written

PAPER_TARGETS = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]
"""The modules that the paper adapts (arXiv 2410.03750, appendix)."""

MOST_RANK = 2**16
"""More than the width of any model's layer."""
MOST_EXAMPLES = 10**9
"""Of a run, over all steps: they are laid out in training order before it begins."""

ALL_LINEAR = "all-linear"
"""PEFT's word for every linear layer but the output head."""


class TrainInputs(Settings):
    """What a run learns from, and which kind of adapter it makes."""

    data: Annotated[str | list[str], "file", Written(metavar="FILE")] = Field(
        description="JSONL: on each line prompt and completion, messages (a chat), or text. Repeatable."
    )
    eval_data: Annotated[str | list[str], "file", Written(metavar="FILE")] = Field(
        default_factory=list, description="Held-out examples. Repeatable."
    )
    text: Annotated[str | None, "name or file", Written(metavar="FILE")] = Field(
        default=None, description="The general text of --text-fraction. Default: what Python ships."
    )
    tuner: Annotated[str, Offered("sqft_tuners")] = Field(
        default="sqft", description="The adapter type; `sqft plugins` lists them."
    )

    def examples(self, argument: Literal["data", "eval_data"], shown: str = "") -> list[Any]:
        """The lines of one file or of several. shown: what the user wrote the file behind, such as "--data". Raises
        SQFTError naming file and line."""
        from sqft_plugins.tune.examples import read_examples

        given = getattr(self, argument)
        files = [given] if isinstance(given, str) else given
        return [example for file in files for example in read_examples(file, shown or argument)]

    def general_text(self, training: TrainSettings) -> list[Any]:
        """The text that is mixed into the batches, in pieces as long as an example; [] where there is none. Raises
        SQFTError."""
        from sqft_plugins.compress.calibration import calibration_texts
        from sqft_plugins.tune.examples import text_examples

        return text_examples(calibration_texts(self.text)) if training.text_fraction else []


class AdapterSettings(Settings):
    """An adapter."""

    rank: int = Field(default=32, ge=1, le=MOST_RANK, description="The rank of the super-adapter.")
    rank_choices: Annotated[list[int] | None, Written(metavar="R,R,…", commas=True)] = Field(
        default=None,
        description="The search space of elastic ranks. Without it the rank is fixed.",
        examples=[[32, 24, 16]],
    )
    share_rank: Literal["layer", "module"] = Field(
        default="layer", description="layer: one rank for all modules of a block; module: one for each."
    )
    alpha: float = Field(default=64.0, gt=0, description="The scaling is alpha / rank.")
    dropout: float = Field(
        default=0.0, ge=0, lt=1, description="Of the adapter's inputs, while it trains; not with --quantization-aware."
    )
    sparse: Annotated[
        bool, Written("--dense", help="Do not mask the delta: trains like LoRA, but a merge fills the zeros.")
    ] = Field(default=True, description="Mask the delta. False trains like LoRA, but a merge would fill the zeros.")
    quantization_aware: bool = Field(
        default=False, description="Train through the INT4 grid of MODEL, so that a merge is INT4 again."
    )
    grid: Annotated[str | None, "file", Written(metavar="DIR")] = Field(
        default=None, description="With --quantization-aware over a float MODEL: its INT4 folder."
    )
    target_modules: Annotated[list[str] | str, Written(metavar="NAME,…", commas=True)] = Field(
        default_factory=lambda: list(PAPER_TARGETS),
        description="Default: q_proj,k_proj,v_proj,up_proj,down_proj (the paper's).",
        examples=[["q_proj", "v_proj"], ALL_LINEAR],
    )

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
    """A training run."""

    steps: int = Field(default=100, ge=1, description="Optimizer steps.")
    epochs: float | None = Field(default=None, gt=0, description="Passes over the data, in place of --steps.")
    batch_size: int = Field(default=16, ge=1, description="Examples of a step, over all processes.")
    gradient_accumulation: int = Field(
        default=1, ge=1, description="Parts of a batch, one after the other: less memory."
    )
    learning_rate: float = Field(default=3e-4, gt=0, description="The highest, after the warm-up.")
    schedule: Literal["cosine", "linear", "constant"] = Field(
        default="cosine", description="Of the learning rate, after the warm-up."
    )
    warmup_fraction: float = Field(default=0.05, ge=0, lt=1, description="Share of the steps.")
    weight_decay: float = Field(default=0.0, ge=0, description="Of AdamW.")
    max_gradient_norm: float = Field(default=1.0, ge=0, description="Larger gradients are clipped; 0: none.")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="Of the base; auto: what is fast here."
    )
    gradient_checkpointing: bool = Field(
        default=False, description="Compute activations twice instead of keeping them."
    )
    packing: bool = Field(
        default=False, description="Several examples in one row, without seeing each other: less padding."
    )
    text_fraction: float = Field(
        default=0.0, ge=0, lt=1, description="Share of general text in each batch, against forgetting."
    )
    max_length: int = Field(default=512, ge=8, description="Tokens of the longest example.")
    long: Literal["error", "drop"] = Field(
        default="error", description="What becomes of longer ones; they are never cut."
    )
    chat_template: Annotated[str | None, "file", Written(metavar="FILE")] = Field(
        default=None, description="Jinja, in place of the tokenizer's own."
    )
    eval_fraction: float = Field(default=0.0, ge=0, lt=1, description="Hold out this share of --data.")
    eval_every: Annotated[int | None, Written(metavar="N")] = Field(
        default=None, ge=1, description="Steps between evaluations. Default: a tenth of the steps."
    )
    keep: Literal["last", "best"] = Field(
        default="last", description="Which adapter is written: of the last step, or with the smallest held-out loss."
    )
    checkpoint_every: Annotated[int | None, Written(metavar="N")] = Field(
        default=None, ge=1, description="Save every N steps; started again, a killed run goes on."
    )
    tensorboard: Annotated[str | None, "place", Written(metavar="DIR")] = Field(
        default=None, description="Log for TensorBoard."
    )
    seed: int = Field(default=0, ge=0, lt=2**32, description="Of everything that is drawn.")

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
