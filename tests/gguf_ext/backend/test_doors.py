"""The ways in, and what must go on working: with and without mmap, prompts and single tokens, several contexts and
threads, adapters that are switched, files that are not sparse.

    pytest tests/gguf_ext/backend/test_doors.py
"""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
from click.testing import CliRunner
from helpers_backend import LAYERS, LINEARS, run, run_script, write_llama

from gguf_ext import GGUFError
from gguf_ext.backend import load as door
from gguf_ext.backend.load import FILE
from gguf_ext.cli.backend_path import backend_path_command

pytest.importorskip("llama_cpp")
pytestmark = pytest.mark.usefixtures("library")
TOKENS = "[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8]"


@pytest.fixture(scope="module")
def sparse(tmp_path_factory):
    path = tmp_path_factory.mktemp("sparse") / "model.gguf"
    write_llama(path)
    return path


def test_prompts_tokens_threads_contexts_and_mmap_all_give_the_same(sparse):
    found = run(
        f"""
tokens = {TOKENS}
assert backend.enable(density=1.0).active
whole, found = None, {{}}
for mmap in (True, False):
    model = model_of(sys.argv[1], use_mmap=mmap)
    one, two = context_of(model, threads=1), context_of(model, threads=2)
    prompt = logits(one, tokens)
    whole = prompt if whole is None else whole
    single = np.concatenate([logits(two, [token], at) for at, token in enumerate(tokens)])
    found[str(mmap)] = [float(np.abs(part - whole).max() / np.abs(whole).max()) for part in (prompt, single)]
    held = backend.held()
    c.llama_free(one); c.llama_free(two); c.llama_model_free(model)
found["held"], found["after"] = held, backend.held()
print(json.dumps(found))
""",
        sparse,
    )
    for prompt, single in (found["True"], found["False"]):
        assert prompt < 1e-6
        assert single < 1e-4  # the attention sums in another order
    assert found["held"]["tensors"] == LINEARS
    assert found["held"]["packed_bytes"] < found["held"]["source_bytes"]
    assert found["held"]["kept"] / found["held"]["weights"] == pytest.approx(0.5, abs=0.01)
    assert (found["after"]["tensors"], found["after"]["packed_bytes"]) == (0, 0)  # freed with the model
    assert found["after"]["matmuls"] == 2 * (1 + 12) * LINEARS


def test_threads_of_python_may_run_two_models_at_once(sparse):
    found = run(
        f"""
from threading import Thread
tokens = {TOKENS}
backend.enable(density=1.0)
models = [model_of(sys.argv[1]) for _ in range(2)]
alone = [logits(context_of(model, threads=2), tokens) for model in models]
both = [None, None]
def work(i):
    context = context_of(models[i], threads=2)
    for _ in range(20):
        c.llama_memory_clear(c.llama_get_memory(context), True)
        both[i] = logits(context, tokens)
threads = [Thread(target=work, args=(i,)) for i in range(2)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(json.dumps([bool(np.array_equal(a, b)) for a, b in zip(alone, both)]))
""",
        sparse,
    )
    assert found == [True, True]


def test_a_tensor_over_the_density_stays_llama_cpp_s_own(tmp_path):
    dense = {f"blk.{layer}.ffn_down" for layer in range(LAYERS)}
    write_llama(tmp_path / "model.gguf", density=0.4, dense=dense)
    code = """
backend.enable(density=float(sys.argv[2]))
model = model_of(sys.argv[1])
print(json.dumps(backend.held()["tensors"]))
"""
    assert run(code, tmp_path / "model.gguf", 0.5) == LINEARS - len(dense)
    assert run(code, tmp_path / "model.gguf", 0.3) == 0
    assert run(code, tmp_path / "model.gguf", 1.0) == LINEARS


def test_a_file_that_is_not_sparse_gives_the_same_bits_as_without_the_library(tmp_path):
    write_llama(tmp_path / "model.gguf", density=1.0)
    code = f"""
if sys.argv[2] == "on": assert backend.enable(density=0.9).active
model = model_of(sys.argv[1])
np.save(sys.argv[3], logits(context_of(model, threads=2), {TOKENS}))
print(json.dumps(backend.held()["tensors"]))
"""
    for state in ("on", "off"):
        assert run(code, tmp_path / "model.gguf", state, tmp_path / f"{state}.npy") == 0
    assert np.array_equal(np.load(tmp_path / "on.npy"), np.load(tmp_path / "off.npy"))


