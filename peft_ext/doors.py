"""The doors through which tensors come under a name that is in use, and through which other adapter types come into a
model: whatever comes in is of the same kind, made over the same zeros and through the same grid, or it stays out.

PEFT asks the adapter type where an adapter is added (`SQFTModel.inject_adapter`). It asks nobody, and reads no
configuration, where a name is in use already (`load_adapter`, and so Trainer's `resume_from_checkpoint` and
`load_best_model_at_end`; hotswap), nor where another tuner meets our layers. There, and only there, its functions are
wrapped.
"""

from __future__ import annotations

import functools
import json
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

from torch import nn

from peft_ext.config import SQFTConfig
from peft_ext.grids import check_stamp
from peft_ext.identity import base_hash, check_mask, check_settings
from peft_ext.layer import Linear
from peft_ext.registry import (
    AuxiliaryTrainingWrapper,
    BaseTuner,
    BaseTunerLayer,
    PeftConfig,
    PeftModel,
    get_pattern_key,
    hotswap,
)
from sqft_plugins.errors import MismatchError, SQFTError

WRAPPED = "_sqft_wrapped"
CONFIG_FILE = "adapter_config.json"
FRESH = "_no_tensors_came_yet"
"""Set on the configuration of an adapter whose base was looked at just now, when it was added."""


def guard() -> None:
    """Wraps PEFT's functions. A second call does nothing."""
    _wrap(PeftModel, "load_adapter", _load_adapter)
    _wrap(hotswap, "hotswap_adapter_from_state_dict", _hotswap)
    _wrap(BaseTuner, "__init__", _other_tuner)


def _wrap(owner: Any, name: str, ours: Callable[..., Any]) -> None:
    original = getattr(owner, name)
    if getattr(original, WRAPPED, False):
        return

    @functools.wraps(original)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return ours(original, *args, **kwargs)

    setattr(wrapped, WRAPPED, True)
    setattr(owner, name, wrapped)


# --- tensors under a name that is in use ---


def _load_adapter(original: Callable, self: Any, model_id: Any, adapter_name: str, *args: Any, **kwargs: Any) -> Any:
    """PeftModel.load_adapter."""
    own = self.peft_config.get(adapter_name)
    if own is None:  # a new name: PEFT reads the configuration and adds the adapter with it
        with _looked_at():
            return original(self, model_id, adapter_name, *args, **kwargs)

    options = self._split_kwargs(kwargs)[0]
    if isinstance(own, SQFTConfig):
        layers = adapter_layers(self, adapter_name)
        if any(adapter_name in layer.merged_adapters for layer in layers.values()):
            raise SQFTError(
                f"adapter {adapter_name!r} is merged, and the model would go on with what is merged: run "
                "unmerge_adapter() before load_adapter"
            )
        coming = _saved_config(model_id, options)
        _check(own, coming, adapter_name, str(model_id), layers)
        vars(own).pop(FRESH, None)
    elif _is_sqft(Path(model_id, options.get("subfolder") or "") / CONFIG_FILE):
        raise _other_type(str(model_id), "SQFT", adapter_name, own)
    with _looked_at():
        result = original(self, model_id, adapter_name, *args, **kwargs)
    lost = [key for key in result.unexpected_keys if "lora_" in key]
    if lost and isinstance(own, SQFTConfig):
        warnings.warn(
            f"{len(lost)} tensors of {model_id} have no place in adapter {adapter_name!r} and were left out, the first "
            f"is {lost[0]}",
            stacklevel=3,
        )
    return result


def _saved_config(model_id: Any, options: Mapping[str, Any]) -> Any:
    """The configuration beside the tensors, or None where there is none."""
    try:
        return PeftConfig.from_pretrained(str(model_id), **options)
    except ValueError as error:
        if CONFIG_FILE not in str(error):
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
    if coming is None:
        warnings.warn(f"{source} has no {CONFIG_FILE}: {NOT_CHECKED}", stacklevel=4)
        return
    if own.peft_type != coming.peft_type:
        raise _other_type(source, coming.peft_type.value, adapter, own)
    check_settings(own, coming, adapter, source)
    if not own.sparse:
        return
    if coming.mask_hash is None:
        warnings.warn(f"{source} was saved without a mask_hash: {NOT_CHECKED}", stacklevel=4)
        return
    found = own.mask_hash if hasattr(own, FRESH) or own.quantization_aware else None
    found = found or base_hash(layers)[0]
    if found is None or (own.quantization_aware and own.grid_stamp is None):
        warnings.warn(f"the base has no weights yet: {NOT_CHECKED}", stacklevel=4)
    elif own.quantization_aware:
        check_stamp(coming, adapter, found, own.grid_stamp, own.grid or "the INT4 folder here")
    else:
        check_mask(coming, found, adapter)


NOT_CHECKED = "whether its tensors were trained over the zeros of this base was not checked"


