"""What llama.cpp derives from names and cannot learn from a file: token ids of both, and what is told of them."""

from __future__ import annotations

import shutil

import pytest
from tokenizers import models
from transformers import PreTrainedTokenizerFast

from gguf_ext import export_gguf, verify_gguf
from gguf_ext.errors import UnsupportedTokenizerError


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
    assert any("texts tried" in note for note in report.notes)  # the JSON has other merges: nobody is told it is equal
    assert verify_gguf(model, tmp_path / "m.gguf").tokenizer.startswith("equal, but of ")

    swapped = {**vocab, "▁t": vocab["e"], "e": vocab["▁t"]}
    backend.model = models.BPE(swapped, [], byte_fallback=True, unk_token="<unk>")
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>").save_pretrained(model)
    with pytest.raises(UnsupportedTokenizerError, match="is missing in the tokenizer"):  # not of the same tokens
        export_gguf(model, tmp_path / "n.gguf")
