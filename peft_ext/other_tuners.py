"""Adapters of other types in one model with SQFT's: refused, in either order."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from peft_ext.layer import Linear
from peft_ext.registry import AuxiliaryTrainingWrapper, BaseTunerLayer
from sqft_plugins.errors import SQFTError


def refuse_other_tuners(model: nn.Module, for_sqft: bool) -> None:
    """Raises SQFTError where adapters of another type are in `model`, before anything is changed: SQFT does not mix
    with them. Layers whose adapters were all deleted are taken out.

    for_sqft: whether the adapter that is about to be added is SQFT's; False for one of another type.
    """
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


def _tuner_layers(model: nn.Module) -> Iterator[tuple[str, BaseTunerLayer]]:
    """PEFT's layers, without those that belong to `modules_to_save` and `trainable_token_indices`."""
    inside = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, AuxiliaryTrainingWrapper))
    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer) and not name.startswith(inside):
            yield name, module
