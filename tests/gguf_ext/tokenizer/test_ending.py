"""At which tokens a text ends: the file's own list is what llama.cpp stops at, and the model's is in it."""

from __future__ import annotations

import json

import pytest
import torch
from tokenizers import AddedToken
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from gguf_ext import LlamaSession, export_gguf, export_model, verify_gguf
from gguf_ext.reader import GGUFFile
from gguf_ext.tokenizer.ending import ENDS, INFILL, file_ends
from gguf_ext.tokenizer.keys import id_key

STOPS = [f"<|stop{index}|>" for index in range(6)]


@pytest.fixture(scope="module")
def save(make, tmp_path_factory):
    """A tiny model whose tokenizer has `STOPS` and the texts that are given."""

    def write(texts=(), config=None, generation=None):
        folder = tmp_path_factory.mktemp("ending") / "model"
        tokenizer = make["byte_level"]()
        tokenizer.add_tokens([AddedToken(text, special=True, normalized=False) for text in [*STOPS, *texts]])
        ids = {"vocab_size": len(tokenizer), "bos_token_id": 2, "eos_token_id": config}
        sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(**ids, **sizes, num_attention_heads=2, num_key_value_heads=2))
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        (folder / "generation_config.json").unlink(missing_ok=True)
        if generation is not None:
            (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": generation}))
        return folder, {text: tokenizer.convert_tokens_to_ids(text) for text in [*STOPS, *texts]}

    return write


def _stops(file):
    """What llama.cpp itself says."""
    with LlamaSession(file, threads=1) as session:
        is_end = session._c.llama_vocab_is_eog
        return {token for token in range(session.vocabulary_size) if is_end(session._vocab, token)}


@pytest.mark.parametrize(
    ("config", "generation", "wanted"),
    [
        (1, None, {1}),
        ([1, 503], None, {1, 503}),
        ([503, 1], None, {1, 503}),
        (1, [1, 504], {1, 504}),
        ([1, 503], [1, 504], {1, 504}),  # `generate` goes by generation_config.json alone
        (1, 505, {1, 505}),
        (None, [503, 504, 505], {1, 503, 504, 505}),
        ([1, 10**6, -1], None, {1}),  # no row, so no text ends there
        (1, [1, 0, 2], {0, 1, 2}),  # padding and the begin of a text can be ends too
        (503, None, {1, 503}),  # the tokenizer's own end token ends a text too
    ],
)
def test_llama_cpp_stops_at_every_end_token_of_the_model(save, tmp_path, config, generation, wanted):
    folder, _ = save(config=config, generation=generation)
    export_gguf(folder, tmp_path / "model.gguf")
    assert _stops(tmp_path / "model.gguf") == wanted
    assert verify_gguf(folder, tmp_path / "model.gguf").exact


def test_an_end_token_without_a_place_is_told(save, tmp_path, capsys):
    folder, ids = save(config=[1, 502, 503, 504, 505])
    export_gguf(folder, tmp_path / "model.gguf")
    assert "it will not stop at '<|stop3|>'" in capsys.readouterr().err
    assert _stops(tmp_path / "model.gguf") == {1, *(ids[text] for text in STOPS[:3])}


def test_texts_that_llama_cpp_knows_take_no_place(save, tmp_path, capsys):
    texts = ["<|eot_id|>", "<|im_end|>", "<end_of_turn>"]
    folder, ids = save(texts)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, *(ids[t] for t in texts), 502]}))
    export_gguf(folder, tmp_path / "model.gguf")
    assert "not stop" not in capsys.readouterr().err
    assert _stops(tmp_path / "model.gguf") == {1, 502, *(ids[text] for text in texts)}
    assert GGUFFile(tmp_path / "model.gguf").metadata[id_key("eot")] == 502


@pytest.mark.parametrize(
    "texts",
    [
        sorted(ENDS - {"<eos>", "<|tool_response>", "<|call|>", "<|calls|>"}),
        ["<|return|>", "<|call|>", "<|end|>"],
        ["<|flush|>", "<|calls|>", "<|end|>"],
        ["<|tool_response>", "</s>"],
        *[[text] for texts in INFILL.values() for text in texts],
        ["<|end|>", "<|call|>", "nothing"],
    ],
    ids=lambda texts: texts[0],
)
def test_the_list_read_from_a_file_is_that_of_llama_cpp(save, tmp_path, texts):
    folder, _ = save(texts, config=[1, 502, 503, 504])
    export_gguf(folder, tmp_path / "model.gguf")
    assert file_ends(GGUFFile(tmp_path / "model.gguf").metadata) == _stops(tmp_path / "model.gguf")


def test_a_model_in_memory_ends_as_its_folder_does(save, tmp_path):
    folder, _ = save(config=1, generation=[1, 503, 504])
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    export_model(model, tokenizer, tmp_path / "memory.gguf", name="model")
    assert _stops(tmp_path / "memory.gguf") == {1, 503, 504}


def test_verify_tells_a_file_that_stops_elsewhere(save, tmp_path):
    folder, _ = save(config=[1, 503])
    export_gguf(folder, tmp_path / "model.gguf")
    for ids in ([1], [1, 504], [1, 503, 504]):
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}))
        found = verify_gguf(folder, tmp_path / "model.gguf")
        assert [item.name for item in found.differences] == ["end tokens"]


def test_a_session_stops_where_the_model_does(save, tmp_path):
    """The token that comes first, whichever it is, is made the second of two end tokens."""
    folder, _ = save(config=1)
    export_gguf(folder, tmp_path / "one.gguf", float_type="f32")
    with LlamaSession(tmp_path / "one.gguf", threads=1) as session:
        (going_on,) = session.generate(["The fox"], 4)
        first = int(list(session.logits(session.tokenize("The fox")))[-1][-1].argmax())
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, first]}))
    export_gguf(folder, tmp_path / "two.gguf", float_type="f32")
    with LlamaSession(tmp_path / "two.gguf", threads=1) as session:
        (stopped,) = session.generate(["The fox"], 4)
    assert (stopped, bool(going_on)) == ("", True)
