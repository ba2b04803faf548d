"""Files of architectures that were never compared: what ends a process is found out in another one.

python -m pytest tests/gguf_ext/run/test_first_load.py
"""

from __future__ import annotations

import pytest
from helpers_gguf import rewritten

from gguf_ext import export_gguf, load
from gguf_ext.errors import RuntimeFailedError, UnloadableFileError
from gguf_ext.run.session import LlamaSession

pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
DEADLY = {
    "smallthinker": {},
    "phimoe": {"phimoe.attention.head_count": (0, "uint32"), "phimoe.attention.head_count_kv": (0, "uint32")},
}


@pytest.fixture(scope="module")
def model(tiny_llama, tmp_path_factory):
    target = tmp_path_factory.mktemp("foreign") / "model.gguf"
    export_gguf(tiny_llama, target)
    return target


@pytest.mark.parametrize("name", DEADLY)
def test_a_foreign_file_that_ends_a_process_is_refused_through_every_door(name, model, tmp_path):
    file = rewritten(model, tmp_path / "deadly.gguf", DEADLY[name], name)
    for door in (LlamaSession, load):
        with pytest.raises(UnloadableFileError, match=rf"architecture {name}.*ends the process \(SIG(ABRT|FPE)\)"):
            door(file)


def test_a_foreign_file_that_llama_cpp_runs_is_loaded(model, tmp_path, capfd):
    session = LlamaSession(rewritten(model, tmp_path / "xverse.gguf", {}, "xverse"))
    session.close()
    assert "architecture xverse was not compared" in capfd.readouterr().err


def test_an_architecture_that_llama_cpp_does_not_know_is_its_own_refusal(model, tmp_path):
    with pytest.raises(RuntimeFailedError, match="unknown model architecture"):
        LlamaSession(rewritten(model, tmp_path / "none.gguf", {}, "nosucharch"))
