"""The moment at which our patches go in: when this process meets something of ours, a folder or an adapter.

A server of other models has this plug-in loaded, too, and must not pay for it. So `register` only leaves word here what
is to be done (`when_met`), and whoever meets something of ours says so (`meet`):

1. `register` itself, where `SQFT_ADAPTERS_DIR` names our adapters: everything is there before vLLM builds anything.
2. `quantization/config.py`, for an INT4 folder of ours: in the process that the user started while vLLM makes its
   configuration, in the engine core and the workers when that configuration is unpickled, before their models.
3. `adapters/offline.py`, when `lora_request` is called.
4. `listeners.py`, for the first request of one of our adapters in an engine that knew nothing of them.

A process may meet ours before it has registered (2, in the engine core): then what is left here runs at once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

_waiting: list[Callable[[], object]] = []
_has_met = False
_lock = threading.RLock()


def has_met() -> bool:
    return _has_met


def when_met(then: Callable[[], object]) -> None:
    """Calls `then` once, now or when something of ours is met."""
    with _lock:
        _waiting.append(then)
        if _has_met:
            meet()


def meet() -> None:
    """Something of ours is here. What raises is tried again the next time."""
    global _has_met
    if _has_met and not _waiting:
        return
    with _lock:
        _has_met = True
        while _waiting:
            _waiting[0]()
            _waiting.pop(0)
