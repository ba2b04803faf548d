"""Tiny Llamas as GGUF files with sparse Q4_0 weights, and scripts that run them in a process of their own: the library
goes into llama.cpp once a process, before its first model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np

HIDDEN, INTERMEDIATE, LAYERS, HEADS, GROUPS, VOCABULARY = 256, 384, 2, 8, 4, 320
SHAPES = {
    "attn_q": (HIDDEN, HIDDEN),
    "attn_k": (HIDDEN // HEADS * GROUPS, HIDDEN),
    "attn_v": (HIDDEN // HEADS * GROUPS, HIDDEN),
    "attn_output": (HIDDEN, HIDDEN),
    "ffn_gate": (INTERMEDIATE, HIDDEN),
    "ffn_up": (INTERMEDIATE, HIDDEN),
    "ffn_down": (HIDDEN, INTERMEDIATE),
}
"""[out, in] of the linears of a layer."""
LINEARS = LAYERS * len(SHAPES)
BEGIN = """
import ctypes, json, os, sys
from pathlib import Path
import numpy as np
import llama_cpp as c
from gguf_ext import backend
quiet = c.llama_log_callback(lambda *_: None)  # C holds a bare pointer
c.llama_log_set(quiet, ctypes.c_void_p(0))
c.llama_backend_init()

def model_of(path, **options):
    settings = c.llama_model_default_params()
    for name, value in options.items(): setattr(settings, name, value)
    model = c.llama_model_load_from_file(str(path).encode(), settings)
    assert model, path
    return model

def context_of(model, threads=1, length=128):
    settings = c.llama_context_default_params()
    settings.n_ctx = settings.n_batch = settings.n_ubatch = length
    settings.n_threads = settings.n_threads_batch = threads
    settings.type_k = settings.type_v = 0  # float32
    settings.flash_attn_type = 0
    return c.llama_init_from_model(model, settings)

def logits(context, tokens, first=0):
    count, size = len(tokens), c.llama_vocab_n_tokens(c.llama_model_get_vocab(c.llama_get_model(context)))
    batch = c.llama_batch_init(count, 0, 1)
    batch.n_tokens = count
    for i, token in enumerate(tokens):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, first + i, 1, 1
        batch.seq_id[i][0] = 0
    assert c.llama_decode(context, batch) == 0
    found = np.ctypeslib.as_array(c.llama_get_logits(context), (count, size)).copy()
    c.llama_batch_free(batch)
    return found
"""


def codes_of(rng, out, columns, density, low=0, high=16):
    """Codes uint8 [out, in] of which `density` are not 8."""
    codes = rng.integers(low, high, (out, columns), np.uint8)
    codes[codes == 8] = 7
    codes[rng.random((out, columns)) >= density] = 8
    return codes


def q4_0(codes, scales):
    """codes [out, in], fp16 scales [out, groups] → blocks [out, in / 32 * 18]."""
    out, columns = codes.shape
    blocks = np.empty((out, columns // 32, 18), np.uint8)
    each = np.repeat(scales.astype(np.float16), columns // 32 // scales.shape[1], 1)
    blocks[..., :2] = each[..., None].view(np.uint8)
    pairs = codes.reshape(out, -1, 2, 16)
    blocks[..., 2:] = pairs[..., 0, :] | pairs[..., 1, :] << 4
    return blocks.reshape(out, -1)


def write_llama(path, density=0.5, group=64, seed=0, dense=()):
    """A Llama without a tokenizer → its weights, float32, by name. dense: linears of which all are kept."""
    rng = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(LAYERS)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INTERMEDIATE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(GROUPS)
    writer.add_context_length(512)
    writer.add_vocab_size(VOCABULARY)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("no_vocab")
    weights = {}
    for name in ("token_embd", "output"):
        weights[name] = rng.standard_normal((VOCABULARY, HIDDEN)).astype(np.float32)
        writer.add_tensor(f"{name}.weight", weights[name])
    norms = [f"blk.{layer}.{name}" for layer in range(LAYERS) for name in ("attn_norm", "ffn_norm")]
    for name in ("output_norm", *norms):
        writer.add_tensor(f"{name}.weight", np.ones(HIDDEN, np.float32))
    for layer in range(LAYERS):
        for name, (out, columns) in SHAPES.items():
            full = f"blk.{layer}.{name}"
            codes = codes_of(rng, out, columns, 1.0 if full in dense else density)
            scales = (0.01 * (1 + rng.random((out, columns // group)))).astype(np.float16)
            weights[full] = (codes.astype(np.float32) - 8) * np.repeat(scales.astype(np.float32), group, 1)
            writer.add_tensor(f"{full}.weight", q4_0(codes, scales), raw_dtype=gguf.GGMLQuantizationType.Q4_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights


def run(code, *arguments, **environment):
    """What the script, behind BEGIN, prints last as JSON. environment: more variables."""
    done = run_script(BEGIN + code, *arguments, **environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def run_script(code, *arguments, **environment):
    root = str(Path(__file__).parents[2])
    settings = {**os.environ, "OMP_NUM_THREADS": "2", "PYTHONPATH": root, "GGML_NO_BACKTRACE": "1", **environment}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, env=settings, capture_output=True, text=True, timeout=300)
