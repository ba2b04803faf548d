"""Weights of the decoder blocks that are no linear layers: experts that transformers keep as one parameter
[experts, out, in], and matrices that a module holds itself (`in_proj_weight` of torch's attention, DBRX's experts).

They are not adapted, and neither pruned nor quantized but for the experts of experts.py. How many weights are left out
is counted here, for messages.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

from torch import nn
from transformers.pytorch_utils import Conv1D

from sqft_plugins.errors import SQFTError
from sqft_plugins.structure import find_blocks

SMALLEST = 8
"""The side of a matrix of an expert, at least: what is narrower is a table of a mechanism (Mamba's, RWKV's)."""

Fused = dict[str, tuple[int, ...]]


def fused_weights(model: nn.Module, anywhere: bool = False) -> Fused:
    """Parameter name → shape, of all matrices in the decoder blocks that are in no linear layer; routers, convolutions
    and other small tables do not count. anywhere: in a model without a list of equal blocks (Jamba), look at all of it;
    else such a model has no fused weights."""
    prefix: str
    blocks: nn.Module
    try:
        prefix, blocks = find_blocks(model)
    except SQFTError:
        if not anywhere:
            return {}
        prefix, blocks = "", model

    # a smaller side than these is that of a router or a table
    embedding = getattr(model, "get_input_embeddings", lambda: None)()
    width = embedding.weight.shape[-1] if isinstance(embedding, nn.Embedding) else 64
    found: Fused = {}
    for path, module in blocks.named_modules(prefix=prefix):
        if isinstance(module, nn.Linear | Conv1D | nn.Embedding | nn.modules.conv._ConvNd):
            continue
        for name, parameter in module.named_parameters(recurse=False):
            least = {2: width, 3: SMALLEST}.get(parameter.dim())
            if least is not None and min(parameter.shape[-2:]) >= least and parameter.is_floating_point():
                found[f"{path}.{name}".removeprefix(".")] = tuple(parameter.shape)
    return found


def means_fused(target: str, fused: Collection[str]) -> bool:
    """Whether the name of a linear layer is also that of a part of a fused weight, as `up_proj` is of
    `experts.gate_up_proj`."""
    parts = set(target.rpartition(".")[2].split("_"))
    return any(parts <= set(name.rpartition(".")[2].split("_")) for name in fused)


def left_out(fused: Mapping[str, tuple[int, ...]], linear: int) -> str:
    """Such as "6,144 of 7,808 weights of the blocks (79 %) are in parameters that are no linear layers, such as …";
    linear: weights of the linear layers there."""
    name, shape = next(iter(fused.items()))
    count = count_of(fused)
    share = count / (count + linear)
    what = "experts" if len(shape) == 3 else "fused projections"
    return (
        f"{count:,} of {count + linear:,} weights of the blocks ({share:.0%}) are in parameters that "
        f"are no linear layers, such as {name} {list(shape)} ({what})"
    )


def count_of(fused: Mapping[str, tuple[int, ...]]) -> int:
    return sum(math.prod(shape) for shape in fused.values())


def ends_of(fused: Collection[str]) -> list[str]:
    """Patterns that pick them all: the last two parts of their names."""
    return list(dict.fromkeys(".".join(name.split(".")[-2:]) for name in fused))
