"""Files quantized by llama.cpp itself."""

from __future__ import annotations

import os

import llama_cpp

from gguf_ext import export_gguf


def quantized(folder, target, kind, **options):
    """The model folder as a file of llama.cpp's type `kind`, such as "Q4_K_M". options: of its quantizer."""
    source = target.with_name("f32.gguf")
    if not source.exists():
        export_gguf(folder, source, float_type="f32")
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.nthread, settings.ftype = 1, getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
    for name, value in options.items():
        setattr(settings, name, value)
    assert llama_cpp.llama_model_quantize(os.fsencode(source), os.fsencode(target), settings) == 0
    return target
