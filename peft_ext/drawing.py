"""Drawing the ranks of a training step, once for each forward pass, whoever begins it.

A forward pass begins with the outermost call of a module that holds elastic layers: of the whole model, of its backbone
alone (trainers that compute the loss from hidden states), of one block. Every such module has a hook before and one
after its call. In order:

1. The hook before the outermost call draws ranks, or puts those aside that were drawn, where nothing is trained.
2. The hooks of the modules inside do nothing.
3. Each layer computes at its rank in force (ranks.py).
4. The hook after the outermost call takes up the ranks that were put aside.
5. Gradient checkpointing runs modules once more within the backward pass, where hooks do nothing: the ranks are still
   those of the forward pass.

In a compiled model only the hooks of the whole model are followed, and the draw is made outside the graph.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from peft_ext.layer import Linear
from peft_ext.variant import AdapterState
from sqft_plugins.elastic import sample_configuration

ENTRY = "_sqft_entry"
"""The attribute of a hooked module with the `Entry` of its model."""


@dataclass
class Entry:
    """What the hooked modules of one model share.

    begun: the module whose call began the forward pass that is running.
    outside: elastic layers that only the whole model holds, such as its head, which trainers call after the backbone.
    rested: whether the running pass is without gradients, so that nothing is drawn.
    """

    begun: nn.Module | None = None
    outside: list[Linear] = field(default_factory=list)
    rested: bool = False


def hook_model(model: nn.Module) -> None:
    """Hooks the model and every module in it that holds elastic layers. Done again, it adds what is new."""
    entry: Entry = getattr(model, ENTRY, None) or Entry()
    holders = {name for path, _ in _elastic(model) for name in _above(path)}
    for name in sorted(holders | {""}):
        module = model.get_submodule(name)
        if not hasattr(module, ENTRY):
            setattr(module, ENTRY, entry)
            before = draw_ranks if module is model else draw_ranks_inside
            module.register_forward_pre_hook(before, with_kwargs=True)
            after = take_up_ranks if module is model else take_up_ranks_inside
            module.register_forward_hook(after, always_call=True)
    entry.outside = [layer for path, layer in _elastic(model) if list(_above(path)) == [""]]


def unhook_model(model: nn.Module, more: Collection[Callable[..., Any]] = ()) -> None:
    """Takes out our hooks, and `more` of them."""
    ours = (draw_ranks, draw_ranks_inside, take_up_ranks, take_up_ranks_inside, *more)
    for module in model.modules():
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for key in [key for key, hook in hooks.items() if hook in ours]:
                del hooks[key]
                for marked in (module._forward_pre_hooks_with_kwargs, module._forward_hooks_always_called):
                    marked.pop(key, None)
        module.__dict__.pop(ENTRY, None)


def draw_ranks(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Forward pre-hook of the whole model: draws the ranks of a training step, puts them aside otherwise.

    Without gradients (`generate`, evaluation) nothing is drawn, also in training mode, nor for an adapter that is not
    trained, which stays at its chosen rank. The seed comes from torch's global generator, which Trainer saves and
    restores, so that a resumed run draws on as it would have; data-parallel processes take that of the first.
    """
    entry: Entry = getattr(model, ENTRY)
    rested = not torch.is_grad_enabled()
    if not torch.compiler.is_compiling():
        if _in_backward():
            return
        # begun already: a call that was broken off by Ctrl-C, which hooks do not see
        entry.begun, entry.rested = model, rested and not _checkpointed(model, args, kwargs)
        rested = entry.rested
    _begin(model, entry, rested)


def draw_ranks_inside(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Forward pre-hook of a module inside the model: as `draw_ranks`, where the call begins here. A compiled model
    begins with its own call."""
    if not torch.compiler.is_compiling() and getattr(module, ENTRY).begun in (None, module):
        draw_ranks(module, args, kwargs)


def take_up_ranks(model: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    """Forward hook of the whole model: after a forward without gradients, the ranks drawn before are in force again.

    A trainer may ask a reference model (DPO) or log something between forward and backward, and gradient checkpointing
    still has to run the layers a second time.
    """
    entry: Entry = getattr(model, ENTRY)
    rested = not torch.is_grad_enabled()
    if not torch.compiler.is_compiling():
        if entry.begun is not model or _in_backward():
            return
        entry.begun, rested = None, entry.rested
    if model.training and not rested:
        return
    for _, states in _by_adapter(model, entry):
        for _, state in states:
            state.ranks.take_up()


def take_up_ranks_inside(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    """Forward hook of a module inside the model."""
    if not torch.compiler.is_compiling():
        take_up_ranks(module, args, output)


# --- inside ---


def _begin(module: nn.Module, entry: Entry, rested: bool) -> None:
    """Draws or puts aside the ranks of all layers in the pass that `module` begins."""
    trains = module.training and not rested
    for adapter, states in _by_adapter(module, entry):
        if trains and _is_trained(adapter, states):
            _draw(adapter, states)
            continue
        for _, state in states:
            state.ranks.put_aside(forget=trains)  # trained once and frozen now: no draw is to come back


@torch.compiler.disable(reason="the ranks of a training step are drawn outside the graph")  # type: ignore[untyped-decorator]
def _draw(adapter: str, states: list[tuple[Linear, AdapterState]]) -> None:
    space = states[0][1].ranks
    assert space.share is not None
    names = [state.name for _, state in states]
    drawn = sample_configuration(names, space.choices, space.share, random.Random(_shared_seed()))
    for layer, state in states:
        # a tensor of its own for each layer: of shared ones dynamo notes who shares, and that changes with every draw
        state.ranks.draw(drawn[state.name], layer.factor("A", adapter))


def _by_adapter(module: nn.Module, entry: Entry) -> list[tuple[str, list[tuple[Linear, AdapterState]]]]:
    """Elastic adapter → its layers in the forward pass that `module` begins."""
    found: dict[str, list[tuple[Linear, AdapterState]]] = {}
    own = [layer for _, layer in _elastic(module)]
    for layer in (*own, *(layer for layer in entry.outside if not any(layer is one for one in own))):
        for adapter, state in layer.elastic.items():
            if state.ranks.share is not None:
                found.setdefault(adapter, []).append((layer, state))
    return list(found.items())


def _elastic(model: nn.Module) -> Iterator[tuple[str, Linear]]:
    for name, module in model.named_modules():
        if isinstance(module, Linear) and any(state.ranks.share is not None for state in module.elastic.values()):
            yield name, module


def _above(path: str) -> Iterator[str]:
    """The names of the modules that hold the module `path`, without those that are only called by their members."""
    parts = path.split(".")[:-1]
    return (".".join(parts[:length]) for length in range(len(parts) + 1))


def _is_trained(adapter: str, states: Iterable[tuple[Linear, AdapterState]]) -> bool:
    factors = (layer.factor(name, adapter) for layer, _ in states for name in ("A", "B"))
    return any(factor.requires_grad for factor in factors)


def _in_backward() -> bool:
    return torch._C._current_graph_task_id() != -1


def _checkpointed(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a reentrant checkpoint makes this call: without gradients, for inputs that need one."""
    given = (*args, *kwargs.values())
    return module.training and any(isinstance(value, Tensor) and value.requires_grad for value in given)


def _shared_seed() -> int:
    seed = torch.randint(2**62, (1,))
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        seed = seed.to(torch.device("cuda") if dist.get_backend() == "nccl" else torch.device("cpu"))
        dist.broadcast(seed, src=0)
    return int(seed)
