"""SQFTConfig: a LoraConfig with a mask and an elastic rank."""

# ruff: noqa: RUF009 (`_option` returns a field, not a shared default)

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from peft_ext.card import write_card
from peft_ext.fields import as_plain_numbers, check_fields, check_ignored
from peft_ext.registry import LoraConfig, peft_type
from sqft_plugins.adapter.initialisations import CHANGING
from sqft_plugins.elastic import check_quantization_aware, check_rank_choices
from sqft_plugins.errors import SQFTError, nearest


def _option(default: Any, help: str) -> Any:
    """A dataclass field with its help, as PEFT's configurations have it."""
    return field(default=default, metadata={"help": help})


@dataclass
class SQFTConfig(LoraConfig):
    """Configuration of an SQFT adapter (arXiv 2410.03750); every field of `LoraConfig` is there too.

    `r` is the rank of the super-adapter. All ranks scale by `lora_alpha / r`. Evaluation and merging begin at `r`,
    until `set_active_rank` chooses another; the verbs of `sqft` and the server begin at the median of `rank_choices`.
    Raises SQFTError, naming the field, for what cannot work.
    """

    sparse: bool = _option(
        True,
        "Mask the delta with the base's nonzero pattern, so that a merge keeps every zero (SparsePEFT). False with "
        "quantization_aware: the quantized base was never pruned, all its weights are trained.",
    )
    quantization_aware: bool = _option(
        False, "Train through the base's grid, so that a merge is on it again (QA-SparsePEFT)."
    )
    grid: str | None = _option(
        None, "The folder quantized from this float base (quantization_aware). None: the base is a quantized folder."
    )
    rounding: Literal["nearest", "compensated"] = _option(
        "nearest",
        "With quantization_aware. nearest: train through the grid. compensated: train over its codes as they are, then "
        "call model.base_model.settle(tokens), which rounds once, with error compensation.",
    )
    rank_choices: list[int] | None = _option(None, "The search space of ranks; its maximum is `r`. None: a fixed rank.")
    share_rank: Literal["layer", "module"] = _option(
        "layer", "What shares one sampled rank: the modules of a block, or each module alone."
    )
    mask_hash: str | None = _option(
        None, "Hash of the base's masks under the adapted modules. Filled in; checked when loading."
    )
    grid_stamp: dict[str, Any] | None = _option(
        None, "The grid trained through and the base under it. Filled in; checked when loading."
    )

    def __post_init__(self) -> None:
        check_fields(self)
        as_plain_numbers(self)
        super().__post_init__()
        check_ignored(self)
        self.peft_type = peft_type()

        # ranks
        if self.rank_choices is not None:
            self.rank_choices = check_rank_choices(self.rank_choices, self.r)
            if self.rank_pattern:
                raise SQFTError(
                    "rank_pattern cannot be used with rank_choices: the search space rules every module's rank"
                )

        # the grid
        check_quantization_aware(self.quantization_aware, self.grid, lora_dropout=self.lora_dropout)
        if self.quantization_aware and (self.lora_bias or self.bias != "none"):
            raise SQFTError(
                f"bias={self.bias!r}, lora_bias={self.lora_bias} cannot be used with quantization_aware: a merge "
                "changes INT4 codes only. Use bias='none' and lora_bias=False"
            )
        if self.rounding == "compensated" and not self.quantization_aware:
            raise SQFTError("rounding='compensated' needs quantization_aware=True: set it, or leave rounding out")
        self.grid = None if self.grid is None else str(self.grid)  # a Path cannot be saved as JSON

        # what changes the base, or is not a linear layer
        init = self.init_lora_weights
        if isinstance(init, str) and init.lower().startswith(CHANGING):
            raise SQFTError(f"init_lora_weights={init!r} changes the base weight: use True, 'gaussian' or 'orthogonal'")
        if init == "eva" and self.rank_choices is not None:
            raise SQFTError(
                "init_lora_weights='eva' cannot be used with rank_choices: it gives every module a rank of its own"
            )
        if self.target_parameters:
            raise SQFTError(
                f"target_parameters={self.target_parameters} is not supported: adapt linear layers by target_modules"
            )

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Also writes README.md where the adapter's weights are: PEFT's own does not say how to load them."""
        super().save_pretrained(save_directory, **kwargs)
        write_card(Path(save_directory), self)


def _name_unknown_fields(original: Callable[..., None]) -> Callable[..., None]:
    """SQFTConfig's `__init__`, which names the nearest field for an unknown one."""
    known = [f.name for f in dataclasses.fields(SQFTConfig)]

    def __init__(self: SQFTConfig, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        for name in kwargs:
            if name not in known:
                # PEFT drops fields of newer releases when it reads these very words in a TypeError
                close = nearest(name, known).split(" known:")[0]
                raise TypeError(f"SQFTConfig got an unexpected keyword argument {name!r}: {close}")
        original(self, *args, **kwargs)

    __init__.__doc__ = original.__doc__
    __init__.__wrapped__ = original  # type: ignore[attr-defined]
    return __init__


SQFTConfig.__init__ = _name_unknown_fields(SQFTConfig.__init__)  # type: ignore[method-assign]
