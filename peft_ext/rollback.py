"""What a model was before an adapter was added, to be put back where the adapter is refused on the way.

PEFT leaves a half-added adapter in: its wrappers, its entry, the freezing, the adapter it made active, the blocks that
`layer_replication` has multiplied. The next attempt then takes the base for one with an adapter.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from typing import Any

from torch import nn

from peft_ext.registry import AuxiliaryTrainingWrapper, BaseTunerLayer

COUNTERS = ("num_hidden_layers",)
"""Values of a model's configuration that PEFT changes (peft.tuners.tuners_utils.replicate_layers)."""


def remember(model: nn.Module) -> Callable[[], None]:
    """A function that puts `model` back as it is now: modules, parameters, what is trained, adapters and their state.

    Costs no copy of any tensor; what was written into a tensor stays written.
    """
    modules = [(module, _containers(module)) for module in model.modules()]
    trained = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    config: Any = getattr(model, "config", None)
    counters = {name: getattr(config, name) for name in COUNTERS if hasattr(config, name)}

    def put_back() -> None:
        for module, containers in modules:
            for name, then in containers.items():
                _put_back(module, name, then)
        for parameter, requires_grad in trained:
            parameter.requires_grad_(requires_grad)
        for name, value in counters.items():
            setattr(config, name, value)

    return put_back


def _containers(module: nn.Module) -> dict[str, Any]:
    """Of every module its children and parameters, of PEFT's also all that they know of their adapters."""
    names = ["_modules", "_parameters", "_buffers"]
    if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper):
        names = [name for name in module.__dict__ if name != "training"]
    return {name: _copied(module.__dict__[name]) for name in names}


def _copied(value: Any) -> Any:
    return copy(value) if type(value) in (dict, list, set) else value


def _put_back(module: nn.Module, name: str, then: Any) -> None:
    now = module.__dict__.get(name)
    if type(then) is dict and type(now) is dict:  # into the same object: others may hold it
        now.clear()
        now.update(then)
    else:
        module.__dict__[name] = then
