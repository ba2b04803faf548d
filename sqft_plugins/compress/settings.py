"""The options of `sqft prune` and `sqft quantize`."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, field_validator

from sqft_plugins.pattern import Pattern
from sqft_plugins.settings import Offered, Settings, Written


def check_pattern(value: Any) -> Any:
    """A sparsity, or several by layer. Raises SQFTError."""
    for one in value.values() if isinstance(value, dict) else [value]:
        Pattern.parse(one)
    return value


class CompressSettings(Settings):
    """What both have: which layers stay as they are, and the text that calibrates."""

    exclude: Annotated[list[str], Written(metavar="PATTERN")] = Field(
        default_factory=list,
        description="Layers to leave as they are: a name, its end (down_proj), or a regular expression. Repeatable.",
        examples=[["v_proj", r"model\.layers\.0\..*"]],
    )
    calibration: Annotated[str | None, "name or file", Written(metavar="FILE|DATASET")] = Field(
        default=None,
        description="Text, JSONL or JSON with `text`, `prompt` and `completion`, or `question` and `answer`; or a data "
        "set on the hub, NAME[:CONFIG[:SPLIT]]. Default: the language reference that Python ships.",
    )
    sequences: int = Field(default=32, ge=1, description="Calibration sequences.")
    length: int = Field(default=128, ge=2, description="Tokens of each calibration sequence.")


class PruneSettings(CompressSettings):
    sparsity: float | str = Field(
        description="The fraction of weights to prune, such as 0.5; or N:M, N of M kept.", examples=[0.5, "2:4"]
    )
    sparsity_of: Annotated[dict[str, float | str], Written(metavar="PATTERN=SPARSITY")] = Field(
        default_factory=dict,
        description="Another sparsity for some layers, patterns as for --exclude; the last that matches counts. "
        "Repeatable.",
        examples=[{"down_proj": 0.4}],
    )
    method: Annotated[str, Offered("sqft_pruners")] = Field(
        default="wanda", description="Or sparsegpt, magnitude; `sqft plugins` lists more."
    )

    _check_sparsity = field_validator("sparsity", "sparsity_of")(check_pattern)

    def keywords(self) -> dict[str, Any]:
        """The arguments of `prune_folder`."""
        given = self.model_dump()
        given["overrides"] = given.pop("sparsity_of")
        return given


class QuantizeSettings(CompressSettings):
    method: Annotated[str, Offered("sqft_quantizers")] = Field(
        default="round-to-nearest", description="Or gptq; plug-ins add more."
    )
    group_size: int = Field(default=32, description="Weights that share a scale: 32, 64, 128; -1: a row.")
    symmetric: Annotated[
        bool,
        Written("--asymmetric", help="A zero point for each group; its GGUF is Q5_0 where a Q4_0 cannot hold it."),
    ] = Field(default=True, description="False: a zero point for each group.")

    def keywords(self) -> dict[str, Any]:
        """The arguments of `quantize_folder`."""
        return self.model_dump()
