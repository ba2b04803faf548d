"""A tokenizer.model, alone and in place of a tokenizer.json."""

from __future__ import annotations

import json
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import models
from transformers import PreTrainedTokenizerFast

from gguf_ext import GGUFError, LlamaSession, export_gguf, verify_gguf
from gguf_ext.errors import UnsupportedTokenizerError
from gguf_ext.reader import GGUFFile
from gguf_ext.tokenizer.read import read_vocabulary
from sqft_plugins.errors import CheckpointError

# --- tokenizer.model ---


@pytest.fixture(scope="module")
def sentencepiece_model(tmp_path_factory, texts):
    """A folder with a tokenizer.model trained here, and its processor."""
    sentencepiece = pytest.importorskip("sentencepiece")
    folder = tmp_path_factory.mktemp("spm")
    sentences = [line for line in texts[0].split("\n") if line.strip()] * 4
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(sentences),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=500,
        byte_fallback=True,
        character_coverage=0.98,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        user_defined_symbols=["<call>"],
        minloglevel=2,
    )
    return folder, sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


def test_ids_of_a_sentencepiece_model(sentencepiece_model, make, byte_level, tmp_path, texts):
    folder, processor = sentencepiece_model
    size = processor.get_piece_size()
    model = make["llama"](
        byte_level, tmp_path / "model", vocab_size=size, num_hidden_layers=1, bos_token_id=1, eos_token_id=2
    )
    for file in [*model.glob("token*"), *model.glob("chat*")]:
        file.unlink()
    shutil.copy(folder / "tokenizer.model", model)
    (model / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": True, "chat_template": "{{ x }}"}))
    report = export_gguf(model, tmp_path / "m.gguf")
    assert report.tokenizer == "llama/default"
    metadata = GGUFFile(tmp_path / "m.gguf").metadata
    assert metadata["tokenizer.ggml.tokens"][5] == processor.id_to_piece(5)
    assert metadata["tokenizer.ggml.scores"][size - 1] == processor.get_score(size - 1)
    assert metadata["tokenizer.chat_template"] == "{{ x }}"
    plain = [text for text in texts if "<" not in text and text]
    with LlamaSession(tmp_path / "m.gguf", threads=1) as session:
        different = [text for text in plain if session.tokenize(text) != [1, *processor.encode(text)]]
        assert session.tokenize("a <call>") == [1, *processor.encode("a <call>")]
    assert not different


def test_a_damaged_sentencepiece_model_is_refused(sentencepiece_model, tmp_path):
    data = (sentencepiece_model[0] / "tokenizer.model").read_bytes()
    for wrong in (b"", data[:1000], b"\xff" * 50, b"\x08\x01", b"\x0a\x03\x0a\x01\xff"):
        (tmp_path / "tokenizer.model").write_bytes(wrong)
        with pytest.raises(UnsupportedTokenizerError, match="is no sentencepiece model"):
            read_vocabulary(tmp_path, {"vocab_size": 470})
    for wrong in (
        b"\x0a\x02\x10\x01",
        b"\x0a\x05\x0a\x01a\x18\x63",
    ):  # fields that the format does not know are skipped
        (tmp_path / "tokenizer.model").write_bytes(wrong)
        with pytest.raises(UnsupportedTokenizerError, match="is a unigram model"):
            read_vocabulary(tmp_path, {"vocab_size": 470})


@given(patches=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=8))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_damage_of_a_sentencepiece_model_is_an_error_or_a_vocabulary(sentencepiece_model, tmp_path, patches):
    data = bytearray((sentencepiece_model[0] / "tokenizer.model").read_bytes())
    for place, value in patches:
        data[int(place * len(data))] = value
    (tmp_path / "tokenizer.model").write_bytes(data)
    try:
        found = read_vocabulary(tmp_path, {"vocab_size": 500})
    except GGUFError:
        return
    assert len(found.tokens) == len(found.scores) == len(found.kinds) == 500


def test_tokens_added_beyond_the_embedding_are_left_out_and_damaged_ones_named(sentencepiece_model, tmp_path):
    shutil.copy(sentencepiece_model[0] / "tokenizer.model", tmp_path)
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<far>": 10**12, "<below>": -1, "<in>": 505}))
    found = read_vocabulary(tmp_path, {"vocab_size": 510})
    assert len(found.tokens) == 510
    assert found.tokens[505] == "<in>"
    assert not {"<far>", "<below>"} & set(found.tokens)
    for wrong in ({"7": {}}, 3, {"x": {}}):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": wrong}))
        with pytest.raises(UnsupportedTokenizerError, match=r"added tokens of .* are damaged"):
            read_vocabulary(tmp_path, {"vocab_size": 510})
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json is not JSON"):
        read_vocabulary(tmp_path, {"vocab_size": 510})


def test_white_space_beside_the_tokens_of_a_sentencepiece_model_goes_by_their_flags(sentencepiece_model, tmp_path):
    shutil.copy(sentencepiece_model[0] / "tokenizer.model", tmp_path)
    added = {
        "3": {"content": "<call>", "rstrip": True},
        "2": {"content": "</s>", "special": True, "rstrip": True},
        "500": {"content": "<|endoftext|>", "special": True, "rstrip": False},
        "501": {"content": "<|user|>", "special": True, "rstrip": True},
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added}))
    assert read_vocabulary(tmp_path, {"vocab_size": 510}).rule == "phi-3"
    added["501"]["rstrip"] = added["3"]["rstrip"] = added["2"]["rstrip"] = False
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added}))
    assert read_vocabulary(tmp_path, {"vocab_size": 510}).rule == ""


def test_a_tokenizer_model_takes_the_place_of_a_json_that_llama_cpp_cannot_follow(
    make, folder_of, tmp_path, texts, capsys
):
    sentencepiece = pytest.importorskip("sentencepiece")
    sentences = [line for line in texts[0].split("\n") if line.strip()] * 4
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(sentences), model_prefix=str(tmp_path / "tokenizer"), model_type="bpe", vocab_size=500,
        byte_fallback=True, character_coverage=0.98, normalization_rule_name="identity",
        remove_extra_whitespaces=False, minloglevel=2,
    )  # fmt: skip
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    vocab = {processor.id_to_piece(token): token for token in range(processor.get_piece_size())}
    wrapped = make["fallback"](prefix=True, bos=False)
    backend = wrapped.backend_tokenizer
    backend.model = models.BPE(vocab, [("▁", "t")] if "▁t" in vocab else [], byte_fallback=True, unk_token="<unk>")
    plain = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    model = folder_of(plain, vocab_size=len(plain))
    with pytest.raises(UnsupportedTokenizerError, match="is missing in the tokenizer"):
        export_gguf(model, tmp_path / "m.gguf")

    shutil.copy(tmp_path / "tokenizer.model", model)
    report = export_gguf(model, tmp_path / "m.gguf")
    assert "is missing in the tokenizer" in (told := capsys.readouterr().err)
    assert "the file has the tokenizer.model that stands beside it" in told
    assert any("texts tried" in note for note in report.notes)  # the JSON has other merges: it is not called equal
    assert verify_gguf(model, tmp_path / "m.gguf").tokenizer.startswith("equal, but of ")

    swapped = {**vocab, "▁t": vocab["e"], "e": vocab["▁t"]}
    backend.model = models.BPE(swapped, [], byte_fallback=True, unk_token="<unk>")
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>").save_pretrained(model)
    with pytest.raises(UnsupportedTokenizerError, match="is missing in the tokenizer"):  # not of the same tokens
        export_gguf(model, tmp_path / "n.gguf")
