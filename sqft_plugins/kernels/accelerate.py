"""`accelerate(model)`: the INT4 linears of a transformers model, computed from their packed form.

A model loaded from an INT4 folder holds its weights as floats, because that is what transformers, PEFT and torch work
on. For inference alone they can be swapped for the packed form: 3 to 4 bits a weight instead of 16 or 32, and, as
decoding on a CPU is bound by the bytes of the weights, more tokens a second.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from sqft_plugins.compress.find import weight_of
from sqft_plugins.errors import KernelError
from sqft_plugins.grid import SYMMETRIC_ZERO_POINT, QuantizedWeight, quantize
from sqft_plugins.hardware import release_memory
from sqft_plugins.kernels.library import library
from sqft_plugins.kernels.weight import SparseInt4Weight
from sqft_plugins.progress import say, track

SCALE, ZERO_POINT = "weight_scale", "weight_zero_point"
"""What a linear keeps of its grid when transformers or `load_model` dequantizes it: see dequantize.attach_grid."""


class SparseInt4Linear(nn.Module):
    """A linear layer over a packed weight, for inference: it has no gradient and no `weight`.

    packed: the weight. bias: [out] or None, in the dtype of the activations.
    """

    def __init__(self, packed: SparseInt4Weight, bias: Tensor | None = None):
        super().__init__()
        self.packed = packed
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        self.in_features, self.out_features = packed.in_features, packed.out_features

    def forward(self, x: Tensor) -> Tensor:  # [..., in] → [..., out]
        if x.requires_grad and torch.is_grad_enabled():
            return _NoGradient.apply(x, self)
        return self.packed.linear(x, self.bias)

    def extra_repr(self) -> str:
        return f"{self.packed}, bias={self.bias is not None}"

    def _save_to_state_dict(self, *arguments: Any) -> None:
        raise KernelError("an accelerated model cannot be saved: call undo() of what accelerate() returned first")

    def _apply(self, fn: Any, recurse: bool = True) -> SparseInt4Linear:
        super()._apply(fn, recurse)
        device = fn(torch.empty(0, device=self.packed.masks.device)).device  # `.to(dtype)` and `.half()` leave it alone
        if device != self.packed.masks.device:
            self.packed = self.packed.to(device)
        return self


class _NoGradient(torch.autograd.Function):
    """Outside of `torch.no_grad()` the embeddings make every x ask for a gradient: refuse only one that is taken."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: SparseInt4Linear) -> Tensor:
        return layer.packed.linear(x, layer.bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        raise KernelError(
            "an accelerated model has no gradients: call undo() of what accelerate() returned, then train"
        )


@dataclass
class _Swapped:
    """A layer that was taken out, its weight and grid emptied. dtypes: of those, to fill them in again."""

    layer: nn.Module
    dtypes: dict[str, torch.dtype]


@dataclass
class Acceleration:
    """What `accelerate` did to a model. skipped: module → why it stays as it was. float_bytes, packed_bytes: the
    weights of the swapped layers before and after. density: the fraction of their weights that is stored."""

    model: nn.Module
    skipped: dict[str, str] = field(default_factory=dict)
    float_bytes: int = 0
    packed_bytes: int = 0
    density: float = 0.0
    _swapped: dict[str, _Swapped] = field(default_factory=dict, repr=False)

    @property
    def layers(self) -> list[str]:
        """The modules that were swapped."""
        return list(self._swapped)

    def undo(self) -> None:
        """Puts the float layers back, the very ones, with the very weights; does nothing the second time."""
        for name in self.layers:
            swapped = self._swapped.pop(name)
            packed = cast(SparseInt4Linear, self.model.get_submodule(name)).packed
            _fill(swapped, packed.unpack(), packed.masks.device)
            self.model.set_submodule(name, swapped.layer)

    def __str__(self) -> str:
        text = (
            f"{len(self._swapped)} INT4 layers run packed ({library().path} kernel: {library().why}), "
            f"{self.float_bytes / 1e6:.0f} MB of weights are {self.packed_bytes / 1e6:.0f} MB, "
            f"{self.density:.0%} of them nonzero"
        )
        for name, why in list(self.skipped.items())[:3]:
            text += f"; {name} stays: {why}"
        return text + (f"; and {len(self.skipped) - 3} more" if len(self.skipped) > 3 else "")


def accelerate(model: nn.Module) -> Acceleration:
    """Swaps the INT4 linears of `model`, in place, for their packed form, and says what it did.

    model: loaded from an INT4 folder with `sqft_plugins.checkpoint.load_model` or, with
    `CompressedTensorsConfig(dequantize=True)`, by transformers. What is no INT4 linear stays; an INT4 linear whose
    weight is no longer that of its codes (an adapter was merged into it) or that carries hooks stays, too, and is told.
    The results are those of the float model up to rounding: the error bound is in csrc/kernel.h.

    Raises KernelError where there is no INT4 linear, or none can be swapped; then nothing was changed.
    """
    if any(isinstance(module, SparseInt4Linear) for module in model.modules()):
        raise KernelError("model is accelerated already: call undo() of what accelerate() returned first")
    layers = {name: module for name, module in model.named_modules() if hasattr(module, SCALE)}
    if not layers:
        raise KernelError(
            f"model {type(model).__name__} has no INT4 layers: load an INT4 folder (`sqft quantize` makes one) with "
            "sqft_plugins.checkpoint.load_model"
        )
    done = Acceleration(model)
    uses = _uses(model)
    kept = total = 0.0
    for name, layer in track(layers.items(), "packing"):
        why = _why_not(layer, uses)
        quantized = None if why else _codes(layer)
        if why or quantized is None:
            done.skipped[name] = why or "its weight is not that of its INT4 codes (was an adapter merged into it?)"
            continue
        packed = SparseInt4Weight.from_quantized(quantized).to(weight_of(layer).device)
        bias = layer.bias if isinstance(layer.bias, Tensor) else None
        done.float_bytes += layer.weight.numel() * layer.weight.element_size()
        done.packed_bytes += packed.nbytes
        kept, total = kept + packed.density * quantized.codes.numel(), total + quantized.codes.numel()
        model.set_submodule(name, SparseInt4Linear(packed, bias).train(layer.training))
        done._swapped[name] = _empty(layer)
    if not done._swapped:
        name, why = next(iter(done.skipped.items()))
        raise KernelError(f"none of {len(layers)} INT4 layers can be swapped: {name}, for one: {why}")
    done.density = kept / total
    release_memory()
    say(f"accelerate: {done}")
    return done


def _why_not(layer: nn.Module, uses: dict[int, int]) -> str | None:
    if type(layer) not in (nn.Linear, Conv1D):
        return f"it is a {type(layer).__name__}, not a plain linear"
    if layer.weight.device.type not in ("cpu", "cuda"):
        return f"it is on {layer.weight.device}: the kernels run on cpu and cuda"
    if layer.weight.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"its weight is {layer.weight.dtype}"
    if uses[id(layer.weight)] > 1:
        return "it shares its weight with another layer"
    if layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or hasattr(layer, "_hf_hook"):
        return "it has hooks"
    return None


def _uses(model: nn.Module) -> dict[int, int]:
    uses: dict[int, int] = {}
    for _, parameter in model.named_parameters(remove_duplicate=False):
        uses[id(parameter)] = uses.get(id(parameter), 0) + 1
    return uses


def _codes(layer: nn.Module) -> QuantizedWeight | None:
    """The codes of a dequantized layer; None where its weight is not exactly theirs."""
    weight = weight_of(layer)  # type: ignore[arg-type]  # [out, in]
    scale = getattr(layer, SCALE).data.float()
    stored = getattr(layer, ZERO_POINT, None)  # signed
    if stored is None:
        zero_point = torch.full_like(scale, SYMMETRIC_ZERO_POINT, dtype=torch.uint8)
    else:
        zero_point = (stored.data.to(torch.int16) + SYMMETRIC_ZERO_POINT).to(torch.uint8)
    if scale.dim() != 2 or scale.shape != zero_point.shape or weight.shape[1] % scale.shape[1]:
        return None
    quantized = QuantizedWeight(quantize(weight, scale, zero_point), scale, zero_point)
    return quantized if torch.equal(quantized.dequantize(weight.dtype), weight) else None


def _empty(layer: nn.Module) -> _Swapped:
    """Frees the weight and the grid of a layer that was taken out; they are in the packed form."""
    dtypes = {}
    for name in ("weight", SCALE, ZERO_POINT):
        parameter = getattr(layer, name, None)
        if parameter is not None:
            dtypes[name] = parameter.dtype
            parameter.data = torch.empty(0, dtype=parameter.dtype)
    return _Swapped(layer, dtypes)


def _fill(swapped: _Swapped, weight: QuantizedWeight, device: torch.device) -> None:
    layer, dtypes = swapped.layer, swapped.dtypes
    exact = weight.dequantize(dtypes["weight"])
    parts = {
        "weight": exact.t().contiguous() if isinstance(layer, Conv1D) else exact,
        SCALE: weight.scale,
        ZERO_POINT: weight.zero_point.to(torch.int16) - SYMMETRIC_ZERO_POINT,
    }
    for name, dtype in dtypes.items():
        getattr(layer, name).data = parts[name].to(device=device, dtype=dtype)
