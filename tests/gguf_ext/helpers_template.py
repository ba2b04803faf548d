"""Files as llama.cpp's own converter would write them, of classes that have no table."""

from __future__ import annotations

import json
import shutil

import gguf
import torch
from gguf import quants
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    Starcoder2Config,
    Starcoder2ForCausalLM,
)

from gguf_ext.tokenizer.read import from_tokenizer

HEADS = {"q_proj": 4, "k_proj": 2}
GRANITE = {"attention_multiplier": 0.2, "embedding_multiplier": 3.0, "residual_multiplier": 0.5, "logits_scaling": 2.0}
GRANITE_KEYS = {"attention.scale": 0.2, "embedding_scale": 3.0, "residual_scale": 0.5, "logit_scale": 2.0}
GEMMA2 = {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 32}
GEMMA2_KEYS = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "attention.sliding_window": 32}
GEMMA2_KEYS |= {"attention.key_length": 16, "attention.value_length": 16}
FAMILIES = {
    "olmo2": (Olmo2ForCausalLM, Olmo2Config, {}, {}),
    "granite": (GraniteForCausalLM, GraniteConfig, GRANITE, GRANITE_KEYS),
    "gemma2": (Gemma2ForCausalLM, Gemma2Config, GEMMA2, GEMMA2_KEYS),
    "starcoder2": (Starcoder2ForCausalLM, Starcoder2Config, {"use_bias": True}, {}),
}


def _rotary(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """llama.cpp's order, written out: rows i and i + half of a head become neighbours."""
    half = weight.shape[0] // heads // 2
    rows = [head * 2 * half + part * half + i for head in range(heads) for i in range(half) for part in range(2)]
    return weight[rows]


def as_converted(family: str, name: str, tensor: torch.Tensor) -> torch.Tensor:
    """A tensor as llama.cpp's own converter writes it."""
    kind = name.split(".")[-2]
    if family == "granite" and kind in HEADS:
        return _rotary(tensor, HEADS[kind])
    if family == "gemma2" and "norm" in name:
        return tensor + 1
    return tensor


def write_base(model, tokenizer, family, target, kind=gguf.GGMLQuantizationType.F32, without=(), more=()):
    """The base as llama.cpp's converter would have written it, matrices of the blocks as `kind`."""
    writer = gguf.GGUFWriter(target, family)
    config = model.config
    numbers = {"vocab_size": config.vocab_size, "context_length": 256, "embedding_length": 64, "block_count": 2}
    numbers |= {"feed_forward_length": 96, "attention.head_count": 4, "attention.head_count_kv": 2}
    numbers |= {"attention.layer_norm_rms_epsilon": float(getattr(config, "rms_norm_eps", 1e-5))}
    numbers |= {"attention.layer_norm_epsilon": float(getattr(config, "norm_epsilon", 1e-5))}
    numbers |= {"rope.freq_base": float(config.rope_parameters["rope_theta"]), **FAMILIES[family][3]}
    for key, value in numbers.items():
        (writer.add_float32 if isinstance(value, float) else writer.add_uint32)(f"{family}.{key}", value)
    writer.add_string("general.name", "the base")
    writer.add_string("general.license", "apache-2.0")
    writer.add_uint32("general.file_type", 0)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[family.upper()], 2)
    for key, value, sort in from_tokenizer(tokenizer, "x", {"vocab_size": config.vocab_size}).entries():
        items = {"strings": gguf.GGUFValueType.STRING, "ints": gguf.GGUFValueType.INT32}.get(sort)
        if items is None:
            writer.add_key_value(key, value, gguf.GGUFValueType[sort.upper()])
        else:
            writer.add_key_value(key, value, gguf.GGUFValueType.ARRAY, sub_type=items)
    for name, tensor in model.state_dict().items():
        place = names.get_name(name, (".weight", ".bias"))
        if (name == "lm_head.weight" and config.tie_word_embeddings) or place in without:
            continue
        data = as_converted(family, name, tensor).contiguous().numpy()
        if data.ndim == 2 and place.startswith("blk."):
            writer.add_tensor(place, quants.quantize(data, kind), raw_dtype=kind)
        else:
            writer.add_tensor(place, data)
    for name, data in more:
        writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def configured(source, folder, changes):
    """A copy of a model folder whose config.json says otherwise; None removes an entry, "null" says null."""
    shutil.copytree(source, folder)
    config = {**json.loads((folder / "config.json").read_text()), **changes}
    if "use_sliding_window" in changes:
        config.pop("layer_types", None)  # transformers derives it
    (folder / "config.json").write_text(
        json.dumps({k: None if v == "null" else v for k, v in config.items() if v is not None})
    )
    return folder
