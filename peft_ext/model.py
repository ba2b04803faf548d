"""SQFTModel: puts SQFT layers into a model, draws the ranks of a training step, sets that of evaluation."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from peft_ext.layer import Linear
from peft_ext.registry import BaseTunerLayer, LoraModel
from sqft_plugins.elastic import Rank, configuration, sample_configuration
from sqft_plugins.errors import MismatchError, SQFTError
from sqft_plugins.mask import mask_hash, pack_mask

DENSE_BELOW = 0.10
"""A base with fewer zeros than this is taken for a dense one (Gemma-3-270M, never pruned, has 4.6 %)."""


class SQFTModel(LoraModel):
    """The tuner behind `get_peft_model(model, SQFTConfig(...))`."""

    @staticmethod
    def _create_new_module(lora_config, adapter_name: str, target: nn.Module, **kwargs) -> nn.Module:
        base = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
        name = kwargs.get("target_name", "")
        if not isinstance(base, nn.Linear | Conv1D):
            raise SQFTError(
                f"target_modules matches {name}, a {type(base).__name__}: SQFT adapts linear layers only, "
                "leave it out with exclude_modules"
            )
        if getattr(base, "weight", None) is None:
            raise SQFTError(f"{name} is still compressed: load the base with CompressedTensorsConfig(dequantize=True)")
        # transformers leaves compressed-tensors' mark on linears that it has dequantized
        if lora_config.sparse and getattr(base, "quantization_status", None) is not None:
            raise SQFTError(
                f"sparse=True over a quantized base ({name}) cannot merge back to INT4 in this release: "
                "tune the float base, or use sparse=False and keep the adapter unmerged"
            )
        conv1d = isinstance(base, Conv1D)
        lora_config.fan_in_fan_out = conv1d
        return Linear(target, adapter_name, config=lora_config, is_target_conv_1d_layer=conv1d, **kwargs)

    def _post_injection_hook(self, model: nn.Module, config, adapter_name: str) -> None:
        super()._post_injection_hook(model, config, adapter_name)
        if draw_ranks not in model._forward_pre_hooks.values():
            model.register_forward_pre_hook(draw_ranks)
        if config.sparse:
            _check_base(model, config, adapter_name)

    def _unload_and_optionally_merge(self, *args: Any, **kwargs: Any) -> Any:
        model: Any = super()._unload_and_optionally_merge(*args, **kwargs)  # type: ignore[func-returns-value]
        for key, hook in list(model._forward_pre_hooks.items()):
            if hook is draw_ranks:  # nothing of ours stays behind
                del model._forward_pre_hooks[key]
        return model

    def set_active_rank(self, rank: Rank, adapter_name: str | None = None) -> dict[str, int]:
        """The rank of evaluation and merging: an int, "max", "median", "min", or {module name or pattern: rank}.

        Acts on `adapter_name`, else on every active adapter; returns module name → rank. Raises SQFTError for a rank
        outside the search space and for a module without a rank. Training goes on sampling.
        """
        result: dict[str, int] = {}
        for adapter in [adapter_name] if adapter_name else self.active_adapters:
            layers = dict(sqft_layers(self.model, adapter))
            if not layers:
                raise SQFTError(
                    f"adapter_name={adapter!r} is not an SQFT adapter here: use one of {sorted(self.peft_config)}"
                )
            space = next(iter(layers.values())).elastic[adapter].rank_choices
            if len(space) == 1 and isinstance(rank, str) and rank in NAMED:
                ranks = {
                    name: layer.elastic[adapter].rank_choices[0] for name, layer in layers.items()
                }  # one choice each
            else:
                ranks = configuration(rank, layers, space)
            for name, layer in layers.items():
                layer.elastic[adapter].chosen = ranks[name]
            result.update(ranks)
        return result

    def masks(self, adapter_name: str | None = None) -> dict[str, Tensor]:
        """Module name → mask (bool [out, in]) of the unmerged base under the adapter."""
        adapter = adapter_name or self.active_adapters[0]
        return {name: layer.base_mask() for name, layer in sqft_layers(self.model, adapter)}


NAMED = ("max", "min", "median", "heuristic")


def sqft_layers(model: nn.Module, adapter: str) -> Iterator[tuple[str, Linear]]:
    """(module name in the base model, layer) for every layer that carries `adapter`."""
    for name, module in model.named_modules():
        if isinstance(module, Linear) and adapter in module.elastic:
            yield name, module


def draw_ranks(model: nn.Module, args: tuple) -> None:
    """Forward pre-hook of the whole model: draws the ranks of a training step, clears them otherwise.

    Once per forward and not inside the layers, because gradient checkpointing runs layers a second time and must see
    the same rank. Without gradients (`generate`, evaluation) nothing is drawn, also in training mode. The seed comes
    from torch's global generator, which Trainer saves and restores, so that a resumed run draws on as it would have;
    data-parallel processes take that of the first.
    """
    configs: Mapping = getattr(model, "peft_config", None) or {}
    sampling = model.training and torch.is_grad_enabled()
    for adapter, config in configs.items():
        if getattr(config, "rank_choices", None) is None:
            continue
        layers = dict(sqft_layers(model, adapter))
        if sampling:
            drawn = sample_configuration(layers, config.rank_choices, config.share_rank, random.Random(_shared_seed()))
        for name, layer in layers.items():
            layer.elastic[adapter].sampled = drawn[name] if sampling else None


def _shared_seed() -> int:
    seed = torch.randint(2**62, (1,))
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        seed = seed.to(torch.device("cuda") if dist.get_backend() == "nccl" else torch.device("cpu"))
        dist.broadcast(seed, src=0)
    return int(seed)


def _check_base(model: nn.Module, config, adapter_name: str) -> None:
    """Fills in or checks the hash of the base's masks, and warns about a base that was never pruned."""
    layers = dict(sqft_layers(model, adapter_name))
    if any(layer.get_base_layer().weight.is_meta for layer in layers.values()):
        return  # no weights yet, so nothing to compare
    kept = total = 0
    packed = {}
    for name, layer in layers.items():
        mask = layer.base_mask()
        kept, total = kept + int(mask.sum()), total + mask.numel()
        packed[name] = pack_mask(mask)
    found = mask_hash(packed)
    if config.mask_hash is None:
        config.mask_hash = found
        sparsity = 1 - kept / max(total, 1)
        if sparsity < DENSE_BELOW:
            warnings.warn(
                f"sparse=True but only {sparsity:.1%} of the base's weights are zero: "
                "prune it first with `sqft prune`, or use sparse=False",
                stacklevel=2,
            )
    elif config.mask_hash != found:
        raise MismatchError(
            f"adapter {adapter_name!r} was trained over a base with other zeros (mask {config.mask_hash[:12]}, "
            f"this base {found[:12]}): load it on {config.base_model_name_or_path or 'its own base'}"
        )
