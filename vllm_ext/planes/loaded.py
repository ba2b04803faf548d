"""A plane in the memory of one worker: for each of its layers the codes of its shard, in the operator's own form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from sqft_plugins.checkpoint import ModelFolder
from sqft_plugins.errors import MismatchError
from vllm_ext.planes.format import PlaneFile


@dataclass(eq=False)
class LoadedPlane:
    """layers: layer → the operator's plane of it; a layer that the adapter leaves alone is not there. The layers are
    their engine's: they are not kept alive here."""

    layers: WeakKeyDictionary[nn.Module, Any] = field(default_factory=WeakKeyDictionary)
    nbytes: int = 0

    def of(self, layer: nn.Module) -> Any:
        """The operator's plane of a layer, None for the base's own codes."""
        return self.layers.get(layer)


def sqft_layers(model: nn.Module) -> list[Any]:
    """The layers whose weights quantization `sqft` holds (`vllm_ext.quantization.linear.LoadedLinear`)."""
    # vLLM's LoRA layers hand on the attributes of the layer that they wrap: with hasattr each would come twice
    return [module for module in model.modules() if "sqft" in vars(module)]


def load_plane(
    file: PlaneFile, base: ModelFolder, model: nn.Module, all_here: bool, grow: Callable[[int], None]
) -> LoadedPlane:
    """Reads a plane for the layers of `model`, cut as their weights were cut (tensor parallel).

    all_here: whether all layers of the base are in `model` (no pipeline parallel). grow: called with the bytes so far,
    before more is read; it may raise. Raises MismatchError where the plane has a module that no layer holds.
    """
    from vllm_ext.quantization.sources import shard_of

    adapted = set(file.modules)
    missing = set(adapted)
    plane = LoadedPlane()

    def codes(module: str) -> Tensor:
        return file.codes(module, base) if module in adapted else base.quantized(module).codes

    for layer in sqft_layers(model):
        parts = layer.sqft.parts
        if parts is None or not any(module in adapted for module, _ in parts):
            continue
        missing -= {module for module, _ in parts}
        shard = shard_of(layer, parts, codes).to(layer.weight_packed.device)
        own = layer.sqft.operator.plane(layer.sqft.state, shard)
        plane.layers[layer] = own
        plane.nbytes += own.nbytes
        grow(plane.nbytes)
    if missing and all_here:
        raise MismatchError(
            f"{file.path.name} has codes of {sorted(missing)[0]}, which the served model does not hold as sparse INT4: "
            "see the server's log, or merge the adapter (`sqft merge`)"
        )
    return plane
