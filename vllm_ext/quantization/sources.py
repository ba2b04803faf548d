"""From a layer of vLLM to the modules of the folder that are in it, and the part of a tensor that this rank holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sqft_plugins.checkpoint import ModelFolder
from sqft_plugins.checkpoint.stamp import FOLDER, MASK_FILE
from sqft_plugins.identity import State, state_of

Part = tuple[str, Any]
"""A module of the folder, and vLLM's name for its shard of the fused layer: "q", "k", "v", 0, 1, or None for all."""


def check_folder(folder: ModelFolder) -> None:
    """Raises CheckpointError for a folder that is damaged or whose masks are another model's; reads headers alone."""
    _ = folder.stamp, folder.grid, folder.files
    for module in folder.masks:
        folder.masked_shape(module)


def weights_state(folder: ModelFolder) -> list[State]:
    """Another one where a file of weights, or the masks, were written to or replaced. Raises OSError."""
    mask = folder.path / FOLDER / MASK_FILE
    return [state_of(file) for file in [*sorted(set(folder.files.values())), *([mask] if mask.is_file() else [])]]


def parts_of(
    layer: Any, prefix: str, sources: Mapping[str, str], packed: Mapping[str, Sequence[str]]
) -> list[Part] | None:
    """The modules of the folder that make up the layer `prefix` (a LinearBase of vLLM's), in the order of its rows.

    sources: vLLM's name → the folder's; packed: vLLM's `packed_modules_mapping`. None where vLLM fuses the layer in a
    way that its mapping does not tell (then no mask can be put together).
    """
    from vllm.model_executor.layers.linear import QKVParallelLinear

    if prefix in sources:  # not fused, or fused on disk as in vLLM (Phi-3)
        return [(sources[prefix], None)]
    parent, _, last = prefix.rpartition(".")
    names = [f"{parent}.{name}" if parent else name for name in packed.get(last, ())]
    if not names or any(name not in sources for name in names):
        return None
    shards: list[Any] = ["q", "k", "v"] if isinstance(layer, QKVParallelLinear) else list(range(len(names)))
    if len(shards) != len(names) or len(names) != len(layer.output_partition_sizes):
        return None
    return [(sources[name], shard) for name, shard in zip(names, shards, strict=True)]


def shard_of(layer: Any, parts: Sequence[Part], read: Callable[[str], Tensor]) -> Tensor:
    """The part of one tensor a module, [out, n] with n proportional to `in`, that this rank holds, fused as the
    layer is: [out of the shard, n of the shard]. vLLM's own weight loader of the layer cuts it, as it cuts the codes.

    read: module of the folder → the whole tensor.
    """
    from vllm.model_executor.parameter import ModelWeightParameter

    load = getattr(layer, "weight_loader_v2", None) or layer.weight_loader
    target: ModelWeightParameter | None = None
    for module, shard in parts:
        whole = read(module)
        if target is None:
            columns = whole.shape[1] * layer.input_size_per_partition // layer.input_size
            data = torch.empty(sum(layer.output_partition_sizes), columns, dtype=whole.dtype)
            target = ModelWeightParameter(data=data, input_dim=1, output_dim=0, weight_loader=None)
            target.tp_rank, target.tp_size = layer.tp_rank, layer.tp_size
        if shard is None:
            load(target, whole)
        else:
            load(target, whole, shard)
    assert target is not None
    return target.data
