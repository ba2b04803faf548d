"""Refusals that need a look at the whole model, or at several adapters at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from sqft_plugins.errors import SQFTError

_MAMBA = ("x_proj", "dt_proj", "out_proj")
_MAMBA2 = ("out_proj",)
READ_AS_TENSORS = {
    "mamba": _MAMBA,
    "falcon_mamba": _MAMBA,
    "jamba": ("dt_proj",),
    "mamba2": _MAMBA2,
    "bamba": _MAMBA2,
    "falcon_h1": _MAMBA2,
    "granitemoehybrid": _MAMBA2,
    "nemotron_h": _MAMBA2,
    "zamba2": _MAMBA2,
}
"""model_type → linears of transformers' Mamba blocks whose `weight` the block reads itself, always or where its kernels
are installed: an adapter there would do nothing until it is merged."""


def check_is_called(model: nn.Module, name: str) -> None:
    """Raises SQFTError for a linear of a Mamba block that is not called as a module; `name` is its last name. PEFT has
    the check for its own adapter types, out_proj only (peft/tuners/tuners_utils.py, _check_lora_target_modules_mamba).
    """
    kind = getattr(getattr(model, "config", None), "model_type", None)
    read = READ_AS_TENSORS.get(kind, ()) if isinstance(kind, str) else ()
    if name in read:
        raise SQFTError(
            f"target_modules matches {name}: {kind} reads that weight itself, past any adapter, leave it out with "
            f"exclude_modules={list(read)}"
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


def check_combination(configs: Mapping[str, Any], layers: Iterable[tuple[str, Any]]) -> None:
    """Raises SQFTError for adapters that `add_weighted_adapter` cannot combine. configs: adapter → SQFTConfig."""
    names = list(configs)
    if len({config.sparse for config in configs.values()}) > 1:
        raise SQFTError(f"adapters {names} are masked and dense ones: combine adapters with the same `sparse`")
    if any(config.lora_bias for config in configs.values()):
        raise SQFTError(f"adapters {names} have lora_bias, which a combination would lose: merge them one by one")
    for _, layer in layers:
        for name in names:
            state = layer.elastic.get(name)
            if state is not None and state.chosen != max(state.rank_choices):
                raise SQFTError(
                    f"adapter {name!r} is at rank {state.chosen}, and a combination takes the whole of it: "
                    f"run set_active_rank('max', {name!r}) first, or combine extracted sub-adapters"
                )
