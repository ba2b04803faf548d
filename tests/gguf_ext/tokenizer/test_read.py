"""Token ids of llama.cpp equal those of transformers."""

from __future__ import annotations

import json
import shutil

import pytest
from helpers_tokenizers import assert_same_ids
from transformers import AutoTokenizer

from gguf_ext import GGUFError, export_gguf
from gguf_ext.errors import MissingTokenizerError, UnsupportedTokenizerError
from gguf_ext.reader import GGUFFile
from gguf_ext.tokenizer.read import read_vocabulary
from gguf_ext.tokenizer.vocabulary import TokenKind


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_ids_equal_transformers(name, request, tmp_path, texts):
    model = request.getfixturevalue(name)
    report = export_gguf(model, tmp_path / "m.gguf")
    assert report.tokenizer == {"llama": "gpt2/llama-bpe", "gemma3": "llama/default"}[name]
    assert_same_ids(model, tmp_path / "m.gguf", texts)


def test_ids_with_a_space_prefix_and_no_bos(make, tmp_path, texts):
    model = make["llama"](make["fallback"](prefix=True, bos=False), tmp_path / "model")
    export_gguf(model, tmp_path / "m.gguf")
    metadata = GGUFFile(tmp_path / "m.gguf").metadata
    assert metadata["tokenizer.ggml.add_space_prefix"] is True
    assert metadata["tokenizer.ggml.add_bos_token"] is False
    assert_same_ids(model, tmp_path / "m.gguf", texts)


def test_special_tokens_template_and_padding(llama, tmp_path):
    export_gguf(llama, tmp_path / "m.gguf")
    tokenizer = AutoTokenizer.from_pretrained(llama)
    metadata = GGUFFile(tmp_path / "m.gguf").metadata
    assert metadata["tokenizer.ggml.bos_token_id"] == tokenizer.bos_token_id
    assert metadata["tokenizer.ggml.eos_token_id"] == tokenizer.eos_token_id
    assert metadata["tokenizer.ggml.unknown_token_id"] == tokenizer.unk_token_id
    assert metadata["tokenizer.ggml.padding_token_id"] == tokenizer.pad_token_id
    assert metadata["tokenizer.ggml.add_bos_token"] is True
    assert metadata["tokenizer.ggml.add_eos_token"] is False
    assert metadata["tokenizer.chat_template"] == tokenizer.chat_template
    kinds = dict(zip(metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"], strict=True))
    assert kinds["<bos>"] == TokenKind.CONTROL
    assert kinds["<tool>"] == TokenKind.USER_DEFINED
    assert metadata["tokenizer.ggml.tokens"][-3:] == [f"[PAD{len(tokenizer) + index}]" for index in range(3)]
    assert kinds[metadata["tokenizer.ggml.tokens"][-1]] == TokenKind.UNUSED


def test_tokens_without_a_row_are_left_out(gemma3, fallback):
    vocabulary = read_vocabulary(gemma3, {"vocab_size": len(fallback) - 1})
    assert len(vocabulary.tokens) == len(vocabulary.kinds) == len(vocabulary.scores) == len(fallback) - 1
    assert "</tool>" not in vocabulary.tokens


def test_merges_that_llama_cpp_would_do_otherwise_are_refused(make, tmp_path):
    make["fallback"](closed=False).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedTokenizerError, match="is missing in the tokenizer of"):
        read_vocabulary(tmp_path, {"vocab_size": 1000})


def test_a_model_without_tokenizer_is_refused(llama, tmp_path):
    shutil.copytree(llama, tmp_path / "model", ignore=shutil.ignore_patterns("token*", "chat*", "special*"))
    with pytest.raises(MissingTokenizerError, match=r"has no tokenizer: copy tokenizer\.json"):
        export_gguf(tmp_path / "model", tmp_path / "m.gguf")
    assert list(tmp_path.iterdir()) == [tmp_path / "model"]


def test_pre_for_a_tokenizer_without_one_is_refused(gemma3):
    with pytest.raises(GGUFError, match="--pre llama-bpe"):
        read_vocabulary(gemma3, {"vocab_size": 1000}, pre="llama-bpe")


def test_other_kinds_of_tokenizers_are_refused(llama, tmp_path):
    for file in llama.glob("token*"):
        shutil.copy(file, tmp_path)
    data = json.loads((tmp_path / "tokenizer.json").read_text())
    data["normalizer"] = {"type": "Lowercase"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(UnsupportedTokenizerError, match="normalizes \\(Lowercase\\)"):
        read_vocabulary(tmp_path, {"vocab_size": 1000})
