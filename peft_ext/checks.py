"""Refusals that need a look at the model, at a layer, or at several adapters at once."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from peft_ext.saved_base import is_fsdp_managed
from sqft_plugins.checkpoint.packed_layers import is_packed
from sqft_plugins.compress.fused import fused_weights, left_out, means_fused
from sqft_plugins.errors import SQFTError
from sqft_plugins.structure import find_linears, is_linear


def warn_left_out(model: nn.Module, meant: Any, layers: Mapping[str, nn.Module]) -> None:
    """Warns, in numbers, where `target_modules` as it was given means weights that are no linear layers: LoRA reaches
    the experts of "all-linear" and of the names that transformers 4 had for them (w1, w2, w3)."""
    fused = fused_weights(model, anywhere=True)
    if not fused:
        return

    # which of the targets are meant
    everything = isinstance(meant, str) and meant.lower() == "all-linear"
    names = [] if isinstance(meant, str) or not meant else sorted(meant)
    own = [name for name, _ in model.named_modules()]
    missing = [one for one in names if not any(name == one or name.endswith(f".{one}") for name in own)]
    partly = [one for one in names if one not in missing and means_fused(one, fused)]
    if not everything and not missing and not partly:
        return

    # the numbers
    try:
        linears: Mapping[str, Any] = find_linears(model)
    except SQFTError:  # no list of equal blocks
        linears = {name: m for name, m in model.named_modules() if is_linear(m)}
    linear = sum(layer.weight.numel() for name, layer in linears.items() if ".lora_" not in name)
    adapted = sum(math.prod(layer.get_base_layer().weight.shape) for layer in layers.values())  # type: ignore

    shown = f"target_modules={missing} are no layers here" if missing else f"target_modules={partly} are not all here"
    shown = "target_modules='all-linear'" if everything else shown
    warnings.warn(
        f"{shown}: {left_out(fused, linear)}, which SQFT does not adapt: the adapter is over {adapted:,} weights",
        stacklevel=2,
    )


def check_token_indices(model: nn.Module, config: Any) -> None:
    """Raises SQFTError for `trainable_token_indices` that the model's embedding does not have."""
    wanted = getattr(config, "trainable_token_indices", None)
    if not wanted:
        return

    # without names the indices are those of the input embedding
    embedding = getattr(model, "get_input_embeddings", lambda: None)()
    own = [name.rpartition(".")[2] for name, module in model.named_modules() if module is embedding]
    lists = wanted if isinstance(wanted, Mapping) else dict.fromkeys(own[:1] or ["embed_tokens"], wanted)

    for layer, indices in lists.items():
        for name, module in model.named_modules():
            weight = getattr(module, "weight", None)
            if not (name == layer or name.endswith(f".{layer}")) or not isinstance(weight, Tensor):
                continue
            beyond = [index for index in indices if not 0 <= index < len(weight)]
            if beyond:
                raise SQFTError(
                    f"trainable_token_indices={beyond} are not in {name}, which has {len(weight)} tokens: give the "
                    "model whose embedding was enlarged (resize_token_embeddings), or other tokens"
                )


FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_weight(base: nn.Module, name: str) -> None:
    """Raises SQFTError for a linear layer `name` whose weight [out, in] is not there as floats to be read: sharded,
    compressed, packed by another quantization (bitsandbytes' layers are nn.Linear, too), or offloaded (PEFT would put
    the adapter on the meta device as well)."""
    weight: Any = getattr(base, "weight", None)
    if weight is None:
        raise SQFTError(f"{name} is still compressed: load the base with CompressedTensorsConfig(dequantize=True)")

    if isinstance(weight, DTensor):
        raise SQFTError(
            f"{name} is sharded already (DTensor): add the adapter first and shard the whole model after it "
            "(accelerate does), and do not load the base with tp_plan, tensor parallel training is not supported"
        )
    if hasattr(weight, "ds_id"):  # ZeRO-3 gathers a module's weight in its own call only
        raise SQFTError(f"{name} is partitioned by DeepSpeed ZeRO-3, which was not tried: use FSDP2, DDP or ZeRO-2")

    if weight.dtype not in FLOATS:
        raise SQFTError(
            f"target_modules matches {name}, a {type(base).__name__} with a quantized weight "
            f"({str(weight.dtype).removeprefix('torch.')} {list(weight.shape)}), whose zeros cannot be read: load the "
            "base without quantization_config (an INT4 base comes from `sqft quantize`), or leave the layer out with "
            "exclude_modules"
        )
    if is_offloaded(base):
        raise SQFTError(f"{name} {OFFLOADED}")


