"""What is written of an adapter, so that it can be loaded again.

PEFT makes factors whose shape is not what the configuration says: `prepare_model_for_compiled_hotswap` pads A and B
with zeros to one rank, and hotswap fills the first rows of them. It writes the weight of an adapted `lm_head` beside
them, merged or not, and does not look at the base again.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, MutableMapping
from typing import Any

from torch import Tensor

from peft_ext.layer import Linear
from peft_ext.provenance import Found, base_hash
from peft_ext.registry import get_pattern_key
from peft_ext.unmerged import UnmergedWeights
from sqft_plugins.adapter.tensor_names import in_base
from sqft_plugins.elastic import slice_lora


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
        if layer._saved_base is None:
            continue
        for part, own in (("weight", layer._saved_base.weight), ("bias", layer._saved_base.bias)):
            if own is not None and f"{name}.base_layer.{part}" in tensors:
                tensors[f"{name}.base_layer.{part}"] = own.detach()


def note_mask(config: Any, layers: Mapping[str, Linear], adapter: str) -> None:
    """Writes the mask hash of the base as it is now into the configuration: its weights may have been replaced since
    the adapter was added (`load_state_dict`). Sharded weights cannot be read here; under a quantization-aware adapter
    the grid holds the mask."""
    if not config.sparse or config.quantization_aware:
        return
    if any(layer.is_sharded() for layer in layers.values()):
        return

    weights = UnmergedWeights(layers)
    found, _ = base_hash({in_base(name): weight for name, weight in weights.items()})
    if found is None or found == config.mask_hash:
        return
    if config.mask_hash is not None:
        warnings.warn(
            f"the base under adapter {adapter!r} has other zeros than when it was added: it is saved as an adapter of "
            f"the base as it is now (mask {found[:12]})",
            stacklevel=2,
        )
    config.mask_hash = Found(found)


def write_combined_ranks(config: Any, adapter: str, layers: Mapping[str, Any]) -> None:
    """Writes into the configuration of a combination what its layers have: PEFT keeps the rank_pattern of the first
    adapter with other ranks than the factors', and the saved adapter could not be loaded."""
    ranks = {name: len(layer.factor("A", adapter)) for name, layer in layers.items()}
    for name, layer in layers.items():
        layer.r[adapter] = ranks[name]
        layer.lora_alpha[adapter] = layer.scaling[adapter] * ranks[name]
        layer.elastic[adapter].ranks.fix(ranks[name])

    config.r = max(ranks.values(), default=config.r)
    config.lora_alpha = max((layers[name].lora_alpha[adapter] for name in ranks), default=config.lora_alpha)
    config.rank_pattern = {name: rank for name, rank in ranks.items() if rank != config.r}
    alphas = {name: layer.lora_alpha[adapter] for name, layer in layers.items()}
    config.alpha_pattern = {name: alpha for name, alpha in alphas.items() if alpha != config.lora_alpha}
