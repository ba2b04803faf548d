"""What vLLM calls in each of its processes, through the entry point `vllm.general_plugins`.

vLLM loads its plug-ins once in the API server, in the engine core and in every worker. `register` does what costs a
model that is not ours nothing, and leaves the patches until something of ours is met (met.py). All that is changed in
vLLM 0.32 and 0.33, where, why, and what upstream knows of it:

At once, because vLLM asks there whose a folder or an adapter is:
 1. quantization method `sqft` (quantization/method.py), in the process that the user started: our INT4 folders stay
    sparse, other widths are dequantized on a CPU. vLLM's own registry, nothing is patched.
 2. five methods that only adapters pass are listened at (listeners.py), in each process: an adapter of ours may come to
    an engine that knows nothing of it. They go when ours is met.

When ours is met:
 3. DefaultModelLoader.get_all_weights (quantization/loading.py), worker: vLLM cannot read the compact form, and
    has no kernels on a CPU for other widths than 4 bits.
 4. WorkerLoRAManager._load_adapter (adapters/load.py), worker: of a slice of rank r vLLM takes alpha / r, not
    alpha / r_max, and leaves out or crops what does not fit the model.
 5. InputProcessor._validate_lora, OpenAIServingModels.load_lora_adapter (adapters/admission.py), API server and `LLM`:
    what a worker refuses ends the engine (vllm-project/vllm#11702).
 6. LRUCacheWorkerLoRAManager._apply_adapters, Worker.execute_model and sample_tokens, Scheduler.update_from_output,
    RequestState._new_completion_output, GenerateBaseServing._raise_if_error (adapters/isolation.py), all processes: an
    adapter that cannot be loaded when its turn comes ends the engine (#5105).
 7. LoRARequest.__eq__ and __hash__ (adapters/isolation.py), worker: two versions of an adapter under one name are one
    to vLLM (#30931).
 8. Scheduler.add_request, CPUModelRunner._zero_block_ids (adapters/isolation.py), engine core and worker, on a CPU: NaN
    in a block of the cache spoils who gets it next (#35138, mended there for Mamba only).
 9. LoRAModelManager.activate_adapter, the computing methods of PunicaWrapperCPU (adapters/lora_cpu.py), worker, on a
    CPU: vLLM copies A and B for each token, and gives tokens without an adapter those of the last slot.
10. GPUModelRunner._get_prompt_logprobs_dict (adapters/lora_cpu.py), worker, on a CPU: an adapter of the output head is
    given to the wrong rows (#16668, #51594).
11. WorkerLoRAManager.set_active_adapters (planes/handler.py), worker: which token is computed with which value plane
    (the codes of one rank).
12. LRUCacheWorkerLoRAManager.add_adapter (adapters/load.py), worker: counters.

Where SQFT_ADAPTERS_DIR is set ours is met at once, because vLLM reads its resolvers when its server is made:
13. resolver `SQFT adapters` (adapters/resolver.py), API server: names with a rank. vLLM's own registry.
14. OpenAIServingModels.__init__, resolve_lora, show_available_models, BaseServing._get_active_default_mm_loras
    (adapters/serving.py), API server: vLLM keeps resolved names for ever, refuses without a reason, and uses adapters
    called `text` or `image` unasked.
15. InjectToBodyApiTransform.transform_request (adapters/serving.py), API server: /invocations answers for every name
    with the base (since #27892).

A method that takes other parameters in some vLLM is left as it is, and the log says what is lost (patching.py).
"""

from __future__ import annotations

import importlib
import os
from functools import partial

from sqft_plugins.errors import DependencyError
from vllm_ext.listeners import listen, stop
from vllm_ext.met import meet, when_met
from vllm_ext.orphans import end_with_parent
from vllm_ext.variables import ADAPTERS_DIR
from vllm_ext.version import INSTALL, installed, why_unsupported

PATCHED = ("vllm_ext.quantization.loading", "vllm_ext.adapters", "vllm_ext.planes")
"""Each has a `patch()` of its own, idempotent, that may run in any process of vLLM."""
_done = False


def register() -> None:
    """Makes the plug-in known to vLLM. Idempotent.

    With a vLLM outside the supported range nothing is patched: other models are served as if this plug-in were not
    there, and a folder of ours is refused with the remedy.
    """
    global _done
    if _done:
        return
    problem = why_unsupported(installed())
    importlib.import_module("vllm_ext.quantization.method").register(problem)
    if problem is None:
        listen()
        when_met(stop)
        when_met(end_with_parent)
        for name in PATCHED:
            when_met(partial(patch, name))
        if os.environ.get(ADAPTERS_DIR):
            meet()
    _done = True


def patch(name: str) -> None:
    """The patches of one package. Raises DependencyError where vLLM has no such part."""
    try:
        importlib.import_module(name).patch()
    except ImportError as error:
        found = ", ".join(f"{build} {number}" for build, number in installed().items())
        raise DependencyError(f"{name} does not fit {found} ({error}): {INSTALL}") from error