def test_models_before_enable_and_after_disable_are_llama_cpp_s(sparse):
    found = run(
        """
import gguf_ext
from gguf_ext.backend import install
found = []
install()
models = [model_of(sys.argv[1])]
found.append(backend.held()["tensors"])
gguf_ext.enable(density=1.0)
models.append(model_of(sys.argv[1]))
found.append(backend.held()["tensors"])
with backend.choosing(sparse=False): models.append(model_of(sys.argv[1]))
found.append(backend.held()["tensors"])
gguf_ext.disable()
models.append(model_of(sys.argv[1]))
found.append(backend.held()["tensors"])
print(json.dumps(found))
""",
        sparse,
    )
    assert found == [0, LINEARS, LINEARS, LINEARS]


def test_two_open_files_that_disagree_leave_the_tensor_to_llama_cpp(tmp_path, sparse):
    """A process that holds another file open while it loads: nobody can say which of them a name means."""
    write_llama(tmp_path / "other.gguf", density=1.0)
    found = run(
        """
backend.enable(density=0.9)
with open(sys.argv[2], "rb"): model = model_of(sys.argv[1])
print(json.dumps(backend.held()))
""",
        sparse,
        tmp_path / "other.gguf",
    )
    assert found["tensors"] == 0
    assert found["ambiguous"] == LINEARS


def test_enable_after_the_first_model_is_one_line(sparse):
    done = run_script(
        """
import sys, llama_cpp as c
c.llama_model_load_from_file(sys.argv[1].encode(), c.llama_model_default_params())
import gguf_ext
print(gguf_ext.enable().why)
gguf_ext.enable()
""",
        sparse,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "llama.cpp has loaded a model before: load this library first"
    lines = [line for line in done.stderr.splitlines() if "without the sparse kernels" in line]
    assert len(lines) == 1


def test_without_a_kernel_llama_cpp_computes_alone(sparse):
    code = """
enabled = backend.enable(density=1.0)
model = model_of(sys.argv[1])
print(json.dumps([enabled.why, backend.held()["tensors"]]))
"""
    assert run(code, sparse, SQFT_KERNEL="torch") == ["SQFT_KERNEL=torch asks for no compiled kernel", 0]
    why, count = run(code, sparse, SQFT_KERNELS="/no/such/library.so")
    assert "the kernels cannot be loaded" in why
    assert count == 0


def test_another_ggml_is_told_and_nothing_is_taken(sparse, tmp_path):
    """The library asks ggml for its version: here a library in front of it answers with another."""
    fake = tmp_path / "fake.c"
    fake.write_text('const char* ggml_version(void) { return "0.99.1"; }')
    target = tmp_path / "libggml-0.so"
    if not shutil.which("cc") or os.system(f"cc -shared -fPIC {fake} -o {target}"):
        pytest.skip("no C compiler")
    code = """
enabled = backend.enable(density=1.0)
model = model_of(sys.argv[1])
print(json.dumps([enabled.why, backend.held()["tensors"]]))
"""
    why, count = run(code, sparse, LD_PRELOAD=str(target))
    assert why == "ggml 0.99.1 was not looked at, 0.25 was"
    assert count == 0


def test_programs_of_llama_cpp_load_it_by_ggml_backend_path(sparse):
    """No call of ours: as llama-server does, the program loads what the variable names."""
    done = run_script(
        """
import ctypes, sys
from pathlib import Path
import llama_cpp as c
files = Path(c.__file__).parent.glob("lib/libllama.*")
ctypes.CDLL(next(str(file) for file in files if file.suffix in (".so", ".dylib"))).ggml_backend_load_all()
library = ctypes.CDLL(sys.argv[2])
library.sqft_ggml_density(ctypes.c_double(1.0))
model = c.llama_model_load_from_file(sys.argv[1].encode(), c.llama_model_default_params())
print(library.sqft_ggml_count(2))
""",
        sparse,
        FILE,
        GGML_BACKEND_PATH=str(FILE),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(LINEARS)]


def test_the_command_prints_where_it_is(monkeypatch, tmp_path):
    def call(*arguments):
        return CliRunner().invoke(backend_path_command, arguments)

    assert call().stdout.strip() == str(FILE)
    assert json.loads(call("--json").stdout) == {"path": str(FILE)}
    monkeypatch.setattr("gguf_ext.backend.load.FILE", tmp_path / "libggml_sqft.so")
    assert "was not built" in str(call().exception)


@pytest.mark.parametrize("density", [-0.1, 1.5, float("nan")])
def test_a_density_that_is_no_share_is_refused(density):
    with pytest.raises(GGUFError, match="is no share"):
        door.enable(density)
