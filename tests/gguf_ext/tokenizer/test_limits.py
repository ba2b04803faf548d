"""What llama.cpp's tokenizers cannot do is said in a line, or refused by name."""

from __future__ import annotations

import json

import pytest
from helpers_tokenizers import differing, enlarged
from tokenizers import AddedToken, normalizers, pre_tokenizers, processors

from gguf_ext import export_gguf, verify_gguf
from gguf_ext.errors import UnsupportedTokenizerError
from gguf_ext.tokenizer.read import read_vocabulary

# --- flags and steps that llama.cpp lacks ---


def test_flags_of_added_tokens_that_no_name_stands_for_are_told(make, folder_of, tmp_path, capsys):
    tokenizer = make["byte_level"]()
    backend = tokenizer.backend_tokenizer
    backend.add_tokens([AddedToken("<left>", lstrip=True, normalized=False), AddedToken("<right>", rstrip=True)])
    backend.add_tokens([AddedToken("wort", single_word=True, normalized=False)])
    model = folder_of(tokenizer)
    report = export_gguf(model, tmp_path / "m.gguf")
    told = capsys.readouterr().err
    for line in (
        "white space before '<left>' is kept by llama.cpp",
        "white space after '<right>' is kept by llama.cpp",
        "llama.cpp finds 'wort' inside of words too",
        "texts tried llama.cpp cuts",
    ):
        assert any(line in note for note in report.notes)
        assert line in told
    verified = verify_gguf(model, tmp_path / "m.gguf")
    assert verified.ok
    assert verified.tokenizer.startswith("equal, but white space before '<left>' is kept by llama.cpp")


@pytest.mark.parametrize("scheme", ["first", "always", "never"])
def test_metaspace_is_told_where_it_is_not_llama_cpps_space_in_front(scheme, make, folder_of, tmp_path, texts):
    tokenizer = make["fallback"]()
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence([])
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    model = folder_of(tokenizer)
    report = export_gguf(model, tmp_path / "m.gguf")
    inner = [text for text in texts if not text.startswith((" ", "▁")) and "<" not in text]
    assert not differing(model, tmp_path / "m.gguf", inner)
    exact = scheme == "never"
    assert bool(differing(model, tmp_path / "m.gguf", [" a", "a<tool> b"])) is not exact
    assert any("Metaspace" in note for note in report.notes) is not exact
    assert any("texts tried" in note for note in report.notes) is not exact
    verified = verify_gguf(model, tmp_path / "m.gguf")
    assert verified.ok
    assert (verified.tokenizer == "equal") is exact


def test_metaspace_that_cuts_words_apart_is_told(make, folder_of, tmp_path):
    tokenizer = enlarged(make["fallback"](), ["▁▁"], [("▁", "▁")])
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence([])
    for split in (True, False):
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=split)
        folder = folder_of(tokenizer, f"split-{split}")
        notes = export_gguf(folder, tmp_path / f"{split}.gguf").notes
        assert any("tokens of several words, such as '▁▁'" in note for note in notes) is split


@pytest.mark.parametrize(
    ("step", "words"),
    [
        ({"normalizer": normalizers.Replace("a", "b")}, "Replace 'a' by 'b'"),
        ({"normalizer": normalizers.Sequence([normalizers.Replace(" ", "▁"), normalizers.NFC()])}, "NFC"),
        (
            {"normalizer": normalizers.Sequence([normalizers.Prepend("x"), normalizers.Replace(" ", "▁")])},
            "Prepend 'x'",
        ),
        ({"pre_tokenizer": pre_tokenizers.Split("\n", "isolated")}, r"Split at '\\n'"),
        ({"pre_tokenizer": pre_tokenizers.Metaspace(replacement="_")}, "Metaspace"),
        ({"normalizer": normalizers.Sequence([])}, "does not write ▁ for a space"),
    ],
)
def test_steps_that_llama_cpp_lacks_are_refused_by_name(step, words, make, tmp_path):
    tokenizer = make["fallback"]()
    for name, value in step.items():
        setattr(tokenizer.backend_tokenizer, name, value)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UnsupportedTokenizerError, match=words):
        read_vocabulary(tmp_path, {"vocab_size": 1000})


def test_options_of_the_merging_itself_are_refused_by_name(make, tmp_path):
    tokenizer = make["byte_level"]()
    tokenizer.save_pretrained(tmp_path)
    data = json.loads((tmp_path / "tokenizer.json").read_text())
    data["model"]["end_of_word_suffix"] = "</w>"
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(UnsupportedTokenizerError, match="end_of_word_suffix='</w>'"):
        read_vocabulary(tmp_path, {"vocab_size": 1000})


def test_texts_that_are_not_normalized_are_told(make, folder_of, tmp_path):
    tokenizer = make["byte_level"]()
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    assert any("not NFC" in note for note in export_gguf(folder_of(tokenizer), tmp_path / "m.gguf").notes)


def test_more_than_one_token_around_a_text_is_told(make, folder_of, tmp_path):
    tokenizer = make["byte_level"]()
    ids = [("<bos>", tokenizer.bos_token_id), ("<pad>", tokenizer.pad_token_id)]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> <pad> $A", pair="<bos> <pad> $A $B", special_tokens=ids
    )
    notes = export_gguf(folder_of(tokenizer), tmp_path / "m.gguf").notes
    assert any("makes '<bos><pad> … ' of a text" in note for note in notes)


def test_ordinary_tokens_that_llama_cpp_takes_for_special_ones_are_told(make, folder_of, tmp_path):
    tokenizer = make["byte_level"]()
    tokenizer.backend_tokenizer.add_tokens([AddedToken("<EOT>", normalized=False)])
    tokenizer = enlarged(tokenizer, ["</s>"])
    report = export_gguf(folder_of(tokenizer), tmp_path / "m.gguf")
    assert any("'</s>' are ordinary texts to the model's tokenizer" in note for note in report.notes)
    assert any("ends a text at" in note and "'<EOT>'" in note for note in report.notes)
