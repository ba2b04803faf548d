"""The one place that knows PEFT's inside.

PEFT has no registration for adapter types from outside: `PeftType` is a closed Enum (peft/utils/peft_types.py). We add
one real member to it. Everything private that the other modules need of PEFT comes from here too.
"""

# What is imported below the check is for the other modules.
# ruff: noqa: E402, F401
# mypy: implicit-reexport=True

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from sqft_plugins.errors import DependencyError
from sqft_plugins.plugins.packages import package_check

NAME = "SQFT"


def check_version() -> None:
    """Raises DependencyError where PEFT is missing, or outside the versions that pyproject.toml asks for."""
    peft = package_check("peft", "pip install 'sqft-plugins[peft]'")
    if peft.status != "ok":
        raise DependencyError(f"peft: {peft.found}: run {peft.remedy}")


check_version()

from peft import PeftConfig, PeftModel
from peft import __version__ as peft_version
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora import LoraConfig, LoraModel
from peft.tuners.lora.layer import LoraLayer, LoraVariant
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, check_adapters_to_merge
from peft.utils import PeftType, hotswap, register_peft_method
from peft.utils.hotswap import CONFIG_KEYS_TO_CHECK
from peft.utils.other import AuxiliaryTrainingWrapper, get_pattern_key

WRAPPED = "_sqft_wrapped"
"""Set on a function of PEFT that is wrapped already."""


def peft_type() -> PeftType:
    """`PeftType.SQFT`, added at the first call. Look-up by value, name and attribute, iteration and pickle work."""
    if NAME not in PeftType.__members__:
        member = str.__new__(PeftType, NAME)
        member._name_ = NAME
        member._value_ = NAME
        member.__objclass__ = PeftType  # type: ignore[attr-defined]
        member._sort_order_ = len(PeftType.__members__)  # type: ignore[attr-defined]
        PeftType._member_names_.append(NAME)
        PeftType._member_map_[NAME] = member
        PeftType._value2member_map_[NAME] = member
        type.__setattr__(PeftType, NAME, member)  # EnumType's own __setattr__ refuses members
    return PeftType[NAME]


def register(config_cls: type, model_cls: type) -> None:
    """Makes PEFT know the SQFT adapter type. A second call does nothing."""
    kind = peft_type()
    if kind in PEFT_TYPE_TO_CONFIG_MAPPING:
        return
    register_peft_method(name=NAME.lower(), config_cls=config_cls, model_cls=model_cls, prefix="lora_")
    # what hotswap compares: an adapter for other zeros, another grid or another search space is not swapped in
    ours = ("sparse", "quantization_aware", "rounding", "rank_choices", "mask_hash", "grid_stamp")
    CONFIG_KEYS_TO_CHECK[kind] = [*CONFIG_KEYS_TO_CHECK[PeftType.LORA], *ours]


def wrap(owner: Any, name: str, ours: Callable[..., Any]) -> None:
    """Has `ours(original, *args, **kwargs)` called in place of `owner.name`. A second call does nothing."""
    original = getattr(owner, name)
    if hasattr(original, WRAPPED):
        return

    @functools.wraps(original)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return ours(original, *args, **kwargs)

    setattr(wrapped, WRAPPED, True)
    setattr(owner, name, wrapped)
