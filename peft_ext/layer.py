"""The adapted linear layer: PEFT's LoRA layer with a mask and an elastic rank.

What is in force in which situation stands in ranks.py; what PEFT's own loops call is in variant.py.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from accelerate.hooks import AlignDevicesHook
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from peft_ext.checks import check_merge
from peft_ext.functional import masked_delta, masked_linear, merged_weight
from peft_ext.merged_cache import CachedWeight, place_of
from peft_ext.registry import LoraLayer, LoraLinear, check_adapters_to_merge
from peft_ext.saved_base import SavedBase, is_fsdp_managed
from peft_ext.settled import SettledCodes
from peft_ext.variant import AdapterState, ElasticMaskedVariant
from sqft_plugins.adapter.settled import hash_of, made_of, settled_codes, settled_patch
from sqft_plugins.checkpoint.packed_layers import is_packed
from sqft_plugins.errors import SQFTError
from sqft_plugins.grid import Grid, QuantizedWeight
from sqft_plugins.layer_grid import LayerGrid
from sqft_plugins.mask import nonzero_mask
from sqft_plugins.requantize import requantized
from sqft_plugins.structure import is_linear


class Linear(LoraLinear):
    """A linear layer (nn.Linear or transformers' Conv1D) under SQFT adapters.

    One active adapter without dropout runs as one GEMM with W + s · (B @ A) ⊙ M; everything else goes through PEFT's
    own loops and `ElasticMaskedVariant`.

    keeps_evaluated: whether evaluation keeps one more copy of the weight (`_evaluation_weight`); False, here for all
    layers or on one, makes it anew in each forward.
    elastic: adapter → its state.
    lora_codes: adapter → the codes that it has settled to, where it has any.
    base_is_shared: whether the base module also stands in another place of the model, without this adapter.
    """

    keeps_evaluated = True
    other_param_names = (*LoraLayer.other_param_names, "elastic", "lora_codes")

    def update_layer(self, adapter_name: str, r: int, lora_alpha: int, config: Any, **kwargs: Any) -> None:
        """PEFT's: adds an adapter of rank r to the layer. Raises SQFTError for one of another type."""
        if not hasattr(config, "rank_choices"):
            raise SQFTError(
                f"adapter {adapter_name!r} is a {type(config).__name__}, and those of this model are SQFT ones, which "
                "do not mix with others: load the base once more"
            )
        # the constructor of the parent ends in this method, so our state cannot be made after it
        if "elastic" not in self.__dict__:
            self.elastic: dict[str, AdapterState] = {}
            self.lora_codes = nn.ModuleDict()
            self.base_is_shared = False
            self._saved_base: SavedBase | None = None
            self._cached_weight: CachedWeight | None = None
        if config.rounding == "compensated":
            self.lora_codes[adapter_name] = SettledCodes()
        super().update_layer(adapter_name, r, lora_alpha=lora_alpha, config=config, **kwargs)

    @property
    def lora_variants(self) -> dict[tuple[()], type[ElasticMaskedVariant]]:
        return {(): ElasticMaskedVariant}  # every other combination is refused by PEFT's resolve_lora_variant

    # --- what the adapter is ---

    def rank_of(self, adapter: str) -> int:
        """The rank in force: the drawn one in training, else the chosen one."""
        return self.elastic[adapter].ranks.in_force(self.training)

    def sub_adapter(self, adapter: str) -> tuple[Tensor, Tensor, float]:
        """A [rank, in], B [out, rank] and the scaling of the super-adapter."""
        A, B = self.factor("A", adapter), self.factor("B", adapter)
        return *self.elastic[adapter].ranks.sliced(A, B, self.training), self.scaling[adapter]

    def factor(self, name: Literal["A", "B"], adapter: str) -> Tensor:
        """The whole A [r_max, in] or B [out, r_max]."""
        return cast(nn.Linear, (self.lora_A if name == "A" else self.lora_B)[adapter]).weight

    def base(self) -> nn.Linear:
        """The base layer: nn.Linear, or Conv1D with its weight [in, out]."""
        return cast(nn.Linear, self.get_base_layer())

    def unmerged_weight(self) -> Tensor:
        """[out, in]: the base weight, whatever is merged now."""
        weight = self.base().weight if self._saved_base is None else self._saved_base.weight
        return self._as_out_in(weight.data)

    def base_mask(self, adapter: str | None = None) -> Tensor:
        """bool [out, in]: the mask stored with the quantized base under a quantization-aware adapter, all ones where
        that is dense, else the nonzero pattern of the unmerged base."""
        grid, weight = self._grid(adapter) if adapter else None, self.unmerged_weight()
        if grid is not None and grid.dense:
            return torch.ones((), dtype=torch.bool, device=weight.device).expand(weight.shape)
        return nonzero_mask(weight) if grid is None or grid.mask is None else grid.mask

    def quantized(self, adapter: str, merged: bool = True) -> QuantizedWeight:
        """The codes [out, in] of the base with a quantization-aware adapter merged in at the rank in force, or those
        of the base alone, on their grid."""
        grid = self._grid(adapter)
        if grid is None:
            raise SQFTError(
                f"adapter {adapter!r} is not quantization-aware and has no codes: merge it as a float model, or train "
                "with quantization_aware=True"
            )

        settles = self.elastic[adapter].compensated
        codes = self._codes(adapter, grid, merged and not settles)
        if merged and settles:
            if not self.is_settled(adapter):
                raise SQFTError(
                    f"adapter {adapter!r} has no codes of rank {self.rank_of(adapter)} that belong to its A and B: "
                    "call model.base_model.settle(tokens), or take a rank that it has settled at"
                )
            patch = self.settled(adapter).of_rank(self.rank_of(adapter))
            assert patch is not None
            codes = settled_codes(patch, codes, grid.grid.kind.bits)
        return grid.with_codes(codes)

    def _codes(self, adapter: str, grid: LayerGrid, merged: bool) -> Tensor:
        """The codes of the base [out, in], or those that it and the adapter are rounded to."""
        base = self.base()
        if is_packed(base) and not merged:
            return base.packed.rows(slice(None)).codes
        A, B, scaling = self.sub_adapter(adapter)
        with torch.no_grad():
            return requantized(self.unmerged_weight(), A, B, scaling if merged else 0.0, grid)

    def is_settled(self, adapter: str, trusted: bool = False) -> bool:
        """Whether the adapter has codes at the rank in force that were made from its A and B as they are. trusted: ask
        no more where these seem to be the tensors of the last question."""
        if not self.elastic[adapter].compensated:
            return False
        rank, state = self.rank_of(adapter), self.elastic[adapter]
        patch = self.settled(adapter).of_rank(rank)
        if patch is None:
            return False

        place = place_of(self.factor("A", adapter), self.factor("B", adapter), patch)
        asked = (rank, float(self.scaling[adapter]), place)
        if not trusted or state.settled_as != asked:
            state.settled_as = asked if _is_made_of(patch, *self.sub_adapter(adapter)) else None
        return state.settled_as == asked

    def wanted(self, adapter: str) -> tuple[Tensor, Grid, Tensor | None]:
        """What an adapter that settles would compute with: W + s · (B @ A) ⊙ M, float32 [out, in]; the grid that it is
        put on; and M, bool [out, in], None for all ones."""
        layer_grid = self._grid(adapter)
        assert layer_grid is not None
        on_grid = layer_grid.on_grid
        exact = self.quantized(adapter, merged=False).dequantize() if on_grid else self.unmerged_weight().float()
        mask = None if layer_grid.dense else self.base_mask(adapter)
        A, B, scaling = self.sub_adapter(adapter)
        with torch.no_grad():
            return merged_weight(exact, A, B, scaling, mask), layer_grid.grid, mask

    def settle(self, adapter: str, codes: Tensor) -> None:
        """Keeps `codes` (uint8 [out, in]) as those of the adapter at the rank in force."""
        base = self.quantized(adapter, merged=False)
        patch = settled_patch(base.codes, codes, base.grid.kind.bits, hash_of(*self.sub_adapter(adapter)))
        self.settled(adapter).put(self.rank_of(adapter), patch)
        self.elastic[adapter].settled_as = self._cached_weight = None

    def settled(self, adapter: str) -> SettledCodes:
        """What an adapter with `rounding="compensated"` has settled to."""
        return cast(SettledCodes, self.lora_codes[adapter])

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
        base = self.base()
        if not is_packed(base) and state.grid.device != base.weight.device:
            state.grid = state.grid.to(base.weight.device)
        return state.grid

    def add_lora_bias(self, adapter: str, output: Tensor) -> Tensor:
        """`output` [..., out] plus s times the bias of B, where the adapter has one (`lora_bias`)."""
        if not self.lora_bias[adapter]:
            return output
        return output + cast(nn.Linear, self.lora_B[adapter]).bias * self.scaling[adapter]

    # --- forward ---

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """y [..., out] of x [..., in], with the active adapters at their ranks in force."""
        # what PEFT's own loops do, or what they leave out
        adapter = self._single_adapter(x, args, kwargs)
        if self.merged and not self.disable_adapters and "adapter_names" not in kwargs:
            return self._beside_merged(x, *args, **kwargs)
        if adapter is None:
            return super().forward(x, *args, **kwargs)

        # one GEMM
        base = self.base()
        if (self.training or torch.is_grad_enabled()) and not self.elastic[adapter].compensated:
            A, B, scaling = self.sub_adapter(adapter)
            weight = self._as_out_in(base.weight)
            output = masked_linear(x, weight, A, B, scaling, self.elastic[adapter].sparse, self._grid(adapter))
            if base.bias is not None:
                output = output + base.bias.to(output.dtype)
        else:
            output = F.linear(x, self._as_out_in(self._evaluation_weight(adapter)), base.bias)
        return self.add_lora_bias(adapter, output).to(output.dtype)

    def _single_adapter(self, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
        """The adapter, where the one-GEMM path is exact; None sends the call through PEFT's own loops."""
        if self.disable_adapters or self.merged or args or kwargs:
            return None
        active = [name for name in self.active_adapters if name in self.elastic]
        if len(active) != 1:
            return None
        adapter = active[0]

        # the base: nothing but a frozen GEMM
        base = self.base()
        if is_packed(base):  # its codes, once it has any; till then two thin GEMMs beside it
            settled = not self.training and self.is_settled(adapter, True)
            return adapter if settled and (torch.is_autocast_enabled("cpu") or x.dtype == base.dtype) else None
        plain = is_linear(base) and not base._forward_hooks and not base._forward_pre_hooks
        if not plain or base.weight.requires_grad:
            return None  # a hook may do more than a GEMM, a trainable base needs its own gradient
        if hasattr(base, "_hf_hook") and not _only_places_inputs(base._hf_hook, x, base.weight):
            return None

        # the adapter
        dropout = self.lora_dropout[adapter]
        if self.training and isinstance(dropout, nn.Dropout) and dropout.p > 0:
            return None  # dropout acts on the adapter's input alone
        if not self.elastic[adapter].sparse and (self.training or torch.is_grad_enabled()):
            return None  # a dense delta is cheaper as two thin GEMMs
        if self.elastic[adapter].compensated and (self.training or not self.is_settled(adapter, True)):
            return None  # it trains, and is evaluated before it has settled, as a float one

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
        """The merged weight in the base layer's layout, cached until base weight, adapter, rank or scaling change.

        Made anew at every token, generation was ten times slower than from a merged model. The cache costs one more
        copy of the weight.
        """
        held = self.base()
        if is_packed(held):  # a copy of each layer is what it is packed for
            return self.quantized(adapter).dequantize(held.dtype)
        base = held.weight
        if torch.compiler.is_compiling() or is_fsdp_managed(self):
            # What is cached and why is no part of a compiled graph. FSDP gathers the weights for each forward into one
            # tensor, whose version does not change with them; and a copy of every layer on every process is what
            # sharding is to avoid.
            return self.merged_weight(adapter, base.data)
        if not self.keeps_evaluated or base.is_meta:
            self._cached_weight = None
            return self.merged_weight(adapter, base.data)

        factors = self.factor("A", adapter), self.factor("B", adapter)
        state = self.elastic[adapter]
        settings = (adapter, self.rank_of(adapter), float(self.scaling[adapter]), state.sparse)
        cached = self._cached_weight
        if cached is None or not cached.still_holds(settings, state, factors, base):
            merged = self.merged_weight(adapter, base.data)
            cached = self._cached_weight = CachedWeight.of(settings, state, factors, base, merged)
        return cached.merged

    def train(self, mode: bool = True) -> Linear:
        self._cached_weight = None  # training would keep the copy for nothing
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cached_weight": None}  # a file or a copy makes its own

    # --- merging ---

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Merges the adapters at their chosen ranks; every zero of the base stays zero where they are sparse."""
        names = [name for name in check_adapters_to_merge(self, adapter_names) if name in self.elastic]
        if not names:
            return
        check_merge(self, names)
        if safe_merge and isinstance(self.base().weight, DTensor):
            raise SQFTError(
                "safe_merge=True does nothing to a sharded weight: merge without it, or merge the saved adapter in one "
                "process"
            )

        self._cached_weight = None
        if self._saved_base is None:
            self._save_base()
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

    def unmerge(self) -> None:
        """Puts the saved base weight back, bit for bit."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        self._put_back()
        self.merged_adapters.clear()

    def _save_base(self) -> None:
        """Saves the base's weight and bias, and puts copies there to be merged into."""
        self._saved_base = SavedBase.of(self.base_layer, self.base(), in_place=self.is_sharded())
        self.base_layer = self._saved_base.to_merge_into(self.base(), alone=not self.base_is_shared)

    def _put_back(self) -> None:
        assert self._saved_base is not None
        self.base_layer = self._saved_base.put_back(self.base())
        self._saved_base = None

    def is_sharded(self) -> bool:
        """Whether the base weight is a part of the whole one, or gathered for each forward: it cannot be read now."""
        if is_packed(self.base()):
            return False
        weight: Any = self.base().weight
        return isinstance(weight, DTensor) or is_fsdp_managed(self)

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> Linear:
        """Also moves and casts what a merge has saved."""
        super()._apply(fn, *args, **kwargs)
        if self._saved_base is not None:
            self._saved_base.apply(fn)
        return self

    def _as_out_in(self, weight: Tensor) -> Tensor:
        return weight.t() if self.fan_in_fan_out else weight

    def __repr__(self) -> str:
        return super().__repr__().replace("lora.", "sqft.", 1)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _is_made_of(patch: Tensor, A: Tensor, B: Tensor, scaling: float) -> bool:
    return made_of(patch) == hash_of(A, B, scaling)


def _only_places_inputs(hook: Any, x: Tensor, weight: Tensor) -> bool:
    """Whether accelerate's hook on a linear layer (device_map over several GPUs) has nothing to do for this x."""
    return type(hook) is AlignDevicesHook and not hook.offload and x.device == weight.device
