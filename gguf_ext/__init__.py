"""GGUF: sparse INT4 models as files that llama.cpp runs, with the very same weights.

Importing this package imports neither `gguf` nor `llama_cpp`; both are imported when they are used.

    export      `export_gguf`, `export_model`: plan, write, reopen, compare, rename
    layout      which tensor stands where, by a table or by a template
    described   what the file says beside its weights
    arch/       the architectures, one short table each: **to add one, copy `arch/qwen.py`**
    tokenizer/  the tokenizer of a model as llama.cpp's
    hyperparameters/  what llama.cpp reads, with its defaults, and what config.json says of it
    write/      from a model folder to the bytes of a file
    template/   `--template-gguf`: models without a table
    verify/     `sqft verify`: whether a file is the model
    lora/       `sqft export gguf-lora`
    run/        files in llama.cpp: `load`, `LlamaSession`, `sqft chat`
    cli/        the verbs
    settings    the options of `sqft export gguf`
    parts       how the parts of a file are named
    reader      `GGUFFile`: a file, read and checked
    blocks      Q4_0, Q5_0, Q8_0: steps and scales ↔ raw bytes
    memory      a model in memory, read as if it were a folder
    inspector   `sqft inspect FILE.gguf`
    checks      rows for `sqft doctor`
    errors      one class a case
    plugin      what sqft finds through its hooks

`arch/__init__` and the packages' own docstrings go on from here.
"""

from __future__ import annotations

import importlib
from typing import Any

_PLACES = {
    "ExportReport": "gguf_ext.export",
    "compare_logits": "gguf_ext.verify.logits",
    "export_gguf": "gguf_ext.export",
    "export_model": "gguf_ext.export",
    "export_lora": "gguf_ext.lora.export",
    "GGUFError": "gguf_ext.errors",
    "GGUFFile": "gguf_ext.reader",
    "LlamaCpp": "gguf_ext.run.session",
    "LlamaSession": "gguf_ext.run.session",
    "load": "gguf_ext.run.llama",
    "VerifyReport": "gguf_ext.verify.tensors",
    "verify_gguf": "gguf_ext.verify.tensors",
}
__all__ = sorted(_PLACES)


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'gguf_ext' has no attribute {name!r}")
    return getattr(importlib.import_module(_PLACES[name]), name)
