"""Token ids of every expression that has a name."""

from __future__ import annotations

import unicodedata

import pytest
from helpers_tokenizers import assert_same_ids
from tokenizers import pre_tokenizers

from gguf_ext import export_gguf
from gguf_ext.errors import UnknownPreTokenizerError
from gguf_ext.reader import GGUFFile
from gguf_ext.tokenizer.pretokenizer import DEVIATIONS, GPT2, KNOWN


@pytest.mark.parametrize(("patterns", "ignore"), KNOWN, ids=KNOWN.values())
def test_ids_of_every_expression_in_the_table(make, tmp_path, texts, patterns, ignore, capsys):
    tokenizer = make["byte_level"](patterns, ignore)
    model = make["llama"](tokenizer, tmp_path / "model", num_hidden_layers=1, hidden_size=32, intermediate_size=32)
    report = export_gguf(model, tmp_path / "m.gguf")
    name = KNOWN[patterns, ignore]
    assert report.tokenizer == f"gpt2/{name}"
    told = "cuts words at combining marks" in capsys.readouterr().err
    assert told is (name in DEVIATIONS)
    plain = [text for text in texts if not any(unicodedata.category(char).startswith("M") for char in text)]
    assert_same_ids(model, tmp_path / "m.gguf", plain if name in DEVIATIONS else texts)
    if name in DEVIATIONS:  # when llama.cpp does it right, the note goes
        with pytest.raises(AssertionError):
            assert_same_ids(model, tmp_path / "m.gguf", texts)


def test_ids_of_gpt2s_own_expression_and_of_single_digits(make, tmp_path, texts):
    """As ByteLevel and Digits state them, which is no Split."""
    tokenizer = make["byte_level"](None, False)
    own = tokenizer.backend_tokenizer.pre_tokenizer
    for name, cutters in (("gpt-2", [own]), ("smollm", [pre_tokenizers.Digits(individual_digits=True), own])):
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(cutters)
        model = make["llama"](tokenizer, tmp_path / name, num_hidden_layers=1)
        assert export_gguf(model, tmp_path / f"{name}.gguf").tokenizer == f"gpt2/{name}"
        assert_same_ids(model, tmp_path / f"{name}.gguf", texts)


def test_an_unknown_expression_asks_for_pre(make, tmp_path, capsys):
    model = make["llama"](make["byte_level"](GPT2 + r"|\p{Z}", False), tmp_path / "model", num_hidden_layers=1)
    with pytest.raises(UnknownPreTokenizerError, match=r"--pre; known here: bloom, dbrx, .*llama-bpe"):
        export_gguf(model, tmp_path / "m.gguf")
    assert not (tmp_path / "m.gguf").exists()
    export_gguf(model, tmp_path / "m.gguf", pre="gpt-2")
    assert GGUFFile(tmp_path / "m.gguf").metadata["tokenizer.ggml.pre"] == "gpt-2"
    assert "--pre" not in capsys.readouterr().err
    export_gguf(model, tmp_path / "other.gguf", pre="gpt-3")  # llama.cpp has names that sqft does not
    assert "--pre 'gpt-3' is none that sqft knows" in capsys.readouterr().err
