"""Ranks and merging for every model that carries SQFT adapters: a PeftModel, and a transformers model after its own
`add_adapter` or `load_adapter`, or `inject_adapter_in_model`, which leave no tuner to ask."""

from __future__ import annotations

from typing import Any

from torch import nn

from peft_ext.layer import Linear
from peft_ext.model import SQFTModel
from sqft_plugins.elastic import Rank
from sqft_plugins.errors import SQFTError


def sqft_model(model: nn.Module) -> SQFTModel:
    """The tuner of a model with SQFT adapters. Raises SQFTError for a model without one."""
    found: Any = getattr(model, "base_model", None)
    if isinstance(model, SQFTModel):
        return model
    if hasattr(model, "get_base_model") and isinstance(found, SQFTModel):
        return found

    layers = {name: module for name, module in model.named_modules() if isinstance(module, Linear)}
    if not layers:
        raise SQFTError(f"model {type(model).__name__} carries no SQFT adapter: add one with SQFTConfig first")

    # a tuner around the model that is there, without attaching anything
    tuner: Any = SQFTModel.__new__(SQFTModel)
    nn.Module.__init__(tuner)
    tuner.model = model
    tuner.peft_config = getattr(model, "peft_config", {})
    tuner.active_adapter = list(next(iter(layers.values())).active_adapters)
    tuner.targeted_module_names, tuner.targeted_parameter_names = list(layers), []
    return tuner


def set_active_rank(model: nn.Module, rank: Rank, adapter_name: str | None = None) -> dict[str, int]:
    """As `SQFTModel.set_active_rank`: module → rank."""
    return sqft_model(model).set_active_rank(rank, adapter_name)


def merge_adapter(model: nn.Module, adapter_names: list[str] | None = None, safe_merge: bool = False) -> None:
    """Merges the active adapters, or those named, in place, at their chosen ranks; `unmerge_adapter` takes them out."""
    sqft_model(model).merge_adapter(adapter_names=adapter_names, safe_merge=safe_merge)


def unmerge_adapter(model: nn.Module) -> None:
    """Puts the base weights back, bit for bit."""
    sqft_model(model).unmerge_adapter()


def merge_and_unload(model: nn.Module, safe_merge: bool = False, adapter_names: list[str] | None = None) -> Any:
    """The base with the adapters merged in and without any layer of ours: plain linears."""
    merged: Any = sqft_model(model).merge_and_unload(safe_merge=safe_merge, adapter_names=adapter_names)
    if getattr(merged, "_hf_peft_config_loaded", False):  # transformers would save an adapter, and load one
        merged._hf_peft_config_loaded = False
    for left in ("peft_config", "active_adapter"):
        merged.__dict__.pop(left, None)
    return merged
