"""`sqft verify` looks at every key that llama.cpp reads, from the file's side and from the model's."""

from __future__ import annotations

import contextlib
import json
import shutil
import struct

import pytest
from helpers_gguf import rewritten

from gguf_ext import GGUFError, LlamaSession, export_gguf, verify_gguf
from gguf_ext.arch.spec import Entry
from gguf_ext.hyperparameters.compare import DEFAULTS, compare_entries
from gguf_ext.reader import GGUFFile
from gguf_ext.tokenizer.pre_names import ALIKE, BEGINS, SKIPS, cuts_alike
from gguf_ext.tokenizer.pretokenizer import KNOWN
from sqft_plugins.cli import main


@pytest.fixture(scope="module")
def files(llama, llama_int4, gemma3, tmp_path_factory):
    """Family → (the model's folder, its file)."""
    at = tmp_path_factory.mktemp("files")
    models = {"llama": llama, "int4": llama_int4, "gemma3": gemma3}
    for name, model in models.items():
        export_gguf(model, at / f"{name}.gguf")
    return {name: (model, at / f"{name}.gguf") for name, model in models.items()}


ADDED = {
    "llama.rope.scaling.factor": (4.0, "float32"),
    "llama.rope.scale_linear": (2.0, "float32"),
    "llama.rope.scaling.type": ("yarn", "string"),
    "llama.rope.scaling.attn_factor": (1.5, "float32"),
    "llama.attn_logit_softcapping": (30.0, "float32"),
    "llama.final_logit_softcapping": (30.0, "float32"),
    "llama.attention.scale": (0.5, "float32"),
    "llama.attention.causal": (False, "bool"),
    "llama.attention.sliding_window": (8, "uint32"),
    "llama.attention.max_alibi_bias": (8.0, "float32"),
    "llama.attention.clamp_kqv": (2.0, "float32"),
    "llama.expert_count": (4, "uint32"),
    "llama.expert_used_count": (2, "uint32"),
    "llama.embedding_scale": (12.0, "float32"),
    "llama.residual_scale": (0.5, "float32"),
    "llama.logit_scale": (0.25, "float32"),
    "llama.rope.dimension_sections": ([4, 4, 4, 4], "ints"),
    "llama.of_a_later_release": (1, "uint32"),
    "tokenizer.ggml.add_sep_token": (True, "bool"),
    "tokenizer.ggml.suppress_tokens": ([5], "ints"),
    "tokenizer.ggml.mask_token_id": (7, "uint32"),
    "tokenizer.chat_template.tool_use": ("{{ x }}", "string"),
    "sqft.sparsity": (0.5, "float32"),
    "sqft.mask_hash": ("of another", "string"),
}


@pytest.mark.parametrize("key", ADDED)
def test_a_key_that_only_the_file_has_is_a_difference(key, files, tmp_path):
    model, file = files["llama"]
    report = verify_gguf(model, rewritten(file, tmp_path / "m.gguf", {key: ADDED[key]}))
    assert [item.name for item in report.differences] == [key]
    assert not report.ok


CHANGED = {
    "llama.rope.freq_base": (5e5, "float32"),
    "llama.attention.layer_norm_rms_epsilon": (1e-3, "float32"),
    "llama.context_length": (77, "uint32"),
    "llama.attention.head_count_kv": (4, "uint32"),
    "llama.block_count": (2, "int32"),  # a kind that llama.cpp refuses
    "llama.rope.dimension_count": (32.0, "float32"),
    "tokenizer.ggml.pre": ("qwen2", "string"),
    "tokenizer.ggml.unknown_token_id": (9, "uint32"),
    "tokenizer.ggml.padding_token_id": (9, "uint32"),
    "tokenizer.ggml.bos_token_id": (2, "int32"),
    "tokenizer.ggml.add_bos_token": (False, "bool"),
    "tokenizer.ggml.add_eos_token": (True, "bool"),
    "tokenizer.chat_template": ("{{ messages }}", "string"),
}


