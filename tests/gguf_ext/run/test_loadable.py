"""A file that llama.cpp would die of is refused before."""

from __future__ import annotations

import pytest
from helpers_llama import FAMILIES, dies

import gguf_ext
from gguf_ext import GGUFError, LlamaSession
from gguf_ext.errors import UnloadableFileError
from gguf_ext.reader import GGUFFile
from gguf_ext.run.loadable import unloadable

TOKENS_KEY, MODEL, NAME = "tokenizer.ggml.tokens", "tokenizer.ggml.model", "general.name"
DEADLY = [
    *[("llama", {"llama.block_count": (count, "uint32")}) for count in (0, 513, 99999, 2**32 - 1)],
    *[("llama", {"llama.rope.scaling.type": (kind, "string")}) for kind in ("dynamic", "llama3", "su", "")],
    ("gpt2", {"gpt2.rope.scaling.type": ("dynamic", "string")}),
    ("llama", {"llama.nextn_predict_layers": (9, "uint32")}),
    ("llama", {"llama.attention.layer_norm_rms_epsilon": (-1.0, "float32")}),
    ("llama", {"llama.attention.layer_norm_rms_epsilon": (float("nan"), "float32")}),
    ("bloom", {"bloom.attention.layer_norm_epsilon": (-1.0, "float32")}),
    ("llama", {"llama.expert_count": (2000, "uint32")}),
    ("llama", {"llama.expert_used_count": (8, "uint32")}),
    ("llama", {"llama.expert_group_count": (8, "uint32")}),
    *[("qwen2", {"qwen2.rope.dimension_count": (count, "uint32")}) for count in (1, 8, 64)],
    *[("phi3", {"phi3.rope.dimension_count": (count, "uint32")}) for count in (3, 65)],
    ("gemma3_text", {"gemma3.rope.dimension_count_swa": (3, "uint32")}),
    ("gemma3_text", {"gemma3.attention.sliding_window_pattern": (1, "uint32")}),
    ("gemma3_text", {"gemma3.attention.sliding_window_pattern": ([False] * 2, "bools")}),
    ("llama", {MODEL: ("none", "string")}),
    ("gemma3_text", {MODEL: ("bert", "string")}),
    ("llama", {TOKENS_KEY: "the last is the first"}),
    ("llama", {TOKENS_KEY: "two are empty names"}),
    ("gemma3_text", {TOKENS_KEY: "no byte"}),
]
REFUSED_BY_ITSELF = [
    ("llama", {"llama.attention.head_count_kv": (3, "uint32")}),
    ("llama", {NAME: ("My Phi-3 tune", "string")}),  # it looks for tokens by name
    ("llama", {"llama.block_count": None}),
    ("llama", {"llama.context_length": None}),
    ("llama", {"llama.attention.head_count": (0, "uint32")}),
    ("qwen2", {"qwen2.attention.head_count": (8, "uint32")}),
    ("llama", {"llama.attention.head_count": ([4] * 3, "uint32s")}),
    ("llama", {"llama.rope.dimension_count": (8, "uint32")}),
]


def _changes(values, changes):
    """The named changes of the tokens, made."""
    tokens = values[TOKENS_KEY]
    made = {
        "the last is the first": [*tokens[:-1], tokens[0]],
        "two are empty names": ["[EMPTY_3]", *tokens[1:3], "", *tokens[4:]],
        "no byte": [token.replace("<0xFF>", "<0xZZ>") for token in tokens],
    }
    return {key: (made[change], "strings") if isinstance(change, str) else change for key, change in changes.items()}


@pytest.mark.parametrize(("family", "changes"), [*DEADLY, *REFUSED_BY_ITSELF], ids=str)
def test_a_deadly_file_is_refused_through_every_door(base, tmp_path, family, changes):
    values, write = base(family)
    write(tmp_path / "model.gguf", _changes(values, changes))
    for door in (LlamaSession, gguf_ext.load):
        with pytest.raises(UnloadableFileError, match=f"cannot load {tmp_path}/model.gguf: ") as caught:
            door(tmp_path / "model.gguf")
        assert "\n" not in str(caught.value)


