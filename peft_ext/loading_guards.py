"""What guards an adapter that is there already: only tensors of the same kind, made over the same zeros and through the
same grid, are loaded under its name, and no other adapter type comes into its model.

PEFT asks the adapter type where an adapter is added (`SQFTModel.inject_adapter`). It asks nobody, and reads no
configuration, where a name is in use already, nor where another tuner meets our layers. There, and only there, its
functions are wrapped:

1. `PeftModel.load_adapter`, and so Trainer's `resume_from_checkpoint` and `load_best_model_at_end`;
2. `hotswap_adapter_from_state_dict`;
3. `BaseTuner.__init__`, of every adapter type;
4. transformers' own `add_adapter` and `load_adapter`, to say what to call where PEFT is too old for them.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from packaging.version import Version
from torch import nn
from transformers import __version__ as transformers_version
from transformers.integrations import peft as transformers_peft

from peft_ext.config import SQFTConfig
from peft_ext.layer import Linear
from peft_ext.model import SQFTModel, sqft_layers
from peft_ext.other_tuners import refuse_other_tuners
from peft_ext.provenance import base_hash, check_mask, check_settings, check_stamp
from peft_ext.registry import BaseTuner, PeftConfig, PeftModel, hotswap, peft_version, wrap
from peft_ext.unchecked import FRESH, NOT_CHECKED, checked
from peft_ext.unmerged import UnmergedWeights
from sqft_plugins.adapter.folder import CONFIG
from sqft_plugins.adapter.lora_config import pattern_value
from sqft_plugins.adapter.tensor_names import in_base
from sqft_plugins.errors import DependencyError, MismatchError, SQFTError


def guard() -> None:
    """Wraps PEFT's functions, and two of transformers. A second call does nothing."""
    wrap(PeftModel, "load_adapter", _load_adapter)
    wrap(hotswap, "hotswap_adapter_from_state_dict", _hotswap)
    wrap(BaseTuner, "__init__", _other_tuner)
    wrap(transformers_peft.PeftAdapterMixin, "add_adapter", _transformers_add)
    wrap(transformers_peft.PeftAdapterMixin, "load_adapter", _transformers_load)


# --- tensors under a name that is in use ---


def _load_adapter(
    original: Callable[..., Any], self: Any, model_id: Any, adapter_name: str, *args: Any, **kwargs: Any
) -> Any:
    """PeftModel.load_adapter."""
    own = self.peft_config.get(adapter_name)
    if own is None:  # a new name: PEFT reads the configuration and adds the adapter with it
        with checked():
            return original(self, model_id, adapter_name, *args, **kwargs)

    options = self._split_kwargs(kwargs)[0]
    if isinstance(own, SQFTConfig):
        layers = _adapter_layers(self, adapter_name)
        if any(adapter_name in layer.merged_adapters for layer in layers.values()):
            raise SQFTError(
                f"adapter {adapter_name!r} is merged, and the model would go on with what is merged: run "
                "unmerge_adapter() before load_adapter"
            )
        coming = _saved_config(model_id, options)
        _check(own, coming, adapter_name, str(model_id), layers)
        vars(own).pop(FRESH, None)
    elif _is_sqft(Path(model_id, options.get("subfolder") or "") / CONFIG):
        raise _other_type(str(model_id), "SQFT", adapter_name, own)

    with checked():
        result = original(self, model_id, adapter_name, *args, **kwargs)
    lost = [key for key in result.unexpected_keys if "lora_" in key]
    if lost and isinstance(own, SQFTConfig):
        warnings.warn(
            f"{len(lost)} tensors of {model_id} have no place in adapter {adapter_name!r} and were left out, the first "
            f"is {lost[0]}",
            stacklevel=3,
        )
    if getattr(self.peft_config[adapter_name], "rounding", "") == "compensated" and all(
        layer.settled(adapter_name).is_empty for layer in _adapter_layers(self, adapter_name).values()
    ):
        warnings.warn(
            f"{model_id} has not settled: it computes as a float adapter, and cannot be merged before "
            "model.base_model.settle(tokens)",
            stacklevel=3,
        )
    return result


def _saved_config(model_id: Any, options: Mapping[str, Any]) -> Any:
    """The configuration beside the tensors, or None where there is none."""
    try:
        return PeftConfig.from_pretrained(str(model_id), **options)
    except ValueError as error:
        if CONFIG not in str(error):
            raise
        return None


def _is_sqft(file: Path) -> bool:
    """Of an adapter that is loaded as another type; those on the hub are PEFT's own business."""
    try:
        return json.loads(file.read_text()).get("peft_type") == "SQFT"
    except (OSError, ValueError, AttributeError):
        return False


def _other_type(source: str, coming: str, adapter: str, own: Any) -> MismatchError:
    return MismatchError(
        f"{source} is a {coming} adapter, and {adapter!r} here a {own.peft_type.value} one: load it into a model of "
        "its own"
    )