OFFLOADED = (
    "is offloaded (device_map with cpu or disk, cpu_offload): its weight is not there outside its own call. "
    "Load the base whole, in bfloat16 or over several GPUs"
)


def is_offloaded(base: nn.Module) -> bool:
    """Whether accelerate brings the layer's weight in for each call and takes it away after it."""
    return hasattr(base, "_hf_hook") and cast(Tensor, base.weight).is_meta


def check_combination(configs: Mapping[str, Any], layers: Sequence[tuple[str, Any]], kind: str) -> None:
    """Raises SQFTError for adapters that `add_weighted_adapter` cannot combine.

    configs: adapter → SQFTConfig.
    layers: (name, `Linear`) of the model.
    kind: the combination_type.
    """
    names = list(configs)
    if len({config.sparse for config in configs.values()}) > 1:
        raise SQFTError(f"adapters {names} are masked and dense ones: combine adapters with the same `sparse`")
    if any(config.lora_bias for config in configs.values()):
        raise SQFTError(f"adapters {names} have lora_bias, which a combination would lose: merge them one by one")

    # each adapter is taken whole
    for _, layer in layers:
        for name in names:
            state = layer.elastic.get(name)
            if state is not None and state.ranks.chosen != max(state.ranks.choices):
                raise SQFTError(
                    f"adapter {name!r} is at rank {state.ranks.chosen}, and a combination takes the whole of it: "
                    f"run set_active_rank('max', {name!r}) first, or combine extracted sub-adapters"
                )

    # the ranks that can be added
    if kind == "cat" or kind.endswith("svd") or len({config.r for config in configs.values()}) > 1:
        return  # whatever the ranks, and other ranks of whole adapters PEFT refuses itself
    for path, layer in layers:
        ranks = {name: len(layer.factor("A", name)) for name in names if name in layer.elastic}
        if len(set(ranks.values())) > 1:
            raise SQFTError(
                f"combination_type={kind!r} adds A to A and B to B, and the adapters have the ranks {ranks} in {path}: "
                "use 'cat' or 'svd'"
            )


def works_alone(adapter: str, remedy: str) -> SQFTError:
    """The refusal of a quantization-aware adapter beside others. remedy: what to do in place of it."""
    return SQFTError(
        f"adapter {adapter!r} is quantization-aware and rounds the whole weight, so it works alone: {remedy}"
    )


def check_merge(layer: Any, names: Sequence[str]) -> None:
    """Raises SQFTError where adapters cannot be merged into a `Linear` beside those that are merged already."""
    together = [name for name in (*layer.merged_adapters, *names) if name in layer.elastic]
    aware = [name for name in together if layer.elastic[name].quantization_aware]
    if aware and len(together) > 1:
        raise works_alone(aware[0], f"merge one adapter, not {together} together")

    if is_packed(layer.base()):
        raise SQFTError(
            f"adapter {names[0]!r} cannot be merged into packed weights in memory: `sqft merge` merges the saved one, "
            "or load the base with load_model"
        )
    if not isinstance(layer.base().weight, nn.Parameter) and not is_fsdp_managed(layer):
        raise SQFTError(
            f"adapter {names[0]!r} cannot be merged: its base weight is computed anew in each call (weight_norm, "
            "torch.nn.utils.prune), which would undo a merge. Make it plain first (remove_parametrizations, "
            "prune.remove)"
        )
    if together and not aware and holds_codes(layer.base()):
        raise SQFTError(
            f"adapter {together[0]!r} is not quantization-aware and its base is quantized: rounded to the grid a small "
            "delta is lost, and a dense one fills the zeros. Keep it unmerged, or train with "
            "quantization_aware=True"
        )


def holds_codes(base: nn.Module) -> bool:
    """Whether a linear layer was dequantized from INT4 when it was loaded: its scale is still there."""
    return getattr(base, "quantization_status", None) is not None or hasattr(base, "weight_scale")
