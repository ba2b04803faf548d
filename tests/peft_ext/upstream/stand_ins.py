"""Tiny local models under the names that PEFT's tests load from the model hub, laid out as the hub's own cache.

The architectures are those of upstream's models; half of every linear's weights is zero. A test that asks for another
name is skipped, saying which.
"""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

COMMON = {"vocab_size": 1100, "pad_token_id": 0, "eos_token_id": 2, "bos_token_id": 1, "initializer_range": 0.2}
DECODER = {**COMMON, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA = {**DECODER, "num_key_value_heads": 4}
OPT = {**DECODER, "ffn_dim": 48, "num_hidden_layers": 5, "word_embed_proj_dim": 32, "init_std": 0.2}
GPT2 = {**COMMON, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
BART = {
    **COMMON, "d_model": 32, "init_std": 0.2, "decoder_start_token_id": 2,
    **{f"{side}_layers": 2 for side in ("encoder", "decoder")},
    **{f"{side}_attention_heads": 4 for side in ("encoder", "decoder")},
    **{f"{side}_ffn_dim": 48 for side in ("encoder", "decoder")},
}  # fmt: skip
SETTINGS = {
    "OPTForCausalLM": OPT,
    "GPT2LMHeadModel": GPT2,
    "GPTJForCausalLM": {**GPT2, "rotary_dim": 4},
    "GPTNeoXForCausalLM": DECODER,
    "LlamaForCausalLM": LLAMA,
    "LlamaForSequenceClassification": LLAMA,
    "MistralForCausalLM": LLAMA,
    "Qwen2ForCausalLM": LLAMA,
    "Qwen3ForCausalLM": {**LLAMA, "head_dim": 8},
    "Gemma3ForCausalLM": {**LLAMA, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 16},
    "BloomForCausalLM": {**COMMON, "hidden_size": 32, "n_layer": 5, "n_head": 4},
    "FalconMambaForCausalLM": {**COMMON, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8},
    "BertModel": DECODER,
    "BertForSequenceClassification": DECODER,
    "RobertaModel": DECODER,
    "RobertaForSequenceClassification": DECODER,
    "DebertaModel": DECODER,
    "DebertaV2Model": DECODER,
    "T5ForConditionalGeneration": {
        **COMMON, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0,
    },
    "BartForConditionalGeneration": BART,
}  # fmt: skip
"""Architecture → the settings of its configuration."""

INTERNAL = "peft-internal-testing/tiny-random-"
MODELS: dict[str, tuple[str, dict]] = {
    "peft-internal-testing/opt-125m": ("OPTForCausalLM", {"num_hidden_layers": 12}),
    "gpt2": ("GPT2LMHeadModel", {"n_layer": 12}),
    f"{INTERNAL}gpt2": ("GPT2LMHeadModel", {}),
    "hf-internal-testing/tiny-random-gpt2": ("GPT2LMHeadModel", {}),
    "trl-internal-testing/tiny-random-LlamaForCausalLM": ("LlamaForCausalLM", {}),
    "hf-internal-testing/tiny-random-LlamaForCausalLM": ("LlamaForCausalLM", {}),
    "trl-internal-testing/tiny-LlamaForSequenceClassification-3.2": ("LlamaForSequenceClassification", {}),
    "hf-internal-testing/tiny-random-MistralForCausalLM": ("MistralForCausalLM", {}),
    "peft-internal-testing/tiny-dummy-qwen2": ("Qwen2ForCausalLM", {}),
    "trl-internal-testing/tiny-Qwen3ForCausalLM": ("Qwen3ForCausalLM", {}),
    "hf-internal-testing/tiny-random-Gemma3ForCausalLM": ("Gemma3ForCausalLM", {}),
    "tiiuae/falcon-mamba-tiny-dev": ("FalconMambaForCausalLM", {}),
    "hf-internal-testing/tiny-random-BertModel": ("BertModel", {}),
    f"{INTERNAL}t5": ("T5ForConditionalGeneration", {}),
}
"""Name on the hub → (architecture, changes to its settings)."""
MODELS.update({f"{INTERNAL}{name}": (name, {}) for name in SETTINGS if f"{INTERNAL}{name}" not in MODELS})


def zero_half(weight: Tensor) -> None:
    """Every second weight [rows, columns] zero, in a checkerboard."""
    if weight.is_meta:
        return
    with torch.no_grad():
        rows, columns = (torch.arange(size, device=weight.device) for size in weight.shape)
        weight[(rows[:, None] + columns) % 2 == 1] = 0


def zero_half_of_linears(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Linear | Conv1D):
            zero_half(module.weight)


def make(name: str, folder: Path, tokenizer) -> None:
    """Saves the stand-in of `name` into `folder`, as upstream's hub cache would hold it."""
    architecture, changes = MODELS[name]
    model_class = getattr(transformers, architecture)
    torch.manual_seed(0)
    model = model_class(model_class.config_class(**{**SETTINGS[architecture], **changes}))
    zero_half_of_linears(model)
    commit = "0" * 40
    place = folder / f"models--{name.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(commit)
    model.save_pretrained(place / "snapshots" / commit)
    tokenizer.save_pretrained(place / "snapshots" / commit)


@contextmanager
def hub_online_once(model_id: str):
    """In place of upstream's function of this name, which goes online."""
    if "/" in model_id and not any(model_id.startswith(name) for name in MODELS):
        pytest.skip(f"{model_id} has no local stand-in")
    yield
