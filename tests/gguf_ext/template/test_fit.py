"""In which order a template has a tensor: seen, or refused."""

from __future__ import annotations

import pytest
from helpers_template import write_base
from transformers import (
    Olmo2ForCausalLM,
)

from gguf_ext import export_gguf
from gguf_ext.errors import TemplateError

# --- what is refused ---


def test_another_base_is_refused(made, tiny_tokenizer, tmp_path):
    model, _, folder, _ = made("olmo2")
    other = Olmo2ForCausalLM(model.config).eval()
    base = write_base(other, tiny_tokenizer("byte-level"), "olmo2", tmp_path / "base.gguf")
    with pytest.raises(TemplateError, match=r"does not look like .* \(cosine .*it is of another base"):
        export_gguf(folder, tmp_path / "m.gguf", template_gguf=base)
    assert not (tmp_path / "m.gguf").exists()


def _changed_base(made, tokenizer, tmp_path, change):
    """A base.gguf whose model was changed by `change(state)`."""
    model, _, folder, _ = made("olmo2")
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    changed = Olmo2ForCausalLM(model.config).eval()
    change(state)
    changed.load_state_dict(state)
    return folder, write_base(changed, tokenizer, "olmo2", tmp_path / "base.gguf")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s["model.layers.1.mlp.up_proj.weight"].copy_(s["model.layers.1.mlp.up_proj.weight"].flip(0)), "up"),
        (lambda s: s["model.layers.1.mlp.up_proj.weight"].mul_(2), "factor 0.5"),
        (lambda s: s["model.layers.0.self_attn.q_proj.weight"].neg_(), "attn_q"),
        (lambda s: s["model.norm.weight"].mul_(1.1), "is not output_norm.weight"),
        (lambda s: s["model.layers.1.mlp.up_proj.weight"].fill_(float("nan")), "cosine 0.00"),
    ],
)
def test_a_tensor_that_llama_cpp_would_keep_in_another_form_is_refused(change, words, made, tiny_tokenizer, tmp_path):
    folder, base = _changed_base(made, tiny_tokenizer("byte-level"), tmp_path, change)
    with pytest.raises(TemplateError, match=words):
        export_gguf(folder, tmp_path / "m.gguf", template_gguf=base)