@pytest.mark.parametrize("key", CHANGED)
def test_another_value_or_kind_is_a_difference(key, files, tmp_path):
    model, file = files["llama"]
    report = verify_gguf(model, rewritten(file, tmp_path / "m.gguf", {key: CHANGED[key]}))
    assert [item.name for item in report.differences] == [key]


LEFT_OUT = [
    "llama.rope.dimension_count", "llama.attention.key_length", "llama.attention.layer_norm_rms_epsilon",
    "llama.attention.head_count_kv", "tokenizer.ggml.bos_token_id", "tokenizer.ggml.pre", "tokenizer.chat_template",
    "tokenizer.ggml.token_type", "tokenizer.ggml.merges", "tokenizer.ggml.padding_token_id",
]  # fmt: skip


@pytest.mark.parametrize("key", LEFT_OUT)
def test_a_key_that_the_file_lacks_is_one_where_llama_cpp_would_take_another(key, files, tmp_path):
    model, file = files["llama"]
    changes = {key: None}
    if key == "llama.rope.dimension_count":  # the width of a head is its default
        assert verify_gguf(model, rewritten(file, tmp_path / "a.gguf", changes)).exact
        changes["llama.attention.key_length"] = None
    report = verify_gguf(model, rewritten(file, tmp_path / "m.gguf", changes))
    assert key in [item.name for item in report.differences]


@pytest.mark.parametrize(
    "changes",
    [
        {"llama.rope.scaling.type": ("none", "string"), "llama.rope.scaling.factor": (1.0, "float32")},
        {"llama.rope.scaling.type": ("linear", "string"), "llama.rope.scaling.factor": (0.0, "float32")},
        {"llama.attention.head_count": ([4, 4], "ints"), "llama.feed_forward_length": ([96, 96], "uint32s")},
        {"llama.vocab_size": None, "llama.expert_count": (0, "uint32"), "llama.attention.causal": (True, "bool")},
        {"llama.tensor_data_layout": ("Meta AI original pth", "string"), "general.author": ("somebody", "string")},
        {"llama.attention.scale": (32**-0.5, "float32"), "llama.logit_scale": (1.0, "float32")},
        {"llama.rope.scaling.original_context_length": (64, "uint32"), "quantize.imatrix.file": ("x", "string")},
        {"tokenizer.ggml.pre": ("llama3", "string"), "tokenizer.ggml.add_eos_token": None},
        {"tokenizer.ggml.add_bos_token": None, "tokenizer.ggml.add_space_prefix": (False, "bool")},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_other_converters_write_besides_is_none(changes, files, tmp_path):
    model, file = files["llama"]
    report = verify_gguf(model, rewritten(file, tmp_path / "m.gguf", changes))
    assert report.exact, report.first_difference


def test_token_types_and_the_order_of_scores_count(files, tmp_path):
    model, file = files["gemma3"]
    read = GGUFFile(file).metadata
    types, scores = list(read["tokenizer.ggml.token_type"]), list(read["tokenizer.ggml.scores"])
    tool = read["tokenizer.ggml.tokens"].index("<tool>")
    for kind in (1, 3, 5):
        other = [kind if token == tool else old for token, old in enumerate(types)]
        report = verify_gguf(
            model, rewritten(file, tmp_path / "m.gguf", {"tokenizer.ggml.token_type": (other, "ints")})
        )
        assert [item.name for item in report.differences] == ["tokenizer.ggml.token_type"]
    order = sorted(range(len(scores)), key=lambda token: -scores[token])
    texts = read["tokenizer.ggml.tokens"]
    best, second = [token for token in order if len(texts[token]) > 1 and types[token] == 1][:2]
    swapped = list(scores)
    swapped[best], swapped[second] = scores[second], scores[best]
    for wanted, values in ((False, swapped), (True, [3 * score - 7 for score in scores])):
        report = verify_gguf(model, rewritten(file, tmp_path / "m.gguf", {"tokenizer.ggml.scores": (values, "floats")}))
        assert report.exact is wanted
        assert wanted or [item.name for item in report.differences] == ["tokenizer.ggml.scores"]


def test_windows_count_as_a_list_or_a_period(files, tmp_path):
    model, file = files["gemma3"]
    key = "gemma3.attention.sliding_window_pattern"
    windows = [bool((layer + 1) % 6) for layer in range(7)]
    for same, value in (
        (True, (6, "uint32")),
        (True, (windows, "bools")),
        (False, (5, "uint32")),
        (False, ([True] * 7, "bools")),
    ):
        report = verify_gguf(model, rewritten(file, tmp_path / "m.gguf", {key: value}))
        assert report.exact is same, value
    report = verify_gguf(model, rewritten(file, tmp_path / "m.gguf", {"gemma3.rope.freq_base_swa": (99.0, "float32")}))
    assert [item.name for item in report.differences] == ["gemma3.rope.freq_base_swa"]


def test_what_the_graph_does_not_read_may_be_what_the_configuration_says(llama, tmp_path):
    """llama.cpp's own converter writes Phi-3's window, which its graph leaves out."""
    model = shutil.copytree(llama, tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "sliding_window": 4096}))
    export_gguf(model, tmp_path / "m.gguf")
    for size, same in ((4096, True), (64, False)):
        changes = {"llama.attention.sliding_window": (size, "uint32")}
        assert verify_gguf(model, rewritten(tmp_path / "m.gguf", tmp_path / "o.gguf", changes)).exact is same


