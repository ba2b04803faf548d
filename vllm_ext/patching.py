"""Replacing a method of vLLM's, only while it is the one we know."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Sequence
from typing import Any

logger = logging.getLogger("vllm.sqft")


def replace_method(owner: type, name: str, parameters: Sequence[str], make: Callable[[Any], Any], loss: str) -> bool:
    """Sets `owner.name` to `make(original)`, once, if the original takes exactly `parameters` (self first).

    Where it does not, nothing is touched and one warning says what is lost (`loss`). Returns whether ours is in place.
    """
    original = inspect.getattr_static(owner, name, None)
    if getattr(original, "_sqft_original", None) is not None:
        return True
    found = list(inspect.signature(original).parameters) if inspect.isfunction(original) else None
    if found != list(parameters):
        logger.warning(
            "sqft: %s.%s of this vLLM takes %s, not %s, and stays as it is: %s",
            owner.__name__,
            name,
            found,
            list(parameters),
            loss,
        )
        return False
    replacement = make(original)
    replacement.__name__, replacement.__qualname__ = name, f"{owner.__qualname__}.{name}"
    replacement.__doc__ = original.__doc__
    replacement._sqft_original = original
    setattr(owner, name, replacement)
    return True


def restore_method(owner: type, name: str) -> None:
    """Undoes `replace_method`; for tests and for a comparison in one process."""
    original = getattr(inspect.getattr_static(owner, name), "_sqft_original", None)
    if original is not None:
        setattr(owner, name, original)
