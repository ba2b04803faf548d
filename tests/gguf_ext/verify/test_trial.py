"""The trial tells a wrong file from a limit of llama.cpp."""

from __future__ import annotations

from gguf_ext import export_gguf
from gguf_ext.reader import GGUFFile
from gguf_ext.tokenizer.pretokenizer import QWEN2
from gguf_ext.tokenizer.read import read_vocabulary
from gguf_ext.verify.trial import sample_texts, tried_otherwise

# --- the trial ---


def test_the_trial_tells_a_wrong_file_from_a_limit_of_llama_cpp(make, folder_of, tmp_path):
    model = folder_of(make["byte_level"](QWEN2, False))
    export_gguf(model, tmp_path / "right.gguf")
    export_gguf(model, tmp_path / "wrong.gguf", pre="gpt-2")
    vocabulary = read_vocabulary(model, {"vocab_size": len(GGUFFile(tmp_path / "right.gguf").metadata[TOKENS])})
    for file, wrong in (("right.gguf", False), ("wrong.gguf", True)):
        metadata = GGUFFile(tmp_path / file).metadata
        found, limit = tried_otherwise(tmp_path / file, metadata, vocabulary.entries(), "llama", vocabulary.reference)
        assert bool(found) is wrong
        assert not limit
    found, limit = tried_otherwise(
        tmp_path / "right.gguf", metadata, vocabulary.entries(), "llama", lambda text: [*vocabulary.reference(text), 7]
    )
    assert (found, limit.partition(" cuts ")[0]) == ("", f"of {len(sample_texts(metadata))} texts tried llama.cpp")


TOKENS = "tokenizer.ggml.tokens"
