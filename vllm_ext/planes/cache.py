"""Value planes in memory: least recently used first out, within a budget of bytes. Knows nothing of vLLM."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Generic, Protocol, TypeVar

from sqft_plugins.errors import SQFTError
from vllm_ext.variables import PLANE_CACHE_BYTES


class Sized(Protocol):
    @property
    def nbytes(self) -> int: ...


T = TypeVar("T", bound=Sized)


class ByteBudget(Generic[T]):
    """Key → item, at most `budget` bytes of them.

    What is pinned stays whatever the budget says: what the running batch uses cannot go. on_evict: called with the key
    and the item after it was taken out. Raises SQFTError for a single item above the budget.
    """

    def __init__(self, budget: int, on_evict: Callable[[str, T], None] = lambda key, item: None):
        self.budget = budget
        self.pinned: set[str] = set()
        self._items: OrderedDict[str, T] = OrderedDict()
        self._on_evict = on_evict

    @property
    def nbytes(self) -> int:
        """Bytes of all that is held."""
        return sum(item.nbytes for item in self._items.values())

    def __contains__(self, key: str) -> bool:
        return key in self._items

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[str]:
        """The keys, the one to go first first."""
        return iter(list(self._items))

    def get(self, key: str) -> T:
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

    def put(self, key: str, item: T, name: str = "item") -> None:
        """Adds an item as the most recently used, after `make_room` for it."""
        self.make_room(item.nbytes, name)
        self._items[key] = item

    def clear(self) -> None:
        """Forgets everything, without `on_evict`."""
        self._items.clear()
        self.pinned = set()
