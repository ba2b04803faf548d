"""The options of `sqft train`; unknown or impossible ones are errors before anything is loaded."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import field_validator, model_validator

from sqft_plugins.compress.settings import TEXTS
from sqft_plugins.elastic import check_quantization_aware, check_rank_choices
from sqft_plugins.errors import DependencyError, SQFTError
from sqft_plugins.settings import Offered, Settings, option

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

    data: str | list[str] = option(
        ...,
        "JSONL: on each line prompt and completion, messages (a chat), or text. Repeatable.",
        "file",
        metavar="FILE",
    )
    eval_data: str | list[str] = option(list, "Held-out examples. Repeatable.", "file", metavar="FILE")
    text: str | None = option(
        None, "The general text of --text-fraction. Default: what Python ships.", TEXTS, "name or file", metavar="FILE"
    )
    tuner: str = option("sqft", "The adapter type; `sqft plugins` lists them.", Offered("sqft_tuners"))

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

        return text_examples(calibration_texts(self.text, "--text")) if training.text_fraction else []


class AdapterSettings(Settings):
    """An adapter."""

    rank: int = option(32, "The rank of the super-adapter.", ge=1, le=MOST_RANK)
    rank_choices: list[int] | None = option(
        None,
        "The search space of elastic ranks. Without it the rank is fixed.",
        metavar="R,R,…",
        commas=True,
        examples=[[32, 24, 16]],
    )
    share_rank: Literal["layer", "module"] = option(
        "layer", "layer: one rank for all modules of a block; module: one for each."
    )
    alpha: float = option(64.0, "The scaling is alpha / rank.", gt=0)
    dropout: float = option(0.0, "Of the adapter's inputs, while it trains; not with --quantization-aware.", ge=0, lt=1)
    sparse: bool = option(
        True,
        "Mask the delta. False trains like LoRA, but a merge would fill the zeros.",
        name="--dense",
        help="Do not mask the delta: trains like LoRA, but a merge fills the zeros.",
    )
    quantization_aware: bool = option(False, "Train through the grid of MODEL, so that a merge is on it again.")
    grid: str | None = option(
        None, "With --quantization-aware over a float MODEL: the folder quantized from it.", "file", metavar="DIR"
    )
    rounding: Literal["nearest", "compensated"] | None = option(
        None,
        "How a quantization-aware adapter gets its codes: nearest, in each step; compensated, once, after training. "
        "Default: compensated with --dense and over a .gguf file, else nearest.",
    )
    init_adapter: str | None = option(
        None,
        "A plain LoRA to begin from, over the same model in any precision: its rank, alpha and target modules are "
        "taken. With --steps 0 it settles as it is.",
        "file",
        metavar="ADAPTER",
    )
    target_modules: list[str] | str = option(
        lambda: list(PAPER_TARGETS),
        "Default: q_proj,k_proj,v_proj,up_proj,down_proj (the paper's).",
        metavar="NAME,…",
        commas=True,
        examples=[["q_proj", "v_proj"], ALL_LINEAR],
    )

    @field_validator("target_modules")
    @classmethod
    def _as_peft(cls, wanted: list[str] | str) -> list[str] | str:
        return ALL_LINEAR if wanted == [ALL_LINEAR] else wanted  # in a list it would be the name of a layer

    @model_validator(mode="after")
    def _check(self) -> Self:
        begun = self.init_adapter is not None and "rank" not in self.model_fields_set  # its rank is read later
        if self.rank_choices is not None and not begun:
            check_rank_choices(self.rank_choices, self.rank)
        check_quantization_aware(self.quantization_aware, self.grid, dropout=self.dropout)
        return self


class TrainSettings(Settings):
    """A training run."""

    steps: int = option(100, "Optimizer steps; 0 with --init-adapter: it is put on the grid as it is.", ge=0)
    epochs: float | None = option(None, "Passes over the data, in place of --steps.", gt=0)
    batch_size: int = option(16, "Examples of a step, over all processes.", ge=1)
    gradient_accumulation: int = option(1, "Parts of a batch, one after the other: less memory.", ge=1)
    learning_rate: float = option(3e-4, "The highest, after the warm-up.", gt=0)
    schedule: Literal["cosine", "linear", "constant"] = option("cosine", "Of the learning rate, after the warm-up.")
    warmup_fraction: float = option(0.05, "Share of the steps.", ge=0, lt=1)
    weight_decay: float = option(0.0, "Of AdamW.", ge=0)
    max_gradient_norm: float = option(1.0, "Larger gradients are clipped; 0: none.", ge=0)
    dtype: Literal["auto", "float32", "bfloat16"] = option("auto", "Of the base; auto: what is fast here.")
    gradient_checkpointing: bool = option(False, "Compute activations twice instead of keeping them.")
    packing: bool = option(False, "Several examples in one row, without seeing each other: less padding.")
    text_fraction: float = option(0.0, "Share of general text in each batch, against forgetting.", ge=0, lt=1)
    max_length: int = option(512, "Tokens of the longest example.", ge=8)
    long: Literal["error", "drop"] = option("error", "What becomes of longer ones; they are never cut.")
    tokenizer: str | None = option(None, "The folder of a tokenizer, in place of MODEL's own.", "file", metavar="DIR")
    chat_template: str | None = option(None, "Jinja, in place of the tokenizer's own.", "file", metavar="FILE")
    eval_fraction: float = option(0.0, "Hold out this share of --data.", ge=0, lt=1)
    eval_every: int | None = option(
        None, "Steps between evaluations. Default: a tenth of the steps.", metavar="N", ge=1
    )
    keep: Literal["last", "best"] = option(
        "last", "Which adapter is written: of the last step, or with the smallest held-out loss."
    )
    checkpoint_every: int | None = option(
        None, "Save every N steps; started again, a killed run goes on.", metavar="N", ge=1
    )
    base_weights: Literal["float", "packed"] = option(
        "float",
        "How a quantized MODEL is in memory: float; or packed, with each weight made anew twice in a step, which takes "
        "half as long again.",
    )
    tensorboard: str | None = option(None, "Log for TensorBoard.", "place", metavar="DIR")
    seed: int = option(0, "Of everything that is drawn.", ge=0, lt=2**32)

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

    def check_run(self, held_out: bool) -> None:
        """What a run needs beside these settings. held_out: there are files of held-out examples. Raises SQFTError,
        DependencyError without the package of a log for TensorBoard."""
        if held_out and self.eval_fraction:
            raise SQFTError(f"eval_fraction={self.eval_fraction:g} beside --eval-data: give one of them")
        if not held_out and not self.eval_fraction:
            for name, value, default in (("keep", self.keep, "last"), ("eval_every", self.eval_every, None)):
                if value != default:
                    raise SQFTError(f"{name}={value} needs held-out examples: give --eval-data or --eval-fraction")

        if self.tensorboard is None:
            return
        named, folder = f"--tensorboard {self.tensorboard}", Path(self.tensorboard).absolute()
        if find_spec("tensorboard") is None:
            raise DependencyError(f"{named} needs the package: pip install 'sqft-plugins[tensorboard]'")
        there = next(place for place in (folder, *folder.parents) if place.exists())
        if not there.is_dir():
            raise SQFTError(f"{named}: {there} is a file, a folder goes there: choose another path")

    def check_size(self) -> None:
        """Raises SQFTError for a run that nobody means, whose order of examples would fill the memory."""
        if self.steps * self.batch_size > MOST_EXAMPLES:
            length = f"steps={self.steps}" if self.epochs is None else f"epochs={self.epochs:g}"
            raise SQFTError(
                f"{length} of batch_size={self.batch_size} are more than {MOST_EXAMPLES:,} examples: lower one of them"
            )
