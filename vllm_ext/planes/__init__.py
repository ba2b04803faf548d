"""Value planes: quantization-aware adapters served exactly, from one INT4 base."""

from __future__ import annotations


def register() -> None:
    """Lets vLLM serve quantization-aware adapters by value planes. Idempotent. Raises SQFTError for a budget
    (SQFT_PLANE_CACHE_BYTES) that is no number."""
    from vllm_ext.adapters.kinds import HANDLERS
    from vllm_ext.planes import handler
    from vllm_ext.planes.store import store_folder
    from vllm_ext.planes.switch import PlaneSwitch, budget_from_environment
    from vllm_ext.quantization.linear import set_plane_switch
    from vllm_ext.serve.variants import patch_loads

    if handler.KIND in HANDLERS:
        return
    store_folder()  # before vLLM starts its workers: they get the same
    switch = PlaneSwitch(budget_from_environment())
    patch_loads()
    if handler.patch_steps(switch):
        HANDLERS[handler.KIND] = handler.PlaneHandler(switch)
        set_plane_switch(switch)
