"""A model of ours with the sparse kernels: adapters and ranks that `gguf_ext.load` switches, and `sqft chat`.

pytest tests/gguf_ext/backend/test_adapters.py
"""

from __future__ import annotations

import json

import numpy as np
import pytest
from helpers_backend import run, run_script
from helpers_lora import save_adapter

from gguf_ext import export_gguf, export_lora

pytest.importorskip("llama_cpp")
pytestmark = pytest.mark.usefixtures("library")

SWITCHED = """
import gguf_ext
tokens = [5, 9, 21, 33, 47, 60, 72, 90]
options = dict(n_ctx=64, n_threads=2, n_threads_batch=2, logits_all=True, type_k=0, type_v=0)
files = {"r8": sys.argv[2], "r4": sys.argv[3]}
backend.enable(density=1.0)

def rows(llm):
    llm.reset()
    llm.eval(tokens)
    return llm.scores[: len(tokens)].copy()

found = {}
states = {"sparse": True, "stock": False}
models = {name: gguf_ext.load(sys.argv[1], files, sparse=state, **options) for name, state in states.items()}
held = backend.held()
settings = {"none": {}, "r8": {"r8": 1.0}, "r4": {"r4": 1.0}, "both": {"r8": 0.5, "r4": 0.5}, "again": {}}
for name, setting in settings.items():
    seen = {}
    for state, llm in models.items():
        llm.set_adapters(setting)
        seen[state] = rows(llm)
    found[name] = [float(np.abs(seen["sparse"] - seen["stock"]).max()), seen["sparse"].tolist()]
for llm in models.values(): llm.close()
print(json.dumps({"held": held, "found": found, "after": backend.held()}))
"""


@pytest.fixture(scope="module")
def place(int4, pruned, tmp_path_factory):
    """The INT4 folder as a file, and an adapter as LoRA files of two ranks."""
    root = tmp_path_factory.mktemp("switched")
    export_gguf(int4, root / "model.gguf")
    for rank in (8, 4):
        save_adapter(pruned, root / f"r{rank}", ["q_proj", "down_proj"], r=rank, lora_alpha=16)
        export_lora(root / f"r{rank}", root / f"r{rank}.gguf")
    return root


def test_adapters_and_ranks_switch_as_without_the_sparse_kernels(place):
    answer = run(SWITCHED, *(place / f"{name}.gguf" for name in ("model", "r8", "r4")))
    assert answer["held"]["tensors"] > 0
    assert answer["after"]["matmuls"] > 0
    assert answer["after"]["tensors"] == 0
    found = answer["found"]
    spread = max(max(row) - min(row) for row in found["none"][1])
    for name, (difference, _) in found.items():
        assert difference < 0.03 * spread, name  # llama.cpp rounds activations to 8 bits
    assert found["again"][1] == found["none"][1]
    assert np.abs(np.subtract(found["r8"][1], found["none"][1])).max() > 0.1 * spread  # the adapter does something


def test_chat_says_what_is_kept_sparse_and_no_sparse_keeps_nothing(place):
    code = """
import sys
import gguf_ext
from sqft_plugins.cli import main
gguf_ext.enable(density=1.0)
main(["chat", sys.argv[1], "--prompt", "screen", "--max-tokens", "4", "--json", *sys.argv[2:]])
"""
    for extra, sparse in (((), True), (("--no-sparse",), False)):
        done = run_script(code, place / "model.gguf", *extra)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["prompt"] == "screen"
        assert ("tensors are kept sparse" in done.stderr) == sparse
