"""Language models that see images, tiny and random: two blocks of text, a tower of three."""

from __future__ import annotations

from typing import Any

import torch
import transformers

TEXT = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 640, "max_position_embeddings": 256,
}  # fmt: skip
MROPE = {**TEXT, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}}
TOWER = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip
QWEN_TOWER = {"depth": 3, "hidden_size": 64, "num_heads": 4, "patch_size": 8}
QWEN_IDS = {"image_token_id": 600, "video_token_id": 601, "vision_start_token_id": 602, "vision_end_token_id": 603}

WRAPPERS: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma3": (
        "Gemma3Config",
        {
            "text_config": {**TEXT, "model_type": "gemma3_text"}, "vision_config": TOWER, "mm_tokens_per_image": 4,
            "image_token_index": 600, "boi_token_index": 601, "eoi_token_index": 602,
        },
    ),
    "llava": (
        "LlavaConfig",
        {
            "text_config": {**TEXT, "model_type": "llama"}, "image_token_index": 600,
            "vision_config": {**TOWER, "model_type": "clip_vision_model", "projection_dim": 32},
        },
    ),
    "mistral3": (
        "Mistral3Config",
        {
            "text_config": {**TEXT, "model_type": "mistral"}, "image_token_index": 600,
            "vision_config": {**TOWER, "model_type": "pixtral", "head_dim": 16},
        },
    ),
    "qwen2_vl": (
        "Qwen2VLConfig",
        {"text_config": MROPE, "vision_config": {**QWEN_TOWER, "embed_dim": 64, "mlp_ratio": 2}, **QWEN_IDS},
    ),
    "qwen2_5_vl": (
        "Qwen2_5_VLConfig",
        {
            "text_config": MROPE, **QWEN_IDS,
            "vision_config": {
                **QWEN_TOWER, "out_hidden_size": 64, "intermediate_size": 128, "fullatt_block_indexes": [1],
            },
        },
    ),
    "qwen3_vl": (
        "Qwen3VLConfig",
        {
            "text_config": MROPE, **QWEN_IDS,
            "vision_config": {
                **QWEN_TOWER, "out_hidden_size": 64, "intermediate_size": 128, "deepstack_visual_indexes": [0, 1],
                "num_position_embeddings": 16,
            },
        },
    ),
    "internvl": (
        "InternVLConfig",
        {
            "text_config": {**TEXT, "model_type": "qwen2"}, "image_token_id": 600,
            "vision_config": {**TOWER, "image_size": [32, 32], "patch_size": [8, 8]},
        },
    ),
    "paligemma": (
        "PaliGemmaConfig",
        {
            "text_config": {**TEXT, "model_type": "gemma"}, "projection_dim": 64, "hidden_size": 64,
            "vision_config": {**TOWER, "model_type": "siglip_vision_model", "projection_dim": 64},
            "image_token_index": 600,
        },
    ),
    "llama4": (
        "Llama4Config",
        {
            "text_config": {**TEXT, "intermediate_size_mlp": 128, "num_local_experts": 4, "num_experts_per_tok": 1},
            "vision_config": {
                **TOWER, "vision_output_dim": 64, "projector_input_dim": 64, "projector_output_dim": 64,
                "intermediate_size": 256,
            },
            "image_token_index": 600,
        },
    ),
    "gemma4": (
        "Gemma4Config",
        {
            "text_config": {
                **TEXT, "hidden_size_per_layer_input": 16, "vocab_size_per_layer_input": 640,
                "num_kv_shared_layers": 0, "global_head_dim": 16,
                "layer_types": ["sliding_attention", "full_attention"],
            },
            "vision_config": {**TOWER, "num_key_value_heads": 4, "head_dim": 16}, "audio_config": None,
            "image_token_id": 600,
        },
    ),
}  # fmt: skip
"""Family → its configuration class and what that is given."""


def wrapper_config(family: str) -> Any:
    kind, fields = WRAPPERS[family]
    config = getattr(transformers, kind)(**fields)
    if family == "llama4":  # of two classes
        config.architectures = ["Llama4ForConditionalGeneration"]
    return config


def wrapper(family: str) -> Any:
    """The model, float32, in evaluation mode, always with the same weights."""
    torch.manual_seed(0)
    return transformers.AutoModelForImageTextToText.from_config(wrapper_config(family), dtype=torch.float32).eval()
