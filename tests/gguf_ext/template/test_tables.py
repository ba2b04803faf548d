"""A class that has a table: what that refuses, no template lets in."""

from __future__ import annotations

import pytest
from helpers_template import configured

from gguf_ext import export_gguf, verify_gguf
from gguf_ext.errors import UnsupportedArchitectureError

# --- a class that has a table ---

REFUSED = {
    "a window": ("qwen2", {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 0}),
    "an activation": ("llama", {"hidden_act": "gelu"}),
    "a rope": ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}),
    "half of each head": ("qwen3", {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}),
    "biases": ("qwen3", {"attention_bias": True}),
    "a scale": ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
    "a residual": ("bloom", {"apply_residual_connection_post_layernorm": True}),
    "a cap": ("gemma", {"attn_logit_softcapping": 50.0}),
}


@pytest.fixture(scope="module")
def bases(tiny_model, tiny_tokenizer, gemma3, tmp_path_factory):
    """`bases(family)` → (folder, its file), made once."""
    found = {}

    def base(family):
        if family not in found:
            place = tmp_path_factory.mktemp(family)
            folder = gemma3 if family == "gemma" else place / "model"
            if family != "gemma":
                tiny_model(family).save_pretrained(folder)
                tiny_tokenizer("byte-level").save_pretrained(folder)
            if family != "opt":
                export_gguf(folder, place / "m.gguf")
            found[family] = folder, place / "m.gguf"
        return found[family]

    return base


@pytest.mark.parametrize("what", REFUSED)
@pytest.mark.parametrize("architectures", [..., None, ["OfAnotherName"]], ids=["its class", "none", "another"])
def test_what_a_table_refuses_no_template_lets_in(what, architectures, bases, tmp_path):
    """Neither the export nor `verify` takes the file of a base for a model that computes something else, whatever
    class the folder says it has."""
    family, changes = REFUSED[what]
    base, file = bases(family)
    named = {} if architectures is ... else {"architectures": architectures}
    model = configured(base, tmp_path / "model", {**changes, **named})
    with pytest.raises(UnsupportedArchitectureError):
        export_gguf(model, tmp_path / "m.gguf", template_gguf=file)
    with pytest.raises(UnsupportedArchitectureError):
        verify_gguf(model, file)
    assert not (tmp_path / "m.gguf").exists()


def test_a_class_that_llama_cpp_lacks_takes_no_template(bases, tmp_path):
    folder, _ = bases("opt")
    with pytest.raises(UnsupportedArchitectureError, match=r"llama\.cpp has no OPT"):
        export_gguf(folder, tmp_path / "m.gguf", template_gguf=bases("llama")[1])


def test_a_type_alone_finds_the_table_and_two_that_differ_are_refused(bases, tmp_path):
    base, file = bases("llama")
    assert verify_gguf(configured(base, tmp_path / "typed", {"architectures": None}), file).exact
    other = configured(base, tmp_path / "other", {"model_type": "mistral"})
    with pytest.raises(UnsupportedArchitectureError, match=r"LlamaForCausalLM by its arch.* MistralForCausalLM by its"):
        verify_gguf(other, file)
