"""The options of `sqft prune` and `sqft quantize`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self, cast

from pydantic import field_validator, model_validator

from sqft_plugins.compress.calibration import check_texts
from sqft_plugins.errors import SQFTError, nearest
from sqft_plugins.pattern import Pattern
from sqft_plugins.settings import Offered, Settings, option
from sqft_plugins.settings.checked import CheckedPath

if TYPE_CHECKING:
    from sqft_plugins.plugins.protocols import Maker

ROUND_TO_NEAREST = "round-to-nearest"
GRIDS = ("int2", "int3", "int4", "int5", "int6", "int8")  # sqft_plugins.grid.UNIFORM, which brings torch
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
    grid: str = option(
        "int4",
        "int2, int3, int4, int5, int6 or int8, for a folder; or a type of llama.cpp, such as q4_0, q4_k_m or q3_k_s, "
        "for a .gguf file.",
        metavar="NAME",
    )
    method: str = option(
        ROUND_TO_NEAREST,
        "How codes are chosen: gptq, or that of a plug-in. Types of llama.cpp: gptq, which is the default there, or "
        "llama.cpp, its own codes.",
    )
    group_size: int = option(32, "Weights that share a scale: 32, 64, 128; -1: a row. For int2 to int8.")
    symmetric: bool = option(
        True,
        "False: a zero point for each group. For int2 to int8.",
        name="--asymmetric",
        help="A zero point for each group; its GGUF is Q5_0 where a Q4_0 cannot hold it.",
    )
    importance: bool = option(
        True,
        "Whether llama.cpp weighs each input as much as it is used in the calibration text.",
        name="--no-importance",
        help="For types of llama.cpp: every input weighs the same.",
    )

    @model_validator(mode="before")
    @classmethod
    def _with_method(cls, values: dict[str, Any]) -> dict[str, Any]:
        grid, given = values.get("grid", "int4"), values.get("method")
        method = method_of(grid, given) if isinstance(grid, str) else given
        # a default stays unset, so that a recipe does not write it
        return values if method in (None, given, ROUND_TO_NEAREST) else {**values, "method": method}

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.group_size < 1 and self.group_size != -1:
            raise SQFTError(f"group_size={self.group_size} is not a group: use 32, 64, 128 or -1 (per channel)")
        foreign = ("group_size", "symmetric", "exclude") if maker_of(self.grid) else ("importance",)
        for name in foreign:
            if getattr(self, name) != type(self).model_fields[name].get_default(call_default_factory=True):
                whose = "int2 to int8" if maker_of(self.grid) else "types of llama.cpp"
                raise SQFTError(f"{name}={getattr(self, name)} does not go with --grid {self.grid}, it is for {whose}")
        return self

    def keywords(self) -> dict[str, Any]:
        """The arguments of `quantize_folder`; of a grid that a folder has."""
        return {**self.model_dump(exclude={"grid", "importance"}), "bits": bits_of(self.grid)}


def bits_of(grid: str) -> int:
    """Of a code of "int4" and so on."""
    return int(grid.removeprefix("int"))


def maker_of(grid: str) -> Maker | None:
    """Whose quantizer makes a grid; None for one of ours, which is a folder's. Raises SQFTError for an unknown name."""
    from sqft_plugins.plugins import get_manager

    if grid in GRIDS:
        return None
    makers = cast("dict[str, Maker]", get_manager().collect("sqft_makers"))
    known = {name: maker for maker in makers.values() for name in maker.grids}
    if grid not in known:
        raise SQFTError(f"grid={grid!r} is unknown: {nearest(grid, [*GRIDS, *known])}")
    return known[grid]


def method_of(grid: str, method: str | None) -> str:
    """The method, or the default of the grid. Raises SQFTError for a method that does not make this grid."""
    from sqft_plugins.plugins import get_manager

    maker = maker_of(grid)
    if maker is None:
        if method is not None:
            get_manager().get("sqft_quantizers", method, "--method")
        return method or ROUND_TO_NEAREST
    if method is not None and method not in maker.methods:
        raise SQFTError(f"method={method!r} does not make {grid}: use {' or '.join(maker.methods)}")
    return method or maker.methods[0]
