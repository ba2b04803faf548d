"""Whether llama.cpp ends the process that loads a file."""

from __future__ import annotations

import os
import subprocess
import sys

SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
DECODER = {**SIZES, "num_key_value_heads": 2, "max_position_embeddings": 512}
FAMILIES = {
    "llama": DECODER,
    "mistral": DECODER,
    "qwen2": DECODER,
    "qwen3": {**DECODER, "head_dim": 16},
    "phi3": DECODER,
    "gemma3_text": {**DECODER, "head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 8},
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128},
    "bloom": {"hidden_size": 64, "n_layer": 2, "n_head": 4},
}


PROBE = """
import ctypes, os, sys
import llama_cpp as c
c.llama_backend_init()
def run(path):
    model = c.llama_model_load_from_file(path.encode(), c.llama_model_default_params())
    if not model: return
    vocab, ids = c.llama_model_get_vocab(model), (c.llama_token * 999)()
    c.llama_tokenize(vocab, b"a \\xff", 3, ids, 999, True, True)
    settings = c.llama_context_default_params(); settings.n_ctx, settings.n_threads = 64, 1
    context = c.llama_init_from_model(model, settings)
    if context: c.llama_decode(context, c.llama_batch_get_one((c.llama_token * 3)(4, 5, 6), 3))
for path in sys.argv[1:]:
    pid = os.fork()
    if not pid:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1); os.dup2(1, 2)
        run(path); os._exit(0)
    print(int(os.WIFSIGNALED(os.waitpid(pid, 0)[1])))
"""


def dies(*files):
    """Of each file, whether llama.cpp ends the process that loads and runs it."""
    settings = {**os.environ, "GGML_NO_BACKTRACE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", PROBE, *map(str, files)], env=settings, capture_output=True, text=True)
    found = [line == "1" for line in done.stdout.split()]
    assert len(found) == len(files), done.stderr[-500:]
    return found
