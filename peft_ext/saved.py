"""What is written of an adapter, so that it can be loaded again.

PEFT makes factors whose shape is not what the configuration says: `prepare_model_for_compiled_hotswap` pads A and B
with zeros to one rank, and hotswap fills the first rows of them. It writes the weight of an adapted `lm_head` beside
them, merged or not, and does not look at the base again.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, MutableMapping
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.distributed.tensor import DTensor

from peft_ext.identity import Found, base_hash
from peft_ext.kept import is_fsdp_managed
from peft_ext.registry import get_pattern_key
from sqft_plugins.elastic import slice_lora

if TYPE_CHECKING:
    from peft_ext.layer import Linear


def crop_padding(tensors: dict[str, Tensor], layers: Mapping[str, Linear], adapter: str) -> None:
    """Takes the zeros beyond the adapter's rank out of the tensors that are to be saved."""
    for name, layer in layers.items():
        rank, keys = layer.r[adapter], [f"{name}.lora_{factor}.{adapter}.weight" for factor in "AB"]
        if not all(key in tensors for key in keys) or len(tensors[keys[0]]) <= rank:
            continue
        A, B = (tensors[key] for key in keys)
        if not bool(A[rank:].any()) and not bool(B[:, rank:].any()):
            tensors.update(zip(keys, (factor.contiguous() for factor in slice_lora(A, B, rank)), strict=True))


def note_ranks(config: Any, layers: Mapping[str, Linear], adapter: str) -> None:
    """Writes the ranks of the layers into the configuration, where `prepare_model_for_compiled_hotswap(config=…)` has
    written those of the padding."""
    patterns = list(config.rank_pattern or {})
    ranks: dict[str | None, set[int]] = {}
    for name, layer in layers.items():
        key = get_pattern_key(patterns, name)
        ranks.setdefault(key if key in patterns else None, set()).add(layer.r[adapter])
    for pattern, found in ranks.items():
        if len(found) > 1:
            continue
        if pattern is None:
            config.r = found.pop()
        else:
            config.rank_pattern[pattern] = found.pop()


def put_unmerged(tensors: MutableMapping[str, Tensor], layers: Mapping[str, Linear]) -> None:
    """Puts the base's own weights and biases into a state dict where adapters are merged into them: a file with the
    merged one would have the adapter twice."""
    for name, layer in layers.items():
        if layer._kept is None:
            continue
        for part, own in (("weight", layer._kept.weight), ("bias", layer._kept.bias)):
            if own is not None and f"{name}.base_layer.{part}" in tensors:
                tensors[f"{name}.base_layer.{part}"] = own.detach()


def note_mask(config: Any, layers: Mapping[str, Linear], adapter: str) -> None:
    """Writes the mask hash of the base as it is now into the configuration: its weights may have been replaced since
    the adapter was added (`load_state_dict`). Sharded weights cannot be read here; under a quantization-aware adapter
    the grid holds the mask."""
    if not config.sparse or config.quantization_aware:
        return
    if any(isinstance(layer.base().weight, DTensor) or is_fsdp_managed(layer) for layer in layers.values()):
        return
    found = base_hash({name.removeprefix("base_model.model."): layer for name, layer in layers.items()})[0]
    if found is None or found == config.mask_hash:
        return
    if config.mask_hash is not None:
        warnings.warn(
            f"the base under adapter {adapter!r} has other zeros than when it was added: it is saved as an adapter of "
            f"the base as it is now (mask {found[:12]})",
            stacklevel=2,
        )
    config.mask_hash = Found(found)
