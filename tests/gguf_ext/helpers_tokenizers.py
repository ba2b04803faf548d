"""Tokenizers with more tokens, and the texts that llama.cpp cuts otherwise than transformers."""

from __future__ import annotations

import json

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from gguf_ext import LlamaSession
from gguf_ext.reader import GGUFFile
from gguf_ext.verify.trial import sample_texts


def enlarged(tokenizer, tokens, merges=()):
    """With further tokens and merges in the vocabulary itself, the added tokens after them."""
    data = json.loads(tokenizer.backend_tokenizer.to_str())
    vocab, added = data["model"]["vocab"], data["added_tokens"]
    for token in tokens:
        vocab.setdefault(token, len(vocab))
    for at, entry in enumerate([entry for entry in added if entry["content"] not in vocab]):
        entry["id"] = len(vocab) + at
    data["model"]["merges"] += [list(pair) for pair in merges]
    backend = Tokenizer.from_str(json.dumps(data))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<bos>", eos_token="<eos>", unk_token="<unk>", pad_token="<pad>"
    )


def differing(folder, file, texts):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with LlamaSession(file, threads=1) as session:
        return [text for text in texts if session.tokenize(text) != list(tokenizer(text).input_ids)]


def all_texts(file, texts):
    return [*texts, *sample_texts(GGUFFile(file).metadata)]


def assert_same_ids(folder, file, texts):
    assert not differing(folder, file, texts)
