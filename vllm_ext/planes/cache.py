"""Value planes in the memory of one worker: for each of its layers the codes of its shard, in the operator's own form;
of all of them as many as a budget of bytes holds, least recently used first out."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from sqft_plugins.checkpoint import ModelFolder
from sqft_plugins.errors import MismatchError, SQFTError
from vllm_ext.planes.format import PlaneFile
from vllm_ext.variables import PLANE_CACHE_BYTES


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
        own = layer.quant_method.plane(layer, codes)
        plane.layers[layer] = own
        plane.nbytes += own.nbytes
        grow(plane.nbytes)
    if missing and all_here:
        raise MismatchError(
            f"{file.path.name} has codes of {sorted(missing)[0]}, which the served model does not hold as codes: "
            "see the server's log, or merge the adapter (`sqft merge`)"
        )
    return plane


class ByteBudget:
    """Key → plane, at most `budget` bytes of them.

    What is pinned stays whatever the budget says: what the running batch uses cannot go. on_evict: called with the key
    and the item after it was taken out. Raises SQFTError for a single item above the budget.
    """

    def __init__(self, budget: int, on_evict: Callable[[str, LoadedPlane], None] = lambda key, item: None):
        self.budget = budget
        self.pinned: set[str] = set()
        self._items: OrderedDict[str, LoadedPlane] = OrderedDict()
        self._on_evict = on_evict

    @property
    def nbytes(self) -> int:
        """Bytes of all that is held."""
        return sum(item.nbytes for item in self._items.values())

    def __contains__(self, key: str) -> bool:
        return key in self._items

    def __iter__(self) -> Iterator[str]:
        """The keys, the one to go first first."""
        return iter(list(self._items))

    def get(self, key: str) -> LoadedPlane:
        """The item, which is now the most recently used. Raises KeyError."""
        self._items.move_to_end(key)
        return self._items[key]

    def make_room(self, size: int, name: str = "item") -> None:
        """Takes out what is not pinned until `size` bytes more fit, or until all else is pinned. Raises SQFTError where
        `size` alone is above the budget."""
        if size > self.budget:
            raise SQFTError(
                f"{name} needs {size / 2**20:.1f} MiB or more, the budget for value planes is "
                f"{self.budget / 2**20:.1f} MiB: raise --plane-cache-bytes ({PLANE_CACHE_BYTES})"
            )
        for key in self:
            if self.nbytes + size <= self.budget:
                return
            if key not in self.pinned:
                item = self._items.pop(key)
                self._on_evict(key, item)

    def put(self, key: str, item: LoadedPlane, name: str = "item") -> None:
        """Adds an item as the most recently used, after `make_room` for it."""
        self.make_room(item.nbytes, name)
        self._items[key] = item

    def clear(self) -> None:
        """Forgets everything, without `on_evict`."""
        self._items.clear()
        self.pinned = set()
