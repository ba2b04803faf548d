"""The adapted linear layer: PEFT's LoRA layer with a mask and an elastic rank."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from accelerate.hooks import AlignDevicesHook
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers.pytorch_utils import Conv1D

from peft_ext.checks import OFFLOADED, is_offloaded
from peft_ext.evaluated import EvaluatedWeight
from peft_ext.functional import masked_delta, masked_linear, merged_weight
from peft_ext.grids import holds_codes
from peft_ext.kept import KeptBase, is_fsdp_managed
from peft_ext.layer_grid import LayerGrid
from peft_ext.registry import LoraLayer, LoraLinear, LoraVariant, check_adapters_to_merge
from peft_ext.requantize import requantized
from sqft_plugins.elastic import slice_lora
from sqft_plugins.errors import SQFTError
from sqft_plugins.grid import QuantizedWeight
from sqft_plugins.mask import nonzero_mask


@dataclass
class ElasticState:
    """What a layer knows of one adapter beside A and B.

    rank_choices: largest first. chosen: the rank of evaluation and merging. sampled: that of the current training step.
    rows: `sampled` as 0 and 1, bool [r, 1], for compiled code. resting: sampled and rows, kept over a forward without
    gradients.
    quantization_aware: the weight is put on `grid`, which the model fills in once it is whole.
    share_rank: what shares a drawn rank; None for a fixed rank. name: the layer's in the model, filled in there.
    """

    sparse: bool
    rank_choices: list[int]
    chosen: int
    sampled: int | None = None
    rows: Tensor | None = None
    resting: tuple[int | None, Tensor | None] = (None, None)
    quantization_aware: bool = False
    grid: LayerGrid | None = None
    share_rank: str | None = None
    name: str = ""


class ElasticMaskedVariant(LoraVariant):
    """What PEFT's own loops (several active adapters, mixed batches, merging) call in place of plain LoRA."""

    def supports_lora_conversion(self) -> bool:
        return False  # a masked delta has full rank; a dense sub-adapter comes from `sqft extract`

    @staticmethod
    def init(module: LoraLayer, adapter_name: str, config=None, **kwargs: Any) -> None:  # type: ignore[override]
        assert isinstance(module, Linear)
        rank = module.r[adapter_name]
        choices = [rank] if config.rank_choices is None else list(config.rank_choices)
        module.elastic[adapter_name] = ElasticState(
            config.sparse,
            choices,
            max(choices),
            quantization_aware=config.quantization_aware,
            share_rank=None if config.rank_choices is None else config.share_rank,
        )

    @staticmethod
    def merge_safe(module: Linear, active_adapter: str, orig_weight: Tensor) -> Tensor:  # type: ignore[override]
        return module.merged_weight(active_adapter, orig_weight)

    @staticmethod
    def merge_unsafe(module: Linear, active_adapter: str, orig_weight: Tensor) -> None:  # type: ignore[override]
        orig_weight.data.copy_(module.merged_weight(active_adapter, orig_weight.data))

    @staticmethod
    def forward(module: Linear, active_adapter: str, x: Tensor, result: Tensor, **kwargs: Any) -> Tensor:  # type: ignore[override]
        if module.elastic[active_adapter].quantization_aware:
            raise SQFTError(
                f"adapter {active_adapter!r} is quantization-aware and rounds the whole weight, so it works alone: "
                "activate one adapter, without adapter_names, on plain linear layers in their own dtype"
            )
        if is_offloaded(module.base()):  # since the adapter was added
            raise SQFTError(f"a layer under adapter {active_adapter!r} {OFFLOADED}")
        x = module.lora_dropout[active_adapter](x)
        A, B, scaling = module.sub_adapter(active_adapter)
        if module.elastic[active_adapter].sparse:
            delta = F.linear(x, masked_delta(A, B, scaling, module.base_mask()).to(x.dtype))
        else:
            delta = F.linear(F.linear(x, A), B) * scaling
        return result + module.add_lora_bias(active_adapter, delta)