def test_defaults_are_what_llama_cpp_takes(files, tmp_path):
    """A file without the entries whose default we know gives the same logits, a file with them spelled out too."""
    model, file = files["llama"]
    read = GGUFFile(file)
    spelled = {
        f"llama.{name}": (value, DEFAULTS[name].kind)
        for name, value in {
            "attention.causal": True, "expert_count": 0, "expert_used_count": 0, "rope.scaling.factor": 1.0,
            "rope.scaling.type": "none", "rope.scaling.attn_factor": 1.0, "rope.scaling.yarn_ext_factor": -1.0,
            "rope.scaling.yarn_attn_factor": 1.0, "rope.scaling.yarn_beta_fast": 32.0, "attention.key_length_swa": 32,
            "rope.scaling.original_context_length": 512, "rope.dimension_count_swa": 32, "embedding_length_out": 64,
        }.items()
    }  # fmt: skip
    bare = {"llama.rope.freq_base": None, "llama.rope.dimension_count": None, "llama.vocab_size": None}
    assert read.metadata["llama.rope.freq_base"] == 10000.0
    found = []
    for changes in ({}, spelled, bare):
        assert verify_gguf(model, rewritten(file, tmp_path / "m.gguf", changes)).exact
        with LlamaSession(tmp_path / "m.gguf", threads=1) as session:
            found.append([chunk.tolist() for chunk in session.logits(list(range(4, 40)))])
    assert found[0] == found[1] == found[2]


def test_factors_of_a_formula_may_differ_in_the_last_bit_only(byte_level, make, tmp_path):
    """llama.cpp's converter computes Llama 3's in another precision."""
    rope = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope["original_max_position_embeddings"] = 64
    model = make["llama"](byte_level, tmp_path / "model", rope_parameters=rope)
    file = tmp_path / "m.gguf"
    export_gguf(model, file)
    at = GGUFFile(file).tensors["rope_freqs.weight"].offset + 4 * 9
    whole = bytearray(file.read_bytes())
    for bits, same in ((1, True), (64, False)):
        (factor,) = struct.unpack_from("<I", whole, at)
        changed = bytearray(whole)
        struct.pack_into("<I", changed, at, factor ^ bits)
        file.write_bytes(changed)
        assert verify_gguf(model, file).exact is same


