"""What llama.cpp derives from names and cannot learn from a file: token ids of both, and what is told of them."""

from __future__ import annotations

import base64
import json
import shutil

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from gguf_ext import LlamaSession, export_gguf, verify_gguf
from gguf_ext.errors import UnsupportedTokenizerError
from gguf_ext.reader import GGUFFile
from gguf_ext.tokenizer.merges import merge_scores
from gguf_ext.tokenizer.pretokenizer import GPT2, QWEN2, TEKKEN
from gguf_ext.tokenizer.read import read_vocabulary
from gguf_ext.tokenizer.stripping import JINA, MODERN_BERT, PHI3, fitting_name, rule_of
from gguf_ext.tokenizer.trial import sample_texts, tried_otherwise
from sqft_plugins.checkpoint.load import load_tokenizer

SMALL = {"num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 32}


@pytest.fixture
def folder_of(make, tmp_path):
    """`folder_of(tokenizer, name)`: a model folder with this tokenizer, as it stands."""

    def folder(tokenizer, name="model", **changes):
        return make["llama"](tokenizer, tmp_path / name, **{**SMALL, **changes})

    return folder


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


# --- what was refused without need ---


def mixed_runs(make, lengths):
    """Llama's and Mistral's: runs of spaces have one score, so their merges stand by the length of the left part."""
    there = {1, *lengths}
    runs = [(left, right) for left in there for right in there if left + right in there]
    runs.sort(reverse=True)
    merges = [("▁" * left, "▁" * right) for left, right in runs]
    return enlarged(make["fallback"](prefix=True), ["▁" * length for length in lengths], merges)


@pytest.mark.parametrize("lengths", [range(2, 17), (2, 4, 8, 16, 3), (2, 3, 5)])
def test_runs_of_spaces_of_one_score_are_cut_alike(lengths, make, folder_of, tmp_path, texts):
    model = folder_of(mixed_runs(make, lengths))
    report = export_gguf(model, tmp_path / "m.gguf")
    runs = [f"{begin}{' ' * count}{end}" for count in range(70) for begin in ("", "a") for end in ("", "b", "\n")]
    assert not differing(model, tmp_path / "m.gguf", [*all_texts(tmp_path / "m.gguf", texts), *runs])
    assert not report.notes or "texts tried" not in report.notes[-1]
    assert verify_gguf(model, tmp_path / "m.gguf").tokenizer == "equal"


def scores_of(merges):
    names = sorted({part for pair in merges for part in (*pair, "".join(pair))})
    vocab = {name: token for token, name in enumerate(names)}
    return dict(zip(names, merge_scores(vocab, merges, names, [True] * len(names), "it"), strict=True))


def test_merges_that_stand_mixed_are_refused_where_the_order_matters():
    with pytest.raises(UnsupportedTokenizerError, match="do not stand together"):  # not of one letter
        scores_of([("a", "bc"), ("a", "b"), ("b", "c"), ("ab", "c")])
    runs = [("   ", " "), ("  ", "  "), ("  ", " "), (" ", "   "), (" ", "  "), (" ", " ")]
    assert len(set(scores_of(runs).values())) <= 3
    with pytest.raises(UnsupportedTokenizerError, match="do not stand together"):  # something else comes after
        scores_of([*runs, ("x", "y")])
    rightmost = [(" ", "  "), ("  ", "  "), ("  ", " "), (" ", " "), ("   ", " "), (" ", "   ")]
    with pytest.raises(UnsupportedTokenizerError, match="do not stand together"):  # runs come out otherwise
        scores_of([*rightmost, ("    ", "  "), ("  ", "    "), ("   ", "   ")])


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


def test_a_pattern_of_gpt2_needs_no_name(make, folder_of, tmp_path):
    """The plain rule stays where no flag asks for another."""
    export_gguf(folder_of(make["byte_level"](GPT2, False)), tmp_path / "m.gguf")
    metadata = GGUFFile(tmp_path / "m.gguf").metadata
    assert (metadata["tokenizer.ggml.pre"], metadata["general.name"]) == ("gpt-2", "model")
