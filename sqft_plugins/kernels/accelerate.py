"""`accelerate(model)`: the INT4 linears of a transformers model, computed from their packed form.

A model loaded from an INT4 folder holds its weights as floats, because that is what transformers, PEFT and torch work
on. For inference alone they can be swapped for the packed form: 3 to 4 bits a weight instead of 16 or 32, and, as
decoding on a CPU is bound by the bytes of the weights, more tokens a second.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from sqft_plugins.checkpoint.attached import SCALE, ZERO_POINT, attached_weight, has_grid, signed
from sqft_plugins.checkpoint.restore import restore_grids
from sqft_plugins.errors import GridError, KernelError
from sqft_plugins.hardware import release_memory
from sqft_plugins.kernels.library import library
from sqft_plugins.kernels.linear import SparseInt4Linear
from sqft_plugins.kernels.weight import SparseInt4Weight
from sqft_plugins.progress import say, track


@dataclass
class Acceleration:
    """What `accelerate` did to a model. skipped: module → why it stays as it was. float_bytes, packed_bytes: the
    weights of the swapped layers before and after. density: the fraction of their weights that is stored.
    _swapped: module → the layer that was taken out, its weight and grid emptied."""

    model: nn.Module
    skipped: dict[str, str] = field(default_factory=dict)
    float_bytes: int = 0
    packed_bytes: int = 0
    density: float = 0.0
    _swapped: dict[str, nn.Module] = field(default_factory=dict, repr=False)

    @property
    def layers(self) -> list[str]:
        """The modules that were swapped."""
        return list(self._swapped)

    def undo(self) -> None:
        """Puts the float layers back, the very ones, with the very weights, on the device and in the dtype that the
        model was moved to since; does nothing the second time."""
        for name in self.layers:
            layer = self._swapped.pop(name)
            _fill(layer, cast(SparseInt4Linear, self.model.get_submodule(name)))
            self.model.set_submodule(name, layer)

    def __str__(self) -> str:
        text = (
            f"{summary(len(self._swapped), self.density)}, {self.float_bytes / 1e6:.0f} MB of weights are "
            f"{self.packed_bytes / 1e6:.0f} MB"
        )
        for name, why in list(self.skipped.items())[:3]:
            text += f"; {name} stays: {why}"
        return text + (f"; and {len(self.skipped) - 3} more" if len(self.skipped) > 3 else "")


def summary(layers: int, density: float) -> str:
    """How many layers run packed, by which kernel and why, and how sparse they are."""
    found = library()
    why = f": {found.why}" if found.handle is not None else ""  # where there is none, operators.py has said why
    return f"{layers} INT4 layers run packed ({found.path} kernel{why}), {density:.0%} of their weights nonzero"


def accelerate(model: nn.Module) -> Acceleration:
    """Swaps the INT4 linears of `model`, in place, for their packed form, and says what it did.

    model: loaded from an INT4 folder with `sqft_plugins.checkpoint.load_model` or, with
    `CompressedTensorsConfig(dequantize=True)`, by transformers. What is no INT4 linear stays; an INT4 linear whose
    weight is no longer that of its codes (an adapter was merged into it), whose scales float16 does not hold or that
    carries hooks stays, too, and the result names it (`Acceleration.skipped`).
    The results are those of the float model up to rounding: the error bound is in csrc/kernel.h.

    Raises KernelError where there is no INT4 linear, or none can be swapped; then nothing was changed.
    """
    if any(isinstance(module, SparseInt4Linear) for module in model.modules()):
        raise KernelError("model is accelerated already: call undo() of what accelerate() returned first")
    restore_grids(model)
    layers = {name: module for name, module in model.named_modules() if has_grid(module)}
    if not layers:
        raise KernelError(
            f"model {type(model).__name__} has no INT4 layers: load an INT4 folder (`sqft quantize` makes one) with "
            "sqft_plugins.checkpoint.load_model"
        )

    done = Acceleration(model)
    uses = uses_of(model)
    try:
        for name, layer in track(layers.items(), "packing"):
            packed = _packed(layer, uses[id(layer.weight)])
            if isinstance(packed, str):
                done.skipped[name] = packed
                continue
            done.float_bytes += layer.weight.numel() * layer.weight.element_size()
            done.packed_bytes += packed.nbytes
            swap(model, name, packed)
            _empty(layer)
            done._swapped[name] = layer
    except BaseException:
        done.undo()
        raise

    if not done._swapped:
        name, why = next(iter(done.skipped.items()))
        raise KernelError(f"none of {len(layers)} INT4 layers can be swapped: {name}, for one: {why}")

    done.density = density_of(model)
    release_memory()
    say(f"accelerate: {done}")
    return done


def _packed(layer: Any, uses: int) -> SparseInt4Weight | str:
    """The packed weight of an INT4 linear, or why the layer has to stay."""
    why = why_not(layer, uses)
    if why is not None:
        return why
    try:
        quantized, wrong = attached_weight(layer)
        if wrong:
            return f"{wrong} weights are not their INT4 codes (was an adapter merged into it?)"
        return SparseInt4Weight.from_quantized(quantized).to(layer.weight.device)
    except GridError as error:  # another program's scales need not be exact in float16
        return str(error)


def why_not(layer: nn.Module, uses: int) -> str | None:
    """Why a linear layer cannot be swapped, None where it can. uses: of its weight in the model."""
    weight = cast(Tensor, layer.weight)
    if (unfit := why_unfit(layer, weight.dtype)) is not None:
        return unfit
    if weight.device.type not in ("cpu", "cuda"):
        return f"it is on {weight.device}: the kernels run on cpu and cuda"
    if uses > 1:
        return "it shares its weight with another layer"
    if layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or hasattr(layer, "_hf_hook"):
        return "it has hooks"
    return None


def why_unfit(layer: nn.Module, dtype: torch.dtype) -> str | None:
    """The part of `why_not` that is known before the weight is read. dtype: that the weight will have."""
    if type(layer) not in (nn.Linear, Conv1D):
        return f"it is a {type(layer).__name__}, not a plain linear"
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"its weight is {dtype}"
    return None


def swap(model: nn.Module, name: str, packed: SparseInt4Weight) -> None:
    """Puts a packed layer in the place of a linear layer of the model, with its bias, dtype and mode."""
    layer: Any = model.get_submodule(name)
    bias = layer.bias if isinstance(layer.bias, Tensor) else None
    model.set_submodule(name, SparseInt4Linear(packed, bias, layer.weight.dtype).train(layer.training))


def density_of(model: nn.Module) -> float:
    """The fraction of the packed layers' weights that is stored."""
    packed = [module.packed for module in model.modules() if isinstance(module, SparseInt4Linear)]
    sizes = [weight.out_features * weight.in_features for weight in packed]
    return sum(weight.density * size for weight, size in zip(packed, sizes, strict=True)) / sum(sizes)


def uses_of(model: nn.Module) -> Counter[int]:
    """id of a parameter → how many names it has."""
    return Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))


def _empty(layer: nn.Module) -> None:
    """Frees the weight and the grid of a layer that was taken out; they are in the packed form. The dtypes stay."""
    for name in ("weight", SCALE, ZERO_POINT):
        parameter = getattr(layer, name, None)
        if parameter is not None:
            parameter.data = torch.empty(0, dtype=parameter.dtype)


def _fill(layer: nn.Module, now: SparseInt4Linear) -> None:
    """The opposite of `_empty`, from the layer that stands in its place."""
    weight, device = now.packed.unpack(), now.like.device
    exact = weight.dequantize(now.like.dtype)
    oriented = exact.t().contiguous() if isinstance(layer, Conv1D) else exact
    cast(nn.Linear, layer).weight.data = oriented.to(device)
    for name, values in ((SCALE, weight.scale), (ZERO_POINT, signed(weight.zero_point))):
        parameter = getattr(layer, name, None)
        if parameter is not None:
            parameter.data = values.to(device, parameter.dtype)
    if now.bias is not None:
        cast(nn.Linear, layer).bias.data = now.bias.data
