"""What PEFT's own loops (several active adapters, mixed batches, merging) call in place of plain LoRA."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from peft_ext.checks import OFFLOADED, is_offloaded, works_alone
from peft_ext.functional import masked_delta
from peft_ext.ranks import Ranks
from peft_ext.registry import LoraVariant
from sqft_plugins.errors import SQFTError
from sqft_plugins.layer_grid import LayerGrid


@dataclass
class AdapterState:
    """What a layer knows of one adapter beside A and B.

    sparse: whether the delta is masked.
    ranks: its search space and the rank in force.
    quantization_aware: whether the weight is put on `grid`, which the model fills in once it is whole.
    name: the layer's name in the model, filled in there.
    compensated: whether it is put there by rounding once, with compensation (settled.py); it trains as a float one.
    settled_as: rank, scaling and place of A and B for which this was seen to be done.
    """

    sparse: bool
    ranks: Ranks
    quantization_aware: bool = False
    grid: LayerGrid | None = None
    name: str = ""
    compensated: bool = False
    settled_as: tuple[Any, ...] | None = None


class ElasticMaskedVariant(LoraVariant):
    """An SQFT adapter in PEFT's own loops; `module` is a `peft_ext.layer.Linear`."""

    def supports_lora_conversion(self) -> bool:
        return False  # a masked delta has full rank; a dense sub-adapter comes from `sqft extract`

    @staticmethod
    def init(module: Any, adapter_name: str, config: Any = None, **kwargs: Any) -> None:
        """Gives the layer its state of a new adapter; config: an `SQFTConfig`."""
        elastic = config.rank_choices is not None
        choices = list(config.rank_choices) if elastic else [module.r[adapter_name]]
        ranks = Ranks(choices, max(choices), config.share_rank if elastic else None)
        aware = config.quantization_aware  # then the grid has the mask
        module.elastic[adapter_name] = AdapterState(
            config.sparse or aware, ranks, aware, compensated=config.rounding == "compensated"
        )

    @staticmethod
    def merge_safe(module: Any, active_adapter: str, orig_weight: Tensor) -> Tensor:
        return module.merged_weight(active_adapter, orig_weight)

    @staticmethod
    def merge_unsafe(module: Any, active_adapter: str, orig_weight: Tensor) -> None:
        orig_weight.data.copy_(module.merged_weight(active_adapter, orig_weight.data))

    @staticmethod
    def forward(module: Any, active_adapter: str, x: Tensor, result: Tensor, **kwargs: Any) -> Tensor:
        """`result` [..., out] plus what the adapter adds for x [..., in]."""
        state = module.elastic[active_adapter]
        as_float = state.compensated and (module.training or not module.is_settled(active_adapter, True))
        if state.quantization_aware and not as_float:
            raise works_alone(
                active_adapter,
                "activate one adapter, without adapter_names, on plain linear layers in their own dtype",
            )
        if is_offloaded(module.base()):  # since the adapter was added
            raise SQFTError(f"a layer under adapter {active_adapter!r} {OFFLOADED}")

        x = module.lora_dropout[active_adapter](x)
        A, B, scaling = module.sub_adapter(active_adapter)
        if state.sparse and not (state.grid is not None and state.grid.dense):
            mask = module.base_mask(active_adapter)
            delta = F.linear(x, masked_delta(A, B, scaling, mask).to(x.dtype))
        else:
            delta = F.linear(F.linear(x, A), B) * scaling
        return result + module.add_lora_bias(active_adapter, delta)
