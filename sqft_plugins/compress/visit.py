"""One forward pass over a calibration batch that stops at every linear layer, just before it computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sqft_plugins.compress.statistic import input_statistic
from sqft_plugins.errors import GridError, SQFTError
from sqft_plugins.plugins.protocols import Statistic
from sqft_plugins.progress import track


def visit_linears(
    model: PreTrainedModel,
    tokens: Tensor | None,
    linears: Mapping[str, nn.Linear],
    statistic: Statistic,
    visit: Callable[[str, Tensor | None], None],
    what: str,
) -> None:
    """Calls `visit(name, statistic of the inputs)` for each linear layer when its inputs arrive: what `visit` writes
    into the weight is what the layer computes with, so later layers see it.

    tokens: int64 [sequences, length]; not used for the statistic "none", where there is no forward pass. Raises
    GridError for inputs that are not finite, SQFTError for a layer that the pass does not call and for tokens outside
    the vocabulary.
    """
    done: set[str] = set()
    with closing(track(range(len(linears)), what)) as steps, torch.no_grad():  # type: ignore[type-var]

        def once(name: str, inputs: Tensor | None) -> None:
            if name in done:  # a layer that is called again was visited at its first call
                return
            done.add(name)
            next(steps)
            seen = None if inputs is None else input_statistic(statistic, inputs)
            if seen is not None and not bool(torch.isfinite(seen).all()):
                raise GridError(f"the inputs of layer {name} are not finite: load the model in bfloat16 or float32")
            visit(name, seen)

        if statistic == "none":
            for name in linears:
                once(name, None)
            return
        _forward(model, _check_tokens(model, tokens), linears, once)
    missing = [name for name in linears if name not in done]
    if missing:
        raise SQFTError(
            f"layer {missing[0]} (and {len(missing) - 1} more) is never called by the forward pass, so nothing is "
            "known of its inputs: use a method that needs no calibration, such as magnitude or round-to-nearest"
        )


def _forward(
    model: PreTrainedModel, tokens: Tensor, linears: Mapping[str, nn.Linear], once: Callable[[str, Tensor], None]
) -> None:
    def hook_of(name: str):
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            once(name, inputs[0])

        return hook

    handles = [linear.register_forward_pre_hook(hook_of(name)) for name, linear in linears.items()]
    try:
        # the body without its head: the logits of a large vocabulary would need more memory than the model
        model.base_model(input_ids=tokens.to(model.device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()


def _check_tokens(model: PreTrainedModel, tokens: Tensor | None) -> Tensor:
    if tokens is None or tokens.numel() == 0:
        raise SQFTError("the method needs calibration tokens: give a batch [sequences, length]")
    vocabulary = len(model.get_input_embeddings().weight)  # type: ignore[arg-type]
    if int(tokens.max()) >= vocabulary:
        raise SQFTError(
            f"token {int(tokens.max())} is outside the model's vocabulary of {vocabulary}: "
            "the tokenizer is another model's, give the right one"
        )
    return tokens