def _hotswap(
    original: Callable, model: Any, state_dict: Mapping, adapter_name: str, config: Any, *args: Any, **kwargs: Any
) -> None:
    """peft.utils.hotswap.hotswap_adapter_from_state_dict. PEFT's own check is against the active adapter."""
    own: Any = (getattr(model, "peft_config", None) or {}).get(adapter_name)
    ours = isinstance(own, SQFTConfig) or isinstance(config, SQFTConfig)
    if ours:
        _check_swap(own, config, adapter_name)
    original(model, state_dict, adapter_name, config, *args, **kwargs)
    if ours:
        model.peft_config[adapter_name] = own = deepcopy(own)  # which may be the user's, or of another model too
        _take_over(own, config, adapter_layers(model, adapter_name), adapter_name)


def _check_swap(own: Any, coming: Any, adapter: str) -> None:
    source = "the adapter that is swapped in"
    if getattr(own, "peft_type", None) != coming.peft_type:
        raise MismatchError(f"{source} is a {coming.peft_type.value} adapter, and {adapter!r} here is not")
    check_settings(own, coming, adapter, source, swapped=True)
    for key in ("mask_hash", "grid_stamp"):
        if getattr(own, key) != getattr(coming, key):
            raise MismatchError(f"{source} was trained over another base ({key} differs): load it on its own base")


def _take_over(own: SQFTConfig, coming: SQFTConfig, layers: Mapping[str, Linear], adapter: str) -> None:
    """What PEFT leaves as it was: `lora_alpha` and `r`, with which the adapter is saved and its scale is reset."""
    own.r, own.lora_alpha = coming.r, coming.lora_alpha
    ranks, alphas = dict(coming.rank_pattern or {}), dict(coming.alpha_pattern or {})
    own.rank_pattern, own.alpha_pattern = ranks, alphas
    for name, layer in layers.items():
        layer.r[adapter] = ranks.get(get_pattern_key(list(ranks), name), own.r)
        layer.lora_alpha[adapter] = alphas.get(get_pattern_key(list(alphas), name), own.lora_alpha)
        state = layer.elastic[adapter]
        if own.rank_choices is None:
            state.rank_choices, state.chosen = [layer.r[adapter]], layer.r[adapter]


# --- tensors without a configuration ---


class _Looking(threading.local):
    """Whether the tensors that are loaded in this thread were looked at."""

    done = False


_looking = _Looking()


@contextmanager
def _looked_at() -> Iterator[None]:
    before, _looking.done = _looking.done, True
    try:
        yield
    finally:
        _looking.done = before


def tell_unchecked(module: nn.Module, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
    """Load-state-dict pre-hook of the whole model: tensors of an adapter came (`set_peft_model_state_dict`,
    `load_state_dict`), and nobody knows over which base they were trained. With the base's own weights among them they
    belong together."""
    if any(key.startswith(prefix) and ".base_layer." in key for key in state_dict):
        for config in getattr(module, "peft_config", {}).values():
            vars(config).pop(FRESH, None)
    adapted = {key.split(".lora_A.")[0] for key in state_dict if key.startswith(prefix) and ".lora_A." in key}
    if _looking.done or all(f"{name}.base_layer.weight" in state_dict for name in adapted):
        return
    warnings.warn(
        f"tensors of an adapter came without its {CONFIG_FILE}: {NOT_CHECKED}. load_adapter(FOLDER, NAME) checks it",
        stacklevel=4,
    )


# --- other adapter types ---


def _other_tuner(original: Callable, self: Any, model: nn.Module, *args: Any, **kwargs: Any) -> None:
    """BaseTuner.__init__ of every adapter type, SQFT's too."""
    from peft_ext.model import SQFTModel  # which imports this module

    make_room(model, for_sqft=isinstance(self, SQFTModel))
    original(self, model, *args, **kwargs)


def make_room(model: nn.Module, for_sqft: bool) -> None:
    """Raises SQFTError where adapters of another type are in `model`, before anything is changed: SQFT does not mix
    with them. Layers whose adapters were all deleted are taken out."""
    empty = []
    for name, module in _tuner_layers(model):
        if isinstance(module, Linear) == for_sqft:
            continue
        adapters = sorted(module._get_available_adapters())
        if adapters:
            here = "SQFT" if not for_sqft else f"{type(module).__module__.split('.')[-2]}.{type(module).__name__}"
            raise SQFTError(
                f"{name} has an adapter of another type ({here}: {', '.join(adapters)}), and SQFT and other types do "
                "not mix in one model: merge or unload that one first, delete it (delete_adapter), or load the base "
                "once more"
            )
        empty.append((name, module))
    for name, module in empty:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, module.get_base_layer())


def _tuner_layers(model: nn.Module) -> list[tuple[str, BaseTunerLayer]]:
    """PEFT's layers, without those that belong to `modules_to_save` and `trainable_token_indices`."""
    inside = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, AuxiliaryTrainingWrapper))
    return [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, BaseTunerLayer) and not name.startswith(inside)
    ]


def adapter_layers(model: nn.Module, adapter: str) -> dict[str, Linear]:
    """The SQFT layers of an adapter by their names in the base model."""
    return {
        name.removeprefix("_orig_mod.").removeprefix("base_model.model."): module
        for name, module in model.named_modules()
        if isinstance(module, Linear) and adapter in module.elastic
    }
