"""What vLLM calls in each of its processes, through the entry point `vllm.general_plugins`.

vLLM loads its plug-ins once in the API server, in the engine core and in every worker. One that does not import is only
logged there, so nothing here imports vLLM at the top: what can fail, fails in `register()`, where vLLM lets it through.
"""

from __future__ import annotations

import importlib

from sqft_plugins.errors import DependencyError
from vllm_ext.orphans import end_with_parent
from vllm_ext.version import INSTALL, installed, why_unsupported

ROOMS = ("vllm_ext.quantization", "vllm_ext.adapters", "vllm_ext.planes")
"""Each has a `register()` of its own, idempotent, that may run in any process of vLLM."""
_done: set[str] = set()


def register() -> None:
    """Registers quantization `sqft`, the adapter resolver and the value planes with vLLM. Idempotent.

    With a vLLM outside the supported range nothing is patched: other models are served as if this plug-in were not
    there, and a folder of ours is refused with the remedy (`quantization.refuse`).
    """
    problem = why_unsupported(installed())
    if problem is not None:
        if not _done:
            from vllm_ext.quantization.refuse import register_refusal

            register_refusal(problem)
            _done.add("refusal")
        return
    if "orphans" not in _done:
        end_with_parent()
        _done.add("orphans")
    for room in ROOMS:
        if room not in _done:
            try:
                importlib.import_module(room).register()
            except ImportError as error:
                found = ", ".join(f"{name} {number}" for name, number in installed().items())
                raise DependencyError(f"{room} does not fit {found} ({error}): {INSTALL}") from error
            _done.add(room)
