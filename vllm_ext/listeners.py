"""The five places of vLLM's that an adapter passes first. Each looks whether it is one of ours, and calls vLLM.

An engine that was started without anything of ours may still be given one of our adapters, by `lora_request`,
`--lora-modules` or `/v1/load_lora_adapter`. vLLM has no hook for that, so five methods that a model without adapters
never runs are listened at, in whichever process their modules are loaded:

| process | method | what it sees |
|---|---|---|
| API server | OpenAIServingModels.load_lora_adapter | a path that a client or `--lora-modules` gives |
| API server, `LLM` | InputProcessor._validate_lora | each request |
| engine core | Scheduler.add_request | each request |
| worker | WorkerLoRAManager.set_active_adapters | the adapters of each step |
| worker | WorkerLoRAManager._load_adapter | an adapter that is loaded |

Once something of ours is met (met.py), they go, our patches are put in place, and the call is made again.
"""

from __future__ import annotations

import importlib.abc
import inspect
import sys
from collections.abc import Callable, Iterable
from functools import lru_cache, wraps
from typing import Any

from vllm_ext.met import has_met, meet

PLACES: dict[str, dict[tuple[str, str], Callable[..., Iterable[Any]]]] = {
    "vllm.entrypoints.openai.models.serving": {
        ("OpenAIServingModels", "load_lora_adapter"): lambda request, *_: [request],
    },
    "vllm.v1.engine.input_processor": {("InputProcessor", "_validate_lora"): lambda request: [request]},
    "vllm.v1.core.sched.scheduler": {("Scheduler", "add_request"): lambda request: [request.lora_request]},
    "vllm.lora.worker_manager": {
        ("WorkerLoRAManager", "set_active_adapters"): lambda requests, *_: requests,
        ("WorkerLoRAManager", "_load_adapter"): lambda request: [request],
    },
}
"""vLLM's module → (class, method) → what of its arguments, self left out, has a `lora_path`."""
_listening: list[tuple[Any, str, Any]] = []


def listen() -> None:
    """Listens at each place, now or once its module is loaded; nothing is loaded for it."""
    for name in PLACES.keys() & sys.modules.keys():
        _listen_in(sys.modules[name])
    sys.meta_path.insert(0, _finder)


def stop() -> None:
    """vLLM's own methods again."""
    if _finder in sys.meta_path:
        sys.meta_path.remove(_finder)
    while _listening:
        setattr(*_listening.pop())


def _listen_in(module: Any) -> None:
    for (owner_name, name), adapters_of in PLACES[module.__name__].items():
        owner = getattr(module, owner_name, None)
        if not has_met() and inspect.isfunction(original := inspect.getattr_static(owner, name, None)):
            _listening.append((owner, name, original))
            setattr(owner, name, _listener(original, name, adapters_of))


def _listener(original: Any, name: str, adapters_of: Callable[..., Iterable[Any]]) -> Any:
    @wraps(original)
    def listener(self: Any, *arguments: Any, **named: Any) -> Any:
        adapters = adapters_of(*arguments, *named.values())
        if any(adapter is not None and is_ours(adapter.lora_path) for adapter in adapters):
            meet()
            return getattr(self, name)(*arguments, **named)
        return original(self, *arguments, **named)

    return listener


@lru_cache(maxsize=1024)
def is_ours(lora_path: str) -> bool:
    """Whether a `lora_path` leads to an adapter of ours: to one at a rank, or to a folder that says SQFT. Read once."""
    from vllm_ext.adapters.names import MARK, variant_of

    return MARK in lora_path or variant_of(lora_path) is not None


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the modules of PLACES as the others would, and has each listened in right after it was loaded."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name not in PLACES:
            return None
        others = [finder for finder in sys.meta_path if finder is not self and hasattr(finder, "find_spec")]
        found = (finder.find_spec(name, path, target) for finder in others)
        spec = next((spec for spec in found if spec is not None), None)
        loader: Any = spec.loader if spec is not None else None
        if loader is None:
            return spec

        load = loader.exec_module

        def exec_module(module: Any) -> None:
            load(module)
            _listen_in(module)

        loader.exec_module = exec_module
        return spec


_finder = _Finder()
