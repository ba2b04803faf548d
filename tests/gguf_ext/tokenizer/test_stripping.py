"""White space beside special tokens, which llama.cpp derives from names: token ids of both."""

from __future__ import annotations

import shutil

import pytest
from helpers_tokenizers import all_texts, differing
from tokenizers import AddedToken

from gguf_ext import export_gguf, verify_gguf
from gguf_ext.reader import GGUFFile
from gguf_ext.tokenizer.pretokenizer import GPT2, QWEN2
from gguf_ext.tokenizer.stripping import JINA, MODERN_BERT, PHI3, fitting_name, rule_of

# --- names ---


@pytest.mark.parametrize(
    ("name", "rule", "fitting"),
    [
        ("math-int4", "", "math-int4"),
        ("math-int4", PHI3, "math-int4 (phi-3)"),
        ("Phi-3-mini", PHI3, "Phi-3-mini"),
        ("myPHI3", PHI3, "myPHI3"),
        ("Phi-3-mini", "", "Phi 3-mini"),
        ("PHI3 of phi-3", "", "PHI 3 of phi 3"),
        ("modern-bert-phi3", "", "modern bert-phi 3"),
        ("modern-bert-phi3", MODERN_BERT, "modern bert-phi 3 (modern-bert)"),
        ("phi-3", MODERN_BERT, "phi 3 (modern-bert)"),
        ("phi-3", JINA, "phi-3"),
        ("phi-4", "", "phi-4"),
    ],
)
def test_a_name_has_the_word_that_llama_cpp_shall_find_and_no_other(name, rule, fitting):
    assert fitting_name(name, rule) == fitting
    assert rule in (JINA, rule_of(fitting))


PHI_TOKENS = ["<unk>", "<s>", "</s>", "<|endoftext|>", "<|assistant|>", "<|user|>", "<|end|>"]
KEPT = ("<unk>", "<s>", "<|endoftext|>")


def phi_tokenizer(make, **flags):
    """As Microsoft's: white space after special tokens goes, but after three."""
    tokenizer = make["fallback"](prefix=True, bos=False)
    added = [AddedToken(text, special=True, normalized=False, rstrip=text not in KEPT) for text in PHI_TOKENS]
    tokenizer.backend_tokenizer.add_special_tokens([*added, *flags.get("more", [])])
    others = ["<pad>", "<eos>", "<bos>", "<tool>", "</tool>"]
    again = [AddedToken(text, special="tool" not in text, normalized=False, rstrip=True) for text in others]
    tokenizer.backend_tokenizer.add_tokens([token for token in again if not token.special])
    tokenizer.backend_tokenizer.add_special_tokens([token for token in again if token.special])
    return tokenizer


PHI_TEXTS = [
    "<|user|>\n hi <|end|>\n<|assistant|>\nok  </s>  x",
    "<|endoftext|> a",
    "<s> a",
    "<tool>  a",
    " <|user|> <|end|>",
]


@pytest.mark.parametrize("name", ["math-int4", "Phi-3-mini"])
def test_the_flags_decide_about_white_space_and_not_the_folders_name(name, make, folder_of, tmp_path, texts):
    model = folder_of(phi_tokenizer(make), name)
    report = export_gguf(model, tmp_path / "m.gguf")
    assert "phi-3" in GGUFFile(tmp_path / "m.gguf").metadata["general.name"].lower()
    assert not differing(model, tmp_path / "m.gguf", [*all_texts(tmp_path / "m.gguf", texts), *PHI_TEXTS])
    assert not [note for note in report.notes if "texts tried" in note or "white space" in note]
    assert verify_gguf(model, tmp_path / "m.gguf").tokenizer == "equal"


def test_one_token_with_another_flag_is_told(make, folder_of, tmp_path):
    model = folder_of(phi_tokenizer(make, more=[AddedToken("<odd>", special=True, normalized=False)]))
    report = export_gguf(model, tmp_path / "m.gguf")
    assert any("white space after '<odd>' is dropped by llama.cpp" in note for note in report.notes)
    assert any("texts tried" in note for note in report.notes)


