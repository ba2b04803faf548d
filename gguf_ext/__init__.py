"""GGUF: sparse INT4 models as files that llama.cpp runs, with the very same weights.

Importing this package imports neither `gguf` nor `llama_cpp`; both are imported when they are used.

    export      `export_gguf`, `export_model`: plan, write, reopen, compare, rename
    quantize/   `quantize_gguf`: a float model in llama.cpp's types, by llama.cpp's quantizer
    proof       `sqft verify --adapter`: the weights of the last training step are those that llama.cpp computes with
    estimate    how large a file would be, from headers alone
    layout      which tensor stands where, by a table or by a template
    described   what the file says beside its weights
    arch/       the architectures, one short table each: **to add one, copy `arch/qwen.py`**
    tokenizer/  the tokenizer of a model as llama.cpp's
    hyperparameters/  what llama.cpp reads, with its defaults, and what config.json says of it
    write/      from a model folder to the bytes of a file
    template/   `--template-gguf`: models without a table
    merge/      an adapter into a file: other codes, all else as it is
    verify/     `sqft verify`: whether a file is the model
    lora/       `sqft export gguf-lora`
    backend/    our sparse kernels inside llama.cpp: `enable`
    run/        files in llama.cpp: `load`, `LlamaSession`, `sqft chat`
    cli/        the verbs
    settings    the options of `sqft export gguf`
    parts       how the parts of a file are named
    reader      `GGUFFile`: a file, read and checked
    model/      a file as a model to train: `GGUFModel`
    header      what a file says before its first tensor
    blocks/     the types of llama.cpp: codes and scales ↔ raw bytes
    ggml        ggml's own conversions, called in llama.cpp's library
    memory      a model in memory, read as if it were a folder
    inspector   `sqft inspect FILE.gguf`
    checks      rows for `sqft doctor`
    errors      one class a case
    plugin      what sqft finds through its hooks

`arch/__init__` and the packages' own docstrings go on from here.
"""

from __future__ import annotations

from sqft_plugins.lazy import lazy

_HOMES = {
    "ExportReport": "export",
    "disable": "backend.load",
    "enable": "backend.load",
    "compare_logits": "verify.logits",
    "export_gguf": "export",
    "export_model": "export",
    "export_lora": "lora.export",
    "GGUFError": "errors",
    "GGUFFile": "reader",
    "LlamaCpp": "run.session",
    "LlamaSession": "run.session",
    "load": "run.llama",
    "quantize_gguf": "quantize.run",
    "VerifyReport": "verify.tensors",
    "verify_gguf": "verify.tensors",
}
__all__ = sorted(_HOMES)

__getattr__ = lazy(__name__, _HOMES)
