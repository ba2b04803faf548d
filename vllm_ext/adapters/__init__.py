"""Elastic adapters in vLLM: a rank and a strength per request. docs/how-to/serve-vllm.md, section Adapters.

The walk of one request, `model="math@r16"`:

API server
 1. serving.py     `resolve_lora`: vLLM does not know the name, so ours is asked. names.py: NAME@RANK*STRENGTH, or
                   404
 2. resolver.py    is the name in the table, and its folder as it was? Then the request has its variant
 3. directory.py   else the folder of `math` is looked for below SQFT_ADAPTERS_DIR, and opened (folder.py)
 4. copies.py      its files are copied to a private folder, in a thread, and checked; one that is written to is
                   waited for
 5. kinds.py       who serves this kind of adapter: load.py, or the value planes (planes/handler.py)? `check` refuses,
                   in a thread, other bases, numbers that are not finite (checks.py), ranks that are not there,
                   strengths that a value plane cannot have
 6. resolver.py    a LoRARequest with an id and the path `COPY/math?sub=r16`, loaded in the workers, then in the table
 7. admission.py   requests with a path of their own (`lora_request`, --lora-modules) are checked here
Engine core
 8. isolation.py   what a worker could not load ends here, alone; the blocks of the cache are cleared
Worker
 9. load.py        `_load_adapter`: opens the copy, cuts A[:16] and B[:, :16] out of the file, times alpha / r_max
                   and the strength
10. lora_cpu.py    vLLM puts them into a slot; the tokens of the step are grouped by slot (low_rank.py)
11. lora_cpu.py    each linear layer adds B (A x) to its rows, the output head to its logits

A request offline begins at 5 with `lora_request` (offline.py), which takes any folder and makes no copy.
"""

from __future__ import annotations

import os

from vllm_ext.patching import apply
from vllm_ext.variables import ADAPTERS_DIR


def patch() -> None:
    """In any process of vLLM: all patches of this package (list: vllm_ext/register.py), each line all or none.
    Idempotent."""
    from vllm.platforms import current_platform

    from vllm_ext.adapters import admission, isolation, load, lora_cpu
    from vllm_ext.adapters.kinds import HANDLERS

    HANDLERS.setdefault("dense", load.LoraHandler())
    apply(load._load_adapter)
    apply(load.add_adapter)
    apply(*isolation.FAILURES)
    apply(*isolation.VERSIONS)
    if current_platform.is_cpu():
        apply(*isolation.BLOCKS)
        lora_cpu.patch_lora_cpu()
    apply(admission._validate_lora, admission.load_lora_adapter)

    if os.environ.get(ADAPTERS_DIR):
        from vllm_ext.adapters import resolver, serving

        resolver.register_resolver()
        apply(*serving.REPLACEMENTS)
