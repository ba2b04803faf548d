"""A model's modes: whatever measures one in memory does it in evaluation, and leaves each module in its own mode."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """In here the model is in evaluation mode: no dropout, no gradient checkpointing, no noise. After it, also after an
    error, each module is in the mode that it was in, which need not be its parent's."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        model.train(modes[model])
        for module, training in modes.items():
            module.training = training
