"""Value planes: quantization-aware adapters served exactly, from one INT4 base.

A value plane is the INT4 codes of one rank of such an adapter at the base's kept places; mask, scales and zero points
stay the base's.

1. handler.py   API server: may this adapter be served? Its plane is found (store.py), or built in a process of its own
                (build.py, `sqft export plane`); format.py is the file
2. handler.py   worker: the plane is read into the operators' own form, within a budget (cache.py)
3. switch.py    worker, each step: which tokens have which plane; linear layers ask for it
"""

from __future__ import annotations


def patch() -> None:
    """Lets vLLM serve quantization-aware adapters by value planes. Idempotent. Raises SQFTError for a budget
    (SQFT_PLANE_CACHE_BYTES) that is no number."""
    from vllm_ext.adapters.kinds import HANDLERS
    from vllm_ext.planes import handler
    from vllm_ext.planes.store import store_folder
    from vllm_ext.planes.switch import PlaneSwitch
    from vllm_ext.quantization.linear import set_plane_switch
    from vllm_ext.variables import plane_bytes

    if handler.KIND in HANDLERS:
        return
    store_folder()  # before vLLM starts its workers: they get the same
    switch = PlaneSwitch(plane_bytes())
    if handler.patch_steps(switch):
        HANDLERS[handler.KIND] = handler.PlaneHandler(switch)
        set_plane_switch(switch)
