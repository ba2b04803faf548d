"""The merged weight that evaluation caches, and how it is known to be still the right one.

Version counters, ids and data pointers do not show it: `parameter.data[...] = x` and `parameter.data = x` pass by the
counter, and a new tensor takes the address of the last one. So the adapter is compared with a copy, and the base weight
by a fingerprint of every bit. That costs one to two reads of the weight, once per forward of the model; a forward that
goes on where the one before it left a cache of keys and values (every token of `generate` but the first) trusts that
one. A copy of a cache, or one that was cropped, is looked at anew.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from sqft_plugins.key_values import cache_in

BLOCK = 2**17
"""64-bit words in one block, 1 MiB: it stays in a core's cache between the three passes over it."""
SEED = 16
INTEGERS = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.int8}


def fingerprint(weight: Tensor) -> Tensor:
    """int64 [rows] of a weight [rows, columns]: for each row Σ v[i] · (x[i] ^ x[i] >> 32) mod 2^64 over its bits as
    64-bit words x, with fixed random odd v.

    A change of one word always shows, others are missed with a probability below 2^-32. The upper half of a word is
    folded into the lower one because its last bit, the sign of a weight, would count only by the parity of its changes.
    """
    rows = weight.detach().contiguous()
    width, start = (count * rows.element_size() for count in (rows.shape[1], rows.storage_offset()))
    size = next(size for size in INTEGERS if width % size == 0 and start % size == 0)
    words = rows.view(INTEGERS[size])
    factors = _factors(words.shape[1], words.device)
    result = torch.empty(len(words), dtype=torch.int64, device=words.device)

    step = max(BLOCK // max(words.shape[1], 1), 1)
    for start in range(0, len(words), step):
        block = words[start : start + step].to(torch.int64)
        mixed = torch.bitwise_right_shift(block, 32).bitwise_xor_(block)
        if mixed.device.type == "cpu":
            torch.mv(mixed, factors, out=result[start : start + step])
        else:  # torch has no matrix product of integers there
            result[start : start + step] = mixed.mul_(factors).sum(1)
    return result


def _factors(count: int, device: torch.device) -> Tensor:
    random = torch.randint(-(2**62), 2**62, (count,), generator=torch.Generator().manual_seed(SEED))
    return random.mul_(2).add_(1).to(device)


@dataclass
class CachedWeight:
    """A merged weight and what it was made of.

    settings: adapter, rank, scaling and what else is compared by value.
    state: what the layer knows of the adapter, compared by identity.
    factors: copies of A and B.
    base: the fingerprint of the base weight.
    kind: its dtype, shape and device.
    place: where it and the factors were, a hint that is good only until the next whole forward.
    merged: the merged weight, in the base layer's layout.
    seen: the forward that looked at all of them last.
    """

    settings: tuple[Any, ...]
    state: object
    factors: tuple[Tensor, ...]
    base: Tensor
    kind: tuple[Any, ...]
    place: tuple[Any, ...]
    merged: Tensor
    seen: int

    @classmethod
    def of(
        cls, settings: tuple[Any, ...], state: object, factors: tuple[Tensor, ...], base: Tensor, merged: Tensor
    ) -> CachedWeight:
        """The cache of `merged`, just made of these A and B (`factors`) and of the weight `base`."""
        copies = tuple(factor.detach().clone() for factor in factors)
        place = place_of(base, *factors)
        return cls(settings, state, copies, fingerprint(base), _kind(base), place, merged, _forward.number)

    def still_holds(self, settings: tuple[Any, ...], state: object, factors: tuple[Tensor, ...], base: Tensor) -> bool:
        """Whether the merged weight is that of this adapter's state and factors and of this base weight."""
        if state is not self.state or settings != self.settings or _kind(base) != self.kind:
            return False

        place = place_of(base, *factors)
        trusted = self.seen == _forward.before and place == self.place
        if not trusted and not self._is_made_of(factors, base):
            return False
        self.seen, self.place = _forward.number, place
        return True

    def _is_made_of(self, factors: tuple[Tensor, ...], base: Tensor) -> bool:
        return all(map(_same, self.factors, factors)) and torch.equal(fingerprint(base), self.base)


def _kind(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.dtype, tensor.shape, tensor.device


def place_of(*tensors: Tensor) -> tuple[Any, ...]:
    """Where tensors are, and how often they were written to: a hint that they are the same, see above."""
    # a tensor made in torch.inference_mode() has no version
    return tuple((id(one), one.data_ptr(), 0 if one.is_inference() else one._version) for one in tensors)


def _same(a: Tensor, b: Tensor) -> bool:
    return _kind(a) == _kind(b) and torch.equal(a, b)


_numbers = itertools.count(1)


class _Forward(threading.local):
    """The forward of a whole model that runs in this thread.

    number: its own, 0 outside of one.
    before: the number of the forward that left its cache of keys and values as it is, None where there is none.
    cache: the cache it was given.
    ends: cache → (the forward that filled it last, its length then).
    """

    number = 0
    before: int | None = None
    cache: Any = None

    def __init__(self) -> None:
        self.ends: WeakKeyDictionary[Any, tuple[int, int]] = WeakKeyDictionary()


_forward = _Forward()


def note_cache(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Forward pre-hook (with_kwargs) of the whole model: notes which forward the cache of this one comes from.

    The keys and values in a cache are those of the weights before, so a weight that is written over between two tokens
    would give no meaningful text anyway.
    """
    if torch.compiler.is_compiling():
        return
    _forward.number, _forward.before = next(_numbers), None

    _forward.cache = cache = next(iter(cache_in(kwargs).values()), None)
    length = _length(cache)
    if length:
        last, end = _forward.ends.get(cache, (None, 0))
        _forward.before = last if end == length else None


def forget_cache(model: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    """Forward hook (always_call) of the whole model."""
    if torch.compiler.is_compiling():
        return

    left = cache_in(output) if isinstance(output, Mapping) else {}
    cache = next(iter(left.values()), _forward.cache)
    length = _length(cache)
    if length:
        _forward.ends[cache] = _forward.number, length
    _forward.number, _forward.before, _forward.cache = 0, None, None


def _length(cache: Any) -> int:
    """The tokens in a cache of transformers; 0 for None, for a cache of another kind or of layers that do not count
    them (Mamba's), and for a cache that compares by value, so that two of them cannot be kept apart."""
    known = hasattr(cache, "__weakref__") and type(cache).__hash__ is object.__hash__  # type: ignore[comparison-overlap]
    if not known or not hasattr(cache, "get_seq_length"):
        return 0
    try:
        return int(cache.get_seq_length())
    except ValueError:  # "can only be called on Attention layers"
        return 0
