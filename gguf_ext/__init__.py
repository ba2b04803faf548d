"""GGUF: sparse INT4 models as files that llama.cpp runs, with the very same weights.

Importing this package imports neither `gguf` nor `llama_cpp`; both are imported when they are used.
"""

from __future__ import annotations

import importlib
from typing import Any

_PLACES = {
    "ExportReport": "gguf_ext.export",
    "compare_logits": "gguf_ext.compare",
    "export_gguf": "gguf_ext.export",
    "export_model": "gguf_ext.export",
    "export_lora": "gguf_ext.lora",
    "GGUFError": "gguf_ext.errors",
    "GGUFFile": "gguf_ext.reader",
    "LlamaCpp": "gguf_ext.runtime",
    "LlamaSession": "gguf_ext.runtime",
    "load": "gguf_ext.llama",
    "VerifyReport": "gguf_ext.verify",
    "verify_gguf": "gguf_ext.verify",
}
__all__ = sorted(_PLACES)


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'gguf_ext' has no attribute {name!r}")
    return getattr(importlib.import_module(_PLACES[name]), name)
