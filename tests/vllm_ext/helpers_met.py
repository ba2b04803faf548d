"""What stands in vLLM's classes in a process; vLLM hands the function to its workers by name."""

from __future__ import annotations

import gc


def state(worker=None) -> dict[str, bool]:
    """Method → whether it is ours, of one in each part of vLLM, and whether the scheduler, where it is in this process,
    has the blocks of its cache cleared."""
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU
    from vllm.lora.worker_manager import LRUCacheWorkerLoRAManager, WorkerLoRAManager
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.engine.input_processor import InputProcessor

    from vllm_ext.patching import MARK

    methods = [
        PunicaWrapperCPU.add_lora_linear, LRUCacheWorkerLoRAManager._apply_adapters, WorkerLoRAManager._load_adapter,
        Scheduler.update_from_output, InputProcessor._validate_lora,
    ]  # fmt: skip
    found = {method.__name__: hasattr(method, MARK) for method in methods}
    for one in gc.get_objects():
        if issubclass(type(one), Scheduler):
            found["cache"] = one.needs_kv_cache_zeroing
    return found
