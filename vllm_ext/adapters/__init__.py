"""Elastic adapters in vLLM: a rank per request. docs/how-to/serve-vllm.md, section Adapters.

The walk of one request, `model="math@r16"`:

API server
 1. serving.py     `resolve_lora`: vLLM does not know the name, so ours is asked. names.py: NAME@RANK, or 404
 2. resolver.py    is the name in the table, and its folder as it was? Then the request has its variant
 3. directory.py   else the folder of `math` is looked for below SQFT_ADAPTERS_DIR, and opened (folder.py)
 4. copies.py      its files are copied to a private folder, in a thread, and checked; one that is written to is
                   waited for
 5. kinds.py       who serves this kind of adapter: load.py, or the value planes (planes/handler.py)? `check` refuses,
                   in a thread, other bases, numbers that are not finite (checks.py), ranks that are not there
 6. resolver.py    a LoRARequest with an id and the path `COPY/math?sub=r16`, loaded in the workers, then in the table
 7. admission.py   requests with a path of their own (`lora_request`, --lora-modules) are checked here
Engine core
 8. failures.py    what a worker could not load ends here, alone; isolation.py: the blocks of the cache are cleared
Worker
 9. load.py        `_load_adapter`: opens the copy, cuts A[:16] and B[:, :16] out of the file, times alpha / r_max
10. lora_cpu.py    vLLM puts them into a slot; the tokens of the step are grouped by slot (low_rank.py)
11. lora_cpu.py    each linear layer adds B (A x) to its rows, the output head to its logits

A request offline begins at 5 with `lora_request` (offline.py), which takes any folder and makes no copy.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from vllm_ext.variables import ADAPTERS_DIR

if TYPE_CHECKING:
    from vllm_ext.adapters.offline import lora_request

__all__ = ["lora_request", "patch"]


def patch() -> None:
    """In any process of vLLM: all patches of this package (list: vllm_ext/register.py). Idempotent."""
    from vllm_ext.adapters.admission import patch_admission
    from vllm_ext.adapters.failures import patch_failures
    from vllm_ext.adapters.isolation import patch_isolation
    from vllm_ext.adapters.kinds import HANDLERS
    from vllm_ext.adapters.load import LoraHandler, patch_load
    from vllm_ext.adapters.lora_cpu import patch_lora_cpu

    HANDLERS.setdefault("dense", LoraHandler())
    patch_load()
    patch_failures()
    patch_isolation()
    patch_lora_cpu()
    patch_admission()
    if os.environ.get(ADAPTERS_DIR):
        from vllm_ext.adapters.resolver import register_resolver
        from vllm_ext.adapters.serving import patch_serving

        register_resolver()
        patch_serving()


def __getattr__(name: str) -> Any:
    if name == "lora_request":
        from vllm_ext.adapters.offline import lora_request

        return lora_request
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
