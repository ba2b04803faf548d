"""tekken.json alone, and beside a tokenizer.json."""

from __future__ import annotations

import base64
import json
import shutil

import pytest
from tokenizers import decoders, pre_tokenizers

from gguf_ext import LlamaSession, export_gguf, verify_gguf
from gguf_ext.errors import UnsupportedTokenizerError
from gguf_ext.reader import GGUFFile
from gguf_ext.tokenizer.pretokenizer import TEKKEN
from sqft_plugins.checkpoint.load import load_tokenizer


def write_tekken(byte_level, file):
    """tekken.json of a byte-level BPE: bytes, then what its merges make, by rank; special tokens in front."""
    letters = pre_tokenizers.ByteLevel.alphabet()
    decoder = decoders.ByteLevel()
    merged = ["".join(pair) for pair in json.loads(byte_level.backend_tokenizer.to_str())["model"]["merges"]]
    pieces = [bytes([byte]) for byte in range(256)]
    for text in merged:
        decoded = decoder.decode([text]).encode()
        if set(text) <= set(letters) and "\ufffd".encode() not in decoded and decoded not in pieces:
            pieces.append(decoded)
    special = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "<pad>"]
    vocab = [{"rank": rank, "token_bytes": base64.b64encode(piece).decode()} for rank, piece in enumerate(pieces)]
    config = {
        "pattern": TEKKEN,
        "num_vocab_tokens": len(pieces),
        "default_vocab_size": len(pieces) + len(special),
        "default_num_special_tokens": len(special),
        "version": "v3",
    }
    named = [{"rank": rank, "token_str": text, "is_control": True} for rank, text in enumerate(special)]
    file.write_text(json.dumps({"config": config, "vocab": vocab, "special_tokens": named}))
    return len(pieces) + len(special)


def test_tekken_json_alone_is_a_tokenizer(byte_level, folder_of, tmp_path, texts):
    size = write_tekken(byte_level, tmp_path / "tekken.json")
    model = folder_of(byte_level, vocab_size=size, bos_token_id=1, eos_token_id=2)
    for file in [*model.glob("token*"), *model.glob("chat*")]:
        file.unlink()
    shutil.copy(tmp_path / "tekken.json", model)
    report = export_gguf(model, tmp_path / "m.gguf")
    assert report.tokenizer == "gpt2/tekken"
    metadata = GGUFFile(tmp_path / "m.gguf").metadata
    assert metadata["tokenizer.ggml.add_bos_token"] is True
    assert metadata["tokenizer.ggml.bos_token_id"] == 1
    plain = [text for text in texts if "<" not in text and not any(0x300 <= ord(letter) < 0x1000 for letter in text)]
    reference = load_tokenizer(model)  # mistral-common's, where it is installed
    with LlamaSession(tmp_path / "m.gguf", threads=1) as session:
        for text in plain:
            ids = list(reference(text).input_ids)
            assert session.tokenize(text) == [1, *ids] if ids[:1] != [1] else ids, text
        assert session.tokenize("[INST]a")[:2] == [1, 3]
    assert verify_gguf(model, tmp_path / "m.gguf").ok

    shutil.copy(tmp_path / "tekken.json", tmp_path / "bad.json")
    (model / "tekken.json").write_text('{"config": {}}')
    with pytest.raises(UnsupportedTokenizerError, match=r"tekken\.json is none that transformers reads"):
        export_gguf(model, tmp_path / "n.gguf")


def test_tekken_json_beside_a_tokenizer_json_leaves_that_in_its_place(byte_level, folder_of, tmp_path, texts):
    model = folder_of(byte_level)
    write_tekken(byte_level, model / "tekken.json")
    assert export_gguf(model, tmp_path / "m.gguf").tokenizer == "gpt2/llama-bpe"
