"""Replacing a method of vLLM's, only while it is the one we know.

    @replaces(LoRAModelManager, "slots keep the adapter before")
    def activate_adapter(self, lora_id):
        changed = activate_adapter.original(self, lora_id)
        ...

Below the decorator stands a `Replacement`: nothing is replaced before `apply`. The function has the parameters of
vLLM's method, by name and in order; in a vLLM where the method takes others it stays as it is. `original` is vLLM's own
method.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

logger = logging.getLogger("vllm.sqft")
MARK = "_sqft_replacement"


@dataclass(eq=False)
class Replacement:
    """One method of vLLM's and the function for it.

    owner: vLLM's class.
    name: the method's.
    function: what takes its place.
    loss: what does not work without it, for the log.
    """

    owner: type
    name: str
    function: Callable[..., Any]
    loss: str
    _original: Any = field(default=None, init=False)

    @property
    def original(self) -> Any:
        """vLLM's own method."""
        return self._original or inspect.getattr_static(self.owner, self.name)

    @property
    def is_applied(self) -> bool:
        return getattr(inspect.getattr_static(self.owner, self.name, None), MARK, None) is self

    def fits(self) -> bool:
        """Whether vLLM's method takes the parameters of ours. Logs a warning where it does not."""
        found = inspect.getattr_static(self.owner, self.name, None)
        takes = list(inspect.signature(found).parameters) if inspect.isfunction(found) else None
        known = list(inspect.signature(self.function).parameters)
        if takes == known:
            return True
        where = f"{self.owner.__name__}.{self.name}"
        logger.warning(
            "sqft: %s takes %s in this vLLM, not %s, and is not replaced: %s", where, takes, known, self.loss
        )
        return False

    def put(self) -> None:
        self._original = inspect.getattr_static(self.owner, self.name)
        self.function.__name__, self.function.__qualname__ = self.name, f"{self.owner.__qualname__}.{self.name}"
        self.function.__doc__, self.function.__dict__[MARK] = self._original.__doc__, self
        setattr(self.owner, self.name, self.function)


def replaces(owner: type, loss: str, name: str = "") -> Callable[[Callable[..., Any]], Replacement]:
    """Makes a function the replacement of `owner`'s method of the same name, or of `name`."""
    return lambda function: Replacement(owner, name or function.__name__, function, loss)


def apply(*replacements: Replacement) -> bool:
    """Puts all of them in place, or none where one does not fit. Idempotent. Returns whether ours are in place."""
    missing = [replacement for replacement in replacements if not replacement.is_applied]
    if not all(replacement.fits() for replacement in missing):
        return False

    for replacement in missing:
        replacement.put()
    return True
