"""The two ways to load a file: what an error message tells of llama.cpp's log, which is the cause, and nothing that is
about an earlier call; and what of the file stays in Python."""

from __future__ import annotations

import gc
import weakref

import pytest

import gguf_ext
from gguf_ext import GGUFError, LlamaSession, export_gguf
from gguf_ext.errors import RuntimeFailedError
from gguf_ext.layout import find_layout
from gguf_ext.reader import GGUFFile
from gguf_ext.run.backend import CONTINUED, ERROR, WARNING, _keep, forget_errors, last_error
from gguf_ext.write.file import write_tensors
from gguf_ext.write.plan import plan
from sqft_plugins.checkpoint import ModelFolder

INFO = 2


@pytest.fixture(autouse=True)
def clean():
    forget_errors()


def test_the_cause_is_told_and_not_what_came_of_it():
    for line in (
        "model_load: error loading model: missing tensor 'x'\n",
        "load_from_file_impl: failed to load model\n",
    ):
        _keep(ERROR, line)
    assert last_error() == "model_load: error loading model: missing tensor 'x'"


def test_causes_come_in_order_each_once_and_before_warnings():
    for level, line in ((ERROR, "first"), (WARNING, "a warning"), (ERROR, "second"), (ERROR, "first"), (INFO, "info")):
        _keep(level, line)
    assert last_error() == "first; second"


def test_a_lone_outcome_or_a_warning_is_better_than_nothing():
    assert last_error() == "no reason given"
    _keep(WARNING, "it is slow")
    assert last_error() == "it is slow"
    _keep(ERROR, "failed to load model")
    assert last_error() == "failed to load model"
    forget_errors()
    assert last_error() == "no reason given"


def test_a_line_in_pieces_is_one_line_and_dots_of_others_are_none_of_it():
    _keep(ERROR, "no room for")
    _keep(CONTINUED, " 5 cells\n")
    _keep(INFO, "loading")
    _keep(CONTINUED, ".....")
    assert last_error() == "no room for 5 cells"
    _keep(ERROR, "x" * 500 + "\n")
    assert len(last_error()) == 301


@pytest.fixture(scope="module")
def refused(llama, tmp_path_factory):
    """A file that reads well and that llama.cpp refuses: its pre-tokenizer has a name that nobody knows."""
    file = tmp_path_factory.mktemp("refused") / "model.gguf"
    folder = ModelFolder(llama)
    layout = find_layout(folder)
    export_gguf(llama, file)
    from gguf_ext.arch import Entry
    from gguf_ext.reader import GGUFFile

    read = GGUFFile(file)
    entries = [Entry(key, value, read.kinds[key]) for key, value in read.metadata.items()]
    entries = [entry._replace(value="of-nobody") if entry.key.endswith(".pre") else entry for entry in entries]
    entries = [entry for entry in entries if entry.key != "general.architecture"]
    write_tensors(file, layout.architecture, entries, plan(folder, layout.tensors), folder)
    return file


@pytest.mark.parametrize("door", [LlamaSession, gguf_ext.load])
def test_a_file_that_llama_cpp_refuses_tells_why_through_every_door(refused, door):
    with pytest.raises(RuntimeFailedError, match="unknown pre-tokenizer type: 'of-nobody'") as caught:
        door(refused)
    assert "\n" not in str(caught.value)
    assert "failed to load model" not in str(caught.value)
    with pytest.raises(GGUFError, match="is not a file"):
        door(refused.with_name("none.gguf"))


@pytest.mark.parametrize("door", [LlamaSession, gguf_ext.load])
def test_the_tokens_of_the_file_are_not_kept_beside_llama_cpps(llama, tmp_path, monkeypatch, door):
    export_gguf(llama, tmp_path / "m.gguf")
    read = []

    def noted(file: GGUFFile, path) -> None:
        made(file, path)
        read.append(weakref.ref(file))

    made = GGUFFile.__init__
    monkeypatch.setattr(GGUFFile, "__init__", noted)
    opened = door(tmp_path / "m.gguf")
    gc.collect()
    assert [file() for file in read] == [None]
    opened.close()