def test_llama_cpp_does_die_of_these(base, tmp_path):
    """Else a rule refuses what works. The unchanged files live."""
    files = []
    for index, (family, changes) in enumerate([*DEADLY, *((family, {}) for family in FAMILIES)]):
        values, write = base(family)
        files.append(tmp_path / f"{index}.gguf")
        write(files[-1], _changes(values, changes))
    died = dies(*files)
    assert [case for case, dead in zip(DEADLY, died, strict=False) if not dead] == []
    assert not any(died[len(DEADLY) :])


def test_harmless_changes_are_not_refused(base):
    """Each was seen to load and run in llama.cpp."""
    values, _ = base("llama")
    for changes in (
        {"llama.rope.scaling.type": "none"},
        {"llama.rope.scaling.type": "longrope"},
        {"llama.rope.scaling.factor": 0.0},
        {"llama.attention.head_count": [4, 4], "llama.attention.head_count_kv": [2, 2]},
        {"llama.expert_count": 0, "llama.expert_used_count": 0, "llama.nextn_predict_layers": 1},
        {"tokenizer.ggml.bos_token_id": 10**6, "tokenizer.ggml.eos_token_id": 10**6},
        {TOKENS_KEY: ["", *values[TOKENS_KEY][1:]]},
        {NAME: "phi-2"},
    ):
        assert unloadable({"general.architecture": "llama", **values, **changes}) == ""
    for other in ("mamba", "rwkv7", "bert"):  # not ours: what we do not know is llama.cpp's to say
        sizes = {f"{other}.{key}": 4 for key in ("block_count", "embedding_length", "context_length")}
        assert (
            unloadable({"general.architecture": other, MODEL: "bert", f"{other}.attention.head_count": 0, **sizes})
            == ""
        )


@pytest.mark.parametrize("changes", [{"head_count": 0}, {"head_count": 4, "head_count_kv": 0}, {"head_count": [4, 0]}])
def test_heads_of_a_model_made_by_a_template_are_counted_too(changes):
    """llama.cpp's olmo2 divides by them."""
    sizes = {"olmo2.block_count": 2, "olmo2.embedding_length": 64, "olmo2.context_length": 4}
    heads = {f"olmo2.attention.{key}": value for key, value in changes.items()}
    assert "olmo2.attention.head_count" in unloadable({"general.architecture": "olmo2", **sizes, **heads})


def test_a_context_beyond_the_positions_is_refused(base, tmp_path):
    """llama.cpp would read past the table of positions, and die; rotary models may be stretched."""
    for family in ("gpt2", "llama"):
        base(family)[1](tmp_path / f"{family}.gguf", {})
    with pytest.raises(GGUFError, match=r"context=129 .* it has 128 positions"):
        gguf_ext.load(tmp_path / "gpt2.gguf", n_ctx=129)
    for context in (-1, 2**31, 2**32):  # the last is 0 to ctypes
        with pytest.raises(GGUFError, match=f"context={context} .* is none"):
            gguf_ext.load(tmp_path / "llama.gguf", n_ctx=context)
    for context in (None, 0, 128):
        gguf_ext.load(tmp_path / "gpt2.gguf", n_ctx=context).close()
    with LlamaSession(tmp_path / "gpt2.gguf", threads=1, context=4096) as session:
        assert session.context == 128
    gguf_ext.load(tmp_path / "llama.gguf", n_ctx=600).close()


def test_kinds_that_llama_cpp_does_not_ask_for_are_read_as_damage(base, tmp_path):
    """It takes the alignment for uint32 and a name for given, and dies where they are not."""
    _, write = base("llama")
    for key, kind in (("general.alignment", "uint64"), ("", "uint32")):
        write(tmp_path / "model.gguf", {key: (32, kind)})
        with pytest.raises(GGUFError, match="is damaged"):
            GGUFFile(tmp_path / "model.gguf")
    write(tmp_path / "model.gguf", {"general.alignment": (32, "uint32")})
    assert GGUFFile(tmp_path / "model.gguf").tensors