def test_the_kinds_of_the_table_are_those_we_write(files):
    for family in ("llama", "gemma3"):
        read = GGUFFile(files[family][1])
        for name, default in DEFAULTS.items():
            assert read.kinds.get(f"{family}.{name}", default.kind) == default.kind


def test_a_model_that_has_what_the_file_lacks_is_different(files):
    """The wanted entries against a file of another model, without any weight."""
    read = GGUFFile(files["llama"][1])
    wanted = [Entry("llama.rope.scaling.type", "linear", "string"), Entry("llama.rope.scaling.factor", 4.0, "float32")]
    wanted += [Entry(key, value, read.kinds[key]) for key, value in read.metadata.items() if key.startswith("llama.")]
    assert [key for key, _ in compare_entries("llama", wanted, read, {})] == ["llama.rope.scaling.factor"]


def test_names_of_pre_tokenizers_that_mean_the_same(files, tmp_path):
    assert cuts_alike("llama-bpe", "llama3")
    assert cuts_alike("smollm", "starcoder")
    assert cuts_alike("gpt-2", "olmo")
    assert not cuts_alike("llama-bpe", "dbrx")  # the same expression, but a whole word needs no merges under one
    assert not cuts_alike("qwen2", "gpt-2")
    assert not cuts_alike("of a later release", "another")
    ours = sorted(set(KNOWN.values()))
    assert not [(one, other) for one in ours for other in ours if one != other and cuts_alike(one, other)]
    assert {"chameleon"} == BEGINS - SKIPS
    names = [name for names in ALIKE for name in names]
    assert len(names) == len(set(names))
    model, file = files["llama"]
    for name in ("falcon3", "pixtral"):
        changes = {"tokenizer.ggml.pre": (name, "string")}
        assert verify_gguf(model, rewritten(file, tmp_path / "m.gguf", changes)).exact
        with LlamaSession(tmp_path / "m.gguf", threads=1) as session:
            assert session.tokenize("a b")


@pytest.mark.parametrize(
    ("key", "value", "kind"),
    [
        ("llama.block_count", "two", "string"),
        ("llama.block_count", 2**31, "uint32"),
        ("llama.attention.head_count", [4, 4, 4], "ints"),
        ("llama.attention.head_count", 0, "uint32"),
        ("llama.rope.scaling.type", ["linear"], "strings"),
        ("llama.rope.freq_base", float("nan"), "float32"),
        ("llama.attention.sliding_window_pattern", 0, "uint32"),
        ("tokenizer.ggml.token_type", "none", "string"),
        ("tokenizer.ggml.merges", [1, 2], "ints"),
        ("tokenizer.ggml.tokens", ["a"], "strings"),
        ("tokenizer.ggml.eos_token_id", 99999, "uint32"),
        ("tokenizer.chat_template", 5, "uint32"),
        ("general.architecture", None, ""),
    ],
)
def test_values_that_make_no_sense_are_a_difference_and_no_traceback(key, value, kind, files, tmp_path):
    model, file = files["llama"]
    if key == "general.architecture":
        (tmp_path / "m.gguf").write_bytes(file.read_bytes().replace(b"llama", b"lxxma", 1))
    else:
        rewritten(file, tmp_path / "m.gguf", {key: (value, kind)})
    with contextlib.suppress(GGUFError):  # a file that cannot be read is refused
        report = verify_gguf(model, tmp_path / "m.gguf")
        assert not report.ok
        assert key in [item.name for item in report.differences]


def test_from_the_command_line(files, tmp_path, capsys):
    model, file = files["int4"]
    rewritten(file, tmp_path / "m.gguf", {"llama.rope.scaling.factor": (4.0, "float32")})
    with pytest.raises(SystemExit) as done:
        main(["verify", str(model), str(tmp_path / "m.gguf"), "--rounding", "allow"])
    assert done.value.code == 1
    out = capsys.readouterr().out
    assert "llama.rope.scaling.factor" in out
    assert "4.0 in the file, 1.0 in the model" in out
