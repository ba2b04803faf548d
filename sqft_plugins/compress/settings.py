"""The options of `sqft prune` and `sqft quantize`."""

from __future__ import annotations

from typing import Any

from pydantic import field_validator

from sqft_plugins.compress.calibration import check_texts
from sqft_plugins.errors import SQFTError
from sqft_plugins.pattern import Pattern
from sqft_plugins.settings import Offered, Settings, option
from sqft_plugins.settings.checked import CheckedPath

BITS = (2, 3, 4, 5, 6, 8)  # of sqft_plugins.grid.UNIFORM, which brings torch
TEXTS = CheckedPath(check_texts)
"""A file with texts, or what can be the name of a data set."""


def check_pattern(value: Any) -> Any:
    """A sparsity, or several by layer. Raises SQFTError."""
    for one in value.values() if isinstance(value, dict) else [value]:
        Pattern.parse(one)
    return value


class CompressSettings(Settings):
    """What both have: which layers stay as they are, and the text that calibrates."""

    exclude: list[str] = option(
        list,
        "Layers to leave as they are: a name, its end (down_proj), or a regular expression. Repeatable.",
        metavar="PATTERN",
        examples=[["v_proj", r"model\.layers\.0\..*"]],
    )
    calibration: str | None = option(
        None,
        "Text, JSONL or JSON with `text`, `prompt` and `completion`, or `question` and `answer`; or a data "
        "set on the hub, NAME[:CONFIG[:SPLIT]]. Default: the language reference that Python ships.",
        TEXTS,
        "name or file",
        metavar="FILE|DATASET",
    )
    sequences: int = option(32, "Calibration sequences.", ge=1)
    length: int = option(128, "Tokens of each calibration sequence.", ge=2)


class PruneSettings(CompressSettings):
    sparsity: float | str = option(
        ..., "The fraction of weights to prune, such as 0.5; or N:M, N of M kept.", examples=[0.5, "2:4"]
    )
    sparsity_of: dict[str, float | str] = option(
        dict,
        "Another sparsity for some layers, patterns as for --exclude; the last that matches counts. Repeatable.",
        metavar="PATTERN=SPARSITY",
        examples=[{"down_proj": 0.4}],
    )
    method: str = option("wanda", "Or sparsegpt, magnitude; `sqft plugins` lists more.", Offered("sqft_pruners"))

    _check_sparsity = field_validator("sparsity", "sparsity_of")(check_pattern)

    def keywords(self) -> dict[str, Any]:
        """The arguments of `prune_folder`."""
        given = self.model_dump()
        given["overrides"] = given.pop("sparsity_of")
        return given


class QuantizeSettings(CompressSettings):
    method: str = option("round-to-nearest", "Or gptq; plug-ins add more.", Offered("sqft_quantizers"))
    bits: int = option(4, "Of a code: 2, 3, 4, 5, 6 or 8. The kernels and GGUF's Q4_0 are for 4.")
    group_size: int = option(32, "Weights that share a scale: 32, 64, 128; -1: a row.")
    symmetric: bool = option(
        True,
        "False: a zero point for each group.",
        name="--asymmetric",
        help="A zero point for each group; its GGUF is Q5_0 where a Q4_0 cannot hold it.",
    )

    @field_validator("bits")
    @classmethod
    def _check_bits(cls, value: int) -> int:
        if value not in BITS:
            raise SQFTError(f"bits={value} is no grid: use {', '.join(map(str, BITS))}")
        return value

    @field_validator("group_size")
    @classmethod
    def _check_group_size(cls, value: int) -> int:
        if value < 1 and value != -1:
            raise SQFTError(f"group_size={value} is not a group: use 32, 64, 128 or -1 (per channel)")
        return value
