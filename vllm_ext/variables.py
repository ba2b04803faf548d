"""The environment variables of this package. Imports neither torch nor vLLM: `sqft doctor` reads them, too."""

from __future__ import annotations

import os

from sqft_plugins.errors import SQFTError, nearest

OPERATOR = "SQFT_VLLM_OPERATOR"
"""The operator of sparse INT4 layers, one of OPERATORS. Unset: the fastest that fits."""
OPERATORS = ("sparse", "vllm", "torch")
"""The fastest first, where zeros pay."""
LORA_CPU = "SQFT_LORA_CPU"
"""0 leaves vLLM's own LoRA on the CPU in place."""
ADAPTERS_DIR = "SQFT_ADAPTERS_DIR"
"""The directory of the adapters that are served by name."""
ADAPTER_COPIES = "SQFT_ADAPTER_COPIES"
"""Where the copies go that vLLM reads. Default: the system's temporary folder. Workers on other machines must see it
too."""
PLANE_CACHE_BYTES = "SQFT_PLANE_CACHE_BYTES"
"""The memory that value planes may take."""
PLANE_DIR = "SQFT_PLANE_DIR"
"""The private folder of the value planes. Default: a temporary one for each server. Workers on other machines must see
it too."""


def forced_operator() -> str | None:
    """The value of SQFT_VLLM_OPERATOR, None where it is unset. Raises SQFTError for an unknown operator."""
    forced = os.environ.get(OPERATOR) or None
    if forced is not None and forced not in OPERATORS:
        raise SQFTError(f"{OPERATOR}={forced} is no operator: {nearest(forced, OPERATORS)}")
    return forced
