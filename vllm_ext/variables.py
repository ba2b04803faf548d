"""The environment variables of this plug-in, and those of vLLM's that it reads or sets.

| variable | holds | where it is not set | read in |
|---|---|---|---|
| SQFT_ADAPTERS_DIR | the folder whose subfolders are adapters | adapters have no names | API server |
| SQFT_ADAPTER_COPIES | the folder for private copies of adapters | the system's temporary folder | API server |
| SQFT_LORA_CPU | 0: vLLM's own LoRA on the CPU | ours | worker |
| SQFT_VLLM_OPERATOR | sparse, vllm or torch: how INT4 layers are computed | the fastest that fits | worker |
| SQFT_PLANE_CACHE_BYTES | bytes of memory for value planes, in each worker | 1 GiB | worker |
| SQFT_PLANE_DIR | the folder for built value planes | a temporary folder, gone with the server | API server, worker |

`sqft serve` sets them from its options; children of a process inherit them. Workers on other machines must see the same
folders. Imports neither torch nor vLLM: `sqft doctor` reads them, too.
"""

from __future__ import annotations

import os

from sqft_plugins.errors import SQFTError, nearest

ADAPTERS_DIR = "SQFT_ADAPTERS_DIR"
ADAPTER_COPIES = "SQFT_ADAPTER_COPIES"
LORA_CPU = "SQFT_LORA_CPU"
OPERATOR = "SQFT_VLLM_OPERATOR"
OPERATORS = ("sparse", "vllm", "torch")
"""The fastest first, where zeros pay."""
PLANE_CACHE_BYTES = "SQFT_PLANE_CACHE_BYTES"
PLANE_DIR = "SQFT_PLANE_DIR"

DEFAULT_PLANE_BYTES = 1 << 30

VLLM_PLUGINS = "VLLM_PLUGINS"
"""The names of the plug-ins that vLLM loads, all of them where it is unset."""
VLLM_KEY = "VLLM_API_KEY"
VLLM_W4A8 = "VLLM_CPU_INT4_W4A8"
"""1, vLLM's default, rounds activations to 8 bits where the CPU has AMX."""
VLLM_RUNTIME_LORA = "VLLM_ALLOW_RUNTIME_LORA_UPDATING"
"""1: vLLM resolves names of adapters, and opens /v1/load_lora_adapter."""
VLLM_UNCHECKED_NAMES = "VLLM_SKIP_MODEL_NAME_VALIDATION"
"""1: every model name that is not loaded yet means the base."""
VLLM_V2_RUNNER = "VLLM_USE_V2_MODEL_RUNNER"
"""0: vLLM's first model runner, also where it would take its second, which needs Triton."""
VLLM_SOCKETS = "VLLM_RPC_BASE_PATH"
"""Where the sockets between vLLM's processes lie, which a killed server leaves behind."""
PROMETHEUS = "PROMETHEUS_MULTIPROC_DIR"
"""Where the processes of a server leave their counters; it must be empty at the start."""


def plane_bytes() -> int:
    """The budget of SQFT_PLANE_CACHE_BYTES. Raises SQFTError for a value that is no number of bytes."""
    text = os.environ.get(PLANE_CACHE_BYTES)
    if not text:
        return DEFAULT_PLANE_BYTES
    if not text.isdigit():
        raise SQFTError(f"{PLANE_CACHE_BYTES}={text} is no number of bytes: write such as {DEFAULT_PLANE_BYTES}")
    return int(text)


def forced_operator() -> str | None:
    """The value of SQFT_VLLM_OPERATOR, None where it is unset. Raises SQFTError for an unknown operator."""
    forced = os.environ.get(OPERATOR) or None
    if forced is not None and forced not in OPERATORS:
        raise SQFTError(f"{OPERATOR}={forced} is no operator: {nearest(forced, OPERATORS)}")
    return forced