@pytest.mark.parametrize("name", ["phi-3-distilled", "my-Phi3", "modern-bert-like"])
def test_a_name_that_means_nothing_is_changed_where_llama_cpp_would_take_it_at_its_word(
    name, byte_level, folder_of, tmp_path, texts
):
    """A file called phi-3 whose tokens are not Phi-3's cannot even be loaded."""
    model = folder_of(byte_level, name)
    export_gguf(model, tmp_path / "m.gguf")
    assert rule_of(GGUFFile(tmp_path / "m.gguf").metadata["general.name"]) == ""
    assert not differing(model, tmp_path / "m.gguf", all_texts(tmp_path / "m.gguf", texts))


@pytest.mark.parametrize(
    ("text", "patterns", "pre", "name"),
    [("[MASK]", None, "gpt-2", MODERN_BERT), ("<mask>", None, JINA, "model"), ("[MASK]", QWEN2, "qwen2", MODERN_BERT)],
)
def test_white_space_before_a_mask_goes_by_the_names_that_llama_cpp_has_for_it(
    text, patterns, pre, name, make, folder_of, tmp_path, texts
):
    tokenizer = make["byte_level"](patterns, False)
    tokenizer.backend_tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False, lstrip=True)])
    model = folder_of(tokenizer)
    export_gguf(model, tmp_path / "m.gguf")
    metadata = GGUFFile(tmp_path / "m.gguf").metadata
    assert metadata["tokenizer.ggml.pre"] == pre
    assert name in metadata["general.name"]
    assert not differing(model, tmp_path / "m.gguf", [*all_texts(tmp_path / "m.gguf", texts), f"a \n{text} b"])
    assert verify_gguf(model, tmp_path / "m.gguf").tokenizer == "equal"


def test_a_files_name_is_compared_by_what_llama_cpp_takes_from_it(make, folder_of, tmp_path):
    model = folder_of(phi_tokenizer(make), "phi3")
    export_gguf(model, tmp_path / "m.gguf")
    data = (tmp_path / "m.gguf").read_bytes()
    (tmp_path / "other.gguf").write_bytes(data.replace(b"\x04\0\0\0\0\0\0\0phi3", b"\x04\0\0\0\0\0\0\0math"))
    report = verify_gguf(model, tmp_path / "other.gguf")
    assert [item.name for item in report.differences] == ["general.name"]
    assert "'math (phi-3)' would do" in report.differences[0].what
    assert not report.ok
    (tmp_path / "synonym.gguf").write_bytes(data.replace(b"\x04\0\0\0\0\0\0\0phi3", b"\x04\0\0\0\0\0\0\0PHI3"))
    assert verify_gguf(model, tmp_path / "synonym.gguf").ok


def test_a_name_under_which_the_file_cannot_be_loaded_is_a_difference(byte_level, folder_of, tmp_path):
    model = folder_of(byte_level, "math")
    export_gguf(model, tmp_path / "m.gguf")
    data = (tmp_path / "m.gguf").read_bytes()
    (tmp_path / "m.gguf").write_bytes(data.replace(b"\x04\0\0\0\0\0\0\0math", b"\x04\0\0\0\0\0\0\0phi3"))
    report = verify_gguf(model, tmp_path / "m.gguf")
    assert "it cannot load the file" in report.first_difference


def test_a_template_keeps_what_its_name_says(make, folder_of, tmp_path, texts):
    model = folder_of(phi_tokenizer(make), "Phi-3-base")
    export_gguf(model, tmp_path / "base.gguf")
    export_gguf(shutil.copytree(model, tmp_path / "tuned"), tmp_path / "m.gguf", template_gguf=tmp_path / "base.gguf")
    assert GGUFFile(tmp_path / "m.gguf").metadata["general.name"] == "tuned (phi-3)"
    assert not differing(model, tmp_path / "m.gguf", [*texts, *PHI_TEXTS])


def test_a_pattern_of_gpt2_needs_no_name(make, folder_of, tmp_path):
    """The plain rule stays where no flag asks for another."""
    export_gguf(folder_of(make["byte_level"](GPT2, False)), tmp_path / "m.gguf")
    metadata = GGUFFile(tmp_path / "m.gguf").metadata
    assert (metadata["tokenizer.ggml.pre"], metadata["general.name"]) == ("gpt-2", "model")