class Linear(LoraLinear):
    """A linear layer (nn.Linear or transformers' Conv1D) under SQFT adapters.

    One active adapter without dropout runs as one GEMM with W + s · (B @ A) ⊙ M; everything else goes through PEFT's
    own loops and `ElasticMaskedVariant`.
    keeps_evaluated: whether evaluation keeps one more copy of the weight (`_evaluation_weight`); False, here for all
    layers or on one, makes it anew in each forward.
    base_is_shared: whether the base module also stands in another place of the model, without this adapter.
    """

    keeps_evaluated = True
    other_param_names = (*LoraLayer.other_param_names, "elastic")

    def update_layer(self, adapter_name: str, r: int, lora_alpha: int, config, **kwargs: Any) -> None:
        if not hasattr(config, "rank_choices"):
            raise SQFTError(
                f"adapter {adapter_name!r} is a {type(config).__name__}, and those of this model are SQFT ones, which "
                "do not mix with others: load the base once more"
            )
        # the constructor of the parent ends in this method, so our state cannot be made after it
        if "elastic" not in self.__dict__:
            self.elastic: dict[str, ElasticState] = {}
            self.base_is_shared = False
            self._kept: KeptBase | None = None
            self._evaluated: EvaluatedWeight | None = None
        super().update_layer(adapter_name, r, lora_alpha=lora_alpha, config=config, **kwargs)

    @property
    def lora_variants(self):
        return {(): ElasticMaskedVariant}  # every other combination is refused by PEFT's resolve_lora_variant

    # --- what the adapter is ---

    def rank_of(self, adapter: str) -> int:
        """The rank in force: the sampled one in training, else the chosen one."""
        state = self.elastic[adapter]
        return state.sampled if self.training and state.sampled is not None else state.chosen

    def sub_adapter(self, adapter: str) -> tuple[Tensor, Tensor, float]:
        """A [rank, in], B [out, rank] and the scaling of the super-adapter."""
        A, B = self.factor("A", adapter), self.factor("B", adapter)
        rows = self.elastic[adapter].rows
        if rows is not None and self.training and torch.compiler.is_compiling():
            return A * rows, B, self.scaling[adapter]  # one graph for all: dynamo makes one for each int it meets
        if len(self.elastic[adapter].rank_choices) > 1:  # a fixed rank is the whole, also after a hotswap to another
            A, B = slice_lora(A, B, self.rank_of(adapter))
        return A, B, self.scaling[adapter]

    def factor(self, name: Literal["A", "B"], adapter: str) -> Tensor:
        """The whole A [r_max, in] or B [out, r_max]."""
        return cast(nn.Linear, (self.lora_A if name == "A" else self.lora_B)[adapter]).weight

    def base(self) -> nn.Linear:
        """The base layer: nn.Linear, or Conv1D with its weight [in, out]."""
        return cast(nn.Linear, self.get_base_layer())

    def unmerged_weight(self) -> Tensor:
        """[out, in]: the base weight, whatever is merged now."""
        return self._as_out_in(self._kept.weight.data if self._kept is not None else self.base().weight.data)

    def base_mask(self, adapter: str | None = None) -> Tensor:
        """bool [out, in]: the mask stored with the INT4 base under a quantization-aware adapter, else the nonzero
        pattern of the unmerged base."""
        grid = self._grid(adapter) if adapter else None
        return nonzero_mask(self.unmerged_weight()) if grid is None or grid.mask is None else grid.mask

    def quantized(self, adapter: str, merged: bool = True) -> QuantizedWeight:
        """The codes [out, in] of the base with a quantization-aware adapter merged in at the rank in force, or those
        of the base alone, on their grid."""
        grid = self._grid(adapter)
        if grid is None:
            raise SQFTError(
                f"adapter {adapter!r} is not quantization-aware and has no codes: merge it as a float model, or train "
                "with quantization_aware=True"
            )
        A, B, scaling = self.sub_adapter(adapter)
        weight = self.unmerged_weight()
        with torch.no_grad():
            return grid.with_codes(requantized(weight, A, B, scaling if merged else 0.0, grid))

    def merged_weight(self, adapter: str, weight: Tensor) -> Tensor:
        """`weight` (in the base layer's own layout) with the adapter merged in, same layout and dtype."""
        if self.elastic[adapter].quantization_aware:
            return self._as_out_in(self.quantized(adapter).dequantize(weight.dtype))
        A, B, scaling = self.sub_adapter(adapter)
        mask = self.base_mask() if self.elastic[adapter].sparse else None
        with torch.no_grad():
            return self._as_out_in(merged_weight(self._as_out_in(weight), A, B, scaling, mask))

    def get_delta_weight(self, adapter: str) -> Tensor:
        """s · (B @ A) ⊙ M at the chosen rank, in the base layer's layout and the adapter's dtype; what a
        quantization-aware adapter changes the weight by."""
        with self.at_chosen_rank():
            A, B, scaling = self.sub_adapter(adapter)
            if self.elastic[adapter].quantization_aware:
                change = self.quantized(adapter).dequantize() - self.unmerged_weight()
                return self._as_out_in(change.to(A.dtype))
        mask = self.base_mask() if self.elastic[adapter].sparse else None
        return self._as_out_in(masked_delta(A, B, scaling, mask))

    def _grid(self, adapter: str) -> LayerGrid | None:
        """The grid on the device of the base weight; None where the adapter is not quantization-aware."""
        state = self.elastic[adapter]
        if not state.quantization_aware:
            return None
        if state.grid is None:
            raise SQFTError(
                f"adapter {adapter!r} has no grid yet: the base had no weights when it was added, load them"
            )
        if state.grid.scale.device != self.base().weight.device:
            state.grid = state.grid.to(self.base().weight.device)
        return state.grid

    def add_lora_bias(self, adapter: str, output: Tensor) -> Tensor:
        if not self.lora_bias[adapter]:
            return output
        return output + cast(nn.Linear, self.lora_B[adapter]).bias * self.scaling[adapter]

    # --- forward ---

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        adapter = self._single_adapter(x, args, kwargs)
        if self.merged and not self.disable_adapters and "adapter_names" not in kwargs:
            return self._beside_merged(x, *args, **kwargs)
        if adapter is None:
            return super().forward(x, *args, **kwargs)
        base = self.base()
        if self.training or torch.is_grad_enabled():
            A, B, scaling = self.sub_adapter(adapter)
            weight = self._as_out_in(base.weight)
            output = masked_linear(x, weight, A, B, scaling, self.elastic[adapter].sparse, self._grid(adapter))
            if base.bias is not None:
                output = output + base.bias.to(output.dtype)
        else:
            output = F.linear(x, self._as_out_in(self._evaluation_weight(adapter)), base.bias)
        return self.add_lora_bias(adapter, output).to(output.dtype)

    def _single_adapter(self, x: Tensor, args: tuple, kwargs: dict) -> str | None:
        """The adapter, where the one-GEMM path is exact; None sends the call through PEFT's own loops."""
        if self.disable_adapters or self.merged or args or kwargs:
            return None
        active = [name for name in self.active_adapters if name in self.elastic]
        if len(active) != 1:
            return None
        adapter = active[0]
        base = self.base()
        plain = type(base) in (nn.Linear, Conv1D) and not base._forward_hooks and not base._forward_pre_hooks
        if not plain or base.weight.requires_grad:
            return None  # a hook or a subclass may do more than a GEMM, a trainable base needs its own gradient
        if hasattr(base, "_hf_hook") and not _only_places_inputs(base._hf_hook, x, base.weight):
            return None
        dropout = self.lora_dropout[adapter]
        if self.training and isinstance(dropout, nn.Dropout) and dropout.p > 0:
            return None  # dropout acts on the adapter's input alone
        if not self.elastic[adapter].sparse and (self.training or torch.is_grad_enabled()):
            return None  # a dense delta is cheaper as two thin GEMMs
        autocast = torch.is_autocast_enabled(x.device.type)
        return adapter if autocast or x.dtype == base.weight.dtype else None

    def _beside_merged(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The merged base and the active adapters that are not merged, which PEFT's own forward would leave out."""
        result = self.base_layer(x, *args, **kwargs)
        dtype = result.dtype
        for name in self.active_adapters:
            if name in self.elastic and name not in self.merged_adapters:
                x = self._cast_input_dtype(x, self.factor("A", name).dtype)
                result = self.lora_variant[name].forward(self, active_adapter=name, x=x, result=result)
        return result.to(dtype)

    def _evaluation_weight(self, adapter: str) -> Tensor:
        """The merged weight, kept until the base weight, the adapter, the rank or the scaling changes: made anew at
        every token, generation was ten times slower than from a merged model. Costs one more copy of the weight."""
        if torch.compiler.is_compiling() or is_fsdp_managed(self):
            # What is kept and why is no part of a compiled graph. FSDP gathers the weights for each forward into one
            # tensor, whose version does not tell that they changed; and a copy of every layer on every process is what
            # sharding is to avoid.
            return self.merged_weight(adapter, self.base().weight.data)
        if not self.keeps_evaluated or self.base().weight.is_meta:
            self._evaluated = None
            return self.merged_weight(adapter, self.base().weight.data)
        base, factors = self.base().weight, (self.factor("A", adapter), self.factor("B", adapter))
        state = self.elastic[adapter]
        settings = (adapter, self.rank_of(adapter), float(self.scaling[adapter]), state.sparse)
        kept = self._evaluated
        if kept is None or kept.state is not state or not kept.still_holds(settings, factors, base):
            merged = self.merged_weight(adapter, base.data)
            kept = self._evaluated = EvaluatedWeight.of(settings, state, factors, base, merged)
        return kept.merged

    def train(self, mode: bool = True):
        self._evaluated = None  # training would keep the copy for nothing
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_evaluated": None}  # a file or a copy makes its own

    # --- merging ---

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Merges the adapters at their chosen ranks; every zero of the base stays zero where they are sparse."""
        names = [name for name in check_adapters_to_merge(self, adapter_names) if name in self.elastic]
        if not names:
            return
        self._check_merge(names)
        if safe_merge and isinstance(self.base().weight, DTensor):
            raise SQFTError(
                "safe_merge=True does nothing to a sharded weight: merge without it, or merge the saved adapter in one "
                "process"
            )
        self._evaluated = None
        if self._kept is None:
            self._set_aside()
        try:
            with self.at_chosen_rank():
                super().merge(safe_merge=safe_merge, adapter_names=names)
        except Exception:
            if not self.merged:  # safe_merge has found NaN, say
                self._put_back()
            raise

    @contextmanager
    def at_chosen_rank(self) -> Iterator[None]:
        """Here the rank in force is the chosen one, not one that a training step has sampled."""
        training, self.training = self.training, False
        try:
            yield
        finally:
            self.training = training

    def _check_merge(self, names: list[str]) -> None:
        together = [name for name in (*self.merged_adapters, *names) if name in self.elastic]
        aware = [name for name in together if self.elastic[name].quantization_aware]
        if aware and len(together) > 1:
            raise SQFTError(
                f"adapter {aware[0]!r} is quantization-aware and rounds the whole weight: merge it alone, not "
                f"{together} together"
            )
        if not isinstance(self.base().weight, nn.Parameter) and not is_fsdp_managed(self):
            raise SQFTError(
                f"adapter {names[0]!r} cannot be merged: its base weight is computed anew in each call (weight_norm, "
                "torch.nn.utils.prune), which would undo a merge. Make it plain first (remove_parametrizations, "
                "prune.remove)"
            )
        if together and not aware and holds_codes(self.base()):
            raise SQFTError(
                f"adapter {together[0]!r} is not quantization-aware and its base is INT4: rounded to the grid a small "
                "delta is lost, and a dense one fills the zeros. Keep it unmerged, or train with "
                "quantization_aware=True"
            )

    def unmerge(self) -> None:
        """Puts the kept base weight back, bit for bit."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        self._put_back()
        self.merged_adapters.clear()

    def _set_aside(self) -> None:
        """Keeps the base's weight and bias, and puts copies there to be merged into."""
        self._kept = KeptBase.of(self.base_layer, self.base(), in_place=self._is_sharded())
        self.base_layer = self._kept.make_room(self.base(), alone=not self.base_is_shared)

    def _put_back(self) -> None:
        assert self._kept is not None
        self.base_layer = self._kept.put_back(self.base())
        self._kept = None

    def _is_sharded(self) -> bool:
        weight: Any = self.base().weight
        return isinstance(weight, DTensor) or is_fsdp_managed(self)

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any):
        """Also moves and casts what a merge has set aside."""
        super()._apply(fn, *args, **kwargs)
        if self._kept is not None:
            self._kept.apply(fn)
        return self

    def _as_out_in(self, weight: Tensor) -> Tensor:
        return weight.t() if self.fan_in_fan_out else weight

    def __repr__(self) -> str:
        return super().__repr__().replace("lora.", "sqft.", 1)


def _only_places_inputs(hook: Any, x: Tensor, weight: Tensor) -> bool:
    """Whether accelerate's hook on a linear layer (device_map over several GPUs) has nothing to do for this x."""
    return type(hook) is AlignDevicesHook and not hook.offload and x.device == weight.device