def _check(own: Any, coming: Any, adapter: str, source: str, layers: Mapping[str, Linear]) -> None:
    """Raises MismatchError where tensors do not belong under an adapter; warns where that cannot be known.

    own, coming: the configuration of the adapter here and of the tensors, None where they have none.
    source: where the tensors come from, for messages.
    layers: the adapter's, by their names in the base model.
    """
    if coming is None:
        warnings.warn(f"{source} has no {CONFIG}: {NOT_CHECKED}", stacklevel=4)
        return
    if own.peft_type != coming.peft_type:
        raise _other_type(source, coming.peft_type.value, adapter, own)
    check_settings(own, coming, adapter, source)
    if not own.sparse and not own.quantization_aware:
        return

    # the base: found when the adapter was added, else looked at again
    if coming.mask_hash is None:
        warnings.warn(f"{source} was saved without a mask_hash: {NOT_CHECKED}", stacklevel=4)
        return
    found = own.mask_hash if hasattr(own, FRESH) or own.quantization_aware else None
    found = found or base_hash(UnmergedWeights(layers))[0]
    if found is None or (own.quantization_aware and own.grid_stamp is None):
        warnings.warn(f"the base has no weights yet: {NOT_CHECKED}", stacklevel=4)
    elif own.quantization_aware:
        check_stamp(coming, adapter, found, own.grid_stamp, own.grid or "the INT4 folder here")
    else:
        check_mask(coming, found, adapter)


def _hotswap(
    original: Callable[..., Any],
    model: Any,
    state_dict: Mapping[str, Any],
    adapter_name: str,
    config: Any,
    *args: Any,
    **kwargs: Any,
) -> None:
    """peft.utils.hotswap.hotswap_adapter_from_state_dict. PEFT's own check is against the active adapter."""
    own: Any = (getattr(model, "peft_config", None) or {}).get(adapter_name)
    ours = isinstance(own, SQFTConfig) or isinstance(config, SQFTConfig)
    if ours:
        _check_swap(own, config, adapter_name)
    original(model, state_dict, adapter_name, config, *args, **kwargs)
    if ours:
        model.peft_config[adapter_name] = own = deepcopy(own)  # which may be the user's, or of another model too
        _take_over(own, config, _adapter_layers(model, adapter_name), adapter_name)


def _check_swap(own: Any, coming: Any, adapter: str) -> None:
    source = "the adapter that is swapped in"
    if getattr(own, "peft_type", None) != coming.peft_type:
        raise MismatchError(f"{source} is a {coming.peft_type.value} adapter, and {adapter!r} here is not")
    check_settings(own, coming, adapter, source, swapped=True)
    if "compensated" in (coming.rounding, own.rounding):
        raise SQFTError(f"{source}, or {adapter!r}, has codes of its own, which are not swapped: use two names")
    for key in ("mask_hash", "grid_stamp"):
        if getattr(own, key) != getattr(coming, key):
            raise MismatchError(f"{source} was trained over another base ({key} differs): load it on its own base")


def _take_over(own: SQFTConfig, coming: SQFTConfig, layers: Mapping[str, Linear], adapter: str) -> None:
    """What PEFT leaves as it was: `lora_alpha` and `r`, with which the adapter is saved and its scale is reset."""
    own.r, own.lora_alpha = coming.r, coming.lora_alpha
    ranks, alphas = dict(coming.rank_pattern or {}), dict(coming.alpha_pattern or {})
    own.rank_pattern, own.alpha_pattern = ranks, alphas
    for name, layer in layers.items():
        layer.r[adapter] = pattern_value(ranks, name, own.r)
        layer.lora_alpha[adapter] = pattern_value(alphas, name, own.lora_alpha)
        if own.rank_choices is None:
            layer.elastic[adapter].ranks.fix(layer.r[adapter])


# --- other adapter types ---


def _other_tuner(original: Callable[..., Any], self: Any, model: nn.Module, *args: Any, **kwargs: Any) -> None:
    """BaseTuner.__init__ of every adapter type, SQFT's too."""
    refuse_other_tuners(model, for_sqft=isinstance(self, SQFTModel))
    original(self, model, *args, **kwargs)


# --- transformers' own calls ---


def newer_peft_wanted() -> str | None:
    """The lowest PEFT that transformers' own `add_adapter` and `load_adapter` work with, where it is not installed."""
    wanted = getattr(transformers_peft, "MIN_PEFT_VERSION", "0")
    return wanted if Version(peft_version) < Version(wanted) else None


def _transformers_add(original: Callable[..., Any], self: Any, adapter_config: Any, *args: Any, **kwargs: Any) -> None:
    """PreTrainedModel.add_adapter."""
    if isinstance(adapter_config, SQFTConfig):
        _check_transformers_call("add_adapter", "peft.inject_adapter_in_model(config, model)")
    original(self, adapter_config, *args, **kwargs)


def _transformers_load(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    """PreTrainedModel.load_adapter."""
    source = args[0] if args else kwargs.get("peft_model_id")
    if source is not None and _is_sqft(Path(source) / CONFIG):
        _check_transformers_call("load_adapter", f"PeftModel.from_pretrained(model, {str(source)!r})")
    return original(self, *args, **kwargs)


def _check_transformers_call(name: str, instead: str) -> None:
    wanted = newer_peft_wanted()
    if wanted is not None:
        raise DependencyError(
            f"model.{name} of transformers {transformers_version} works with PEFT {wanted} or newer, and PEFT "
            f"{peft_version} is installed: call {instead} instead"
        )


def _adapter_layers(model: nn.Module, adapter: str) -> dict[str, Linear]:
    """The SQFT layers of an adapter by their names in the base model."""
    return {in_base(name): layer for name, layer in sqft_layers(model, adapter)}
