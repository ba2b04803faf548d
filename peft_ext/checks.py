"""Refusals that need a look at the whole model, or at several adapters at once."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers.pytorch_utils import Conv1D

from peft_ext.reads import weights_read_by
from peft_ext.registry import BaseTunerLayer
from sqft_plugins.compress.fused import fused_weights, left_out, means_fused
from sqft_plugins.errors import SQFTError
from sqft_plugins.structure import find_linears


class ReadWeights:
    """The linear layers of one model whose weight one of their parents reads itself; each parent is looked at once."""

    def __init__(self, model: nn.Module):
        self.model = model
        self._of: dict[nn.Module, tuple[list[nn.Module], bool]] = {}
        self._told: set[type] = set()

    def leaves_out(self, target: nn.Module, name: str) -> bool:
        """Whether the layer `name` is to be left out, because one of its parents computes with its weight and does not
        call it: an adapter there would do nothing until it is merged. A layer of its name that is called is no reason
        to refuse all: then it is said. Raises SQFTError where no other layer of its name is.

        PEFT has the check for `out_proj` of Mamba blocks only (tuners_utils.py, _check_lora_target_modules_mamba).
        """
        parent = self._reader(target, name)
        if parent is None:
            return False
        kind = getattr(getattr(self.model, "config", None), "model_type", None) or type(parent).__name__
        last, remedy = name.rpartition(".")[2], f"exclude_modules={self._names(parent)}"
        what = f"target_modules matches {last}: {kind} reads that weight itself, past any adapter ({name}, by "
        alike = [(n, m) for n, m in self.model.named_modules() if n.rpartition(".")[2] == last and n != name]
        if all(self._reader(module, path) is not None for path, module in alike):
            raise SQFTError(f"{what}{type(parent).__name__}): leave it out with {remedy}")
        warnings.warn(f"{what}{type(parent).__name__}): it is left out, as with {remedy}", stacklevel=2)
        return True

    def _reader(self, target: nn.Module, name: str) -> nn.Module | None:
        path = name.split(".")[:-1]
        for parent in (self.model.get_submodule(".".join(path[:length])) for length in range(len(path), -1, -1)):
            read = self._read_by(parent)
            if any(target is module for module in read):
                return parent
        return None

    def _read_by(self, parent: nn.Module) -> list[nn.Module]:
        if parent not in self._of:
            self._of[parent] = weights_read_by(parent)
            if not self._of[parent][1] and type(parent) not in self._told:
                self._told.add(type(parent))
                warnings.warn(
                    f"{type(parent).__name__} has no source here, so it was not checked whether it reads the weights "
                    "of its layers itself, past any adapter: compare the logits before and after a merge",
                    stacklevel=2,
                )
        return self._of[parent][0]

    def _names(self, parent: nn.Module) -> list[str]:
        """What excludes the layers that `parent` reads, and no others of their names."""
        prefix = next(name for name, module in self.model.named_modules() if module is parent)
        read = [module for module in self._of[parent][0] if isinstance(module, nn.Linear | Conv1D | BaseTunerLayer)]
        own = [name for name, module in parent.named_modules() if name and module in read]
        paths = [f"{prefix}.{name}".removeprefix(".").split(".") for name in own]
        return sorted({".".join(path[-2:] if not path[-2:][0].isdigit() else path[-1:]) for path in paths})


def tell_left_out(model: nn.Module, meant: Any, layers: Mapping[str, nn.Module]) -> None:
    """Warns, in numbers, where `target_modules` as it was given means weights that are no linear layers: LoRA reaches
    the experts of "all-linear" and of the names that transformers 4 had for them (w1, w2, w3)."""
    fused = fused_weights(model, anywhere=True)
    if not fused:
        return
    everything = isinstance(meant, str) and meant.lower() == "all-linear"
    names = [] if isinstance(meant, str) or not meant else sorted(meant)
    own = [name for name, _ in model.named_modules()]
    missing = [one for one in names if not any(name == one or name.endswith(f".{one}") for name in own)]
    partly = [one for one in names if one not in missing and means_fused(one, fused)]
    if not everything and not missing and not partly:
        return
    try:
        linears: Mapping[str, Any] = find_linears(model)
    except SQFTError:  # no list of equal blocks
        linears = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D)}
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
    """Raises SQFTError for adapters that `add_weighted_adapter` cannot combine in the way `kind`. configs: adapter →
    SQFTConfig."""
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
    if kind == "cat" or kind.endswith("svd") or len({config.r for config in configs.values()}) > 1:
        return  # whatever the ranks, and other ranks of whole adapters PEFT refuses itself
    for path, layer in layers:
        ranks = {name: len(layer.factor("A", name)) for name in names if name in layer.elastic}
        if len(set(ranks.values())) > 1:
            raise SQFTError(
                f"combination_type={kind!r} adds A to A and B to B, and the adapters have the ranks {ranks} in {path}: "
                "use 'cat' or 'svd'"
            )


def write_ranks(config: Any, adapter: str, layers: Mapping[str, Any]) -> None:
    """Writes into the configuration of a combination what its layers have: PEFT keeps the rank_pattern of the first
    adapter with other ranks than the factors', and the saved adapter could not be loaded."""
    ranks = {name: len(layer.factor("A", adapter)) for name, layer in layers.items()}
    for name, layer in layers.items():
        layer.r[adapter] = ranks[name]
        layer.lora_alpha[adapter] = layer.scaling[adapter] * ranks[name]
        layer.elastic[adapter].rank_choices, layer.elastic[adapter].chosen = [ranks[name]], ranks[name]
    config.r = max(ranks.values(), default=config.r)
    config.lora_alpha = max((layers[name].lora_alpha[adapter] for name in ranks), default=config.lora_alpha)
    config.rank_pattern = {name: rank for name, rank in ranks.items() if rank != config.r}
    alphas = {name: layer.lora_alpha[adapter] for name, layer in layers.items()}
    config.alpha_pattern = {name: alpha for name, alpha in alphas.items() if alpha != config.lora_alpha}
