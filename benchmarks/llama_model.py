"""Random Llamas as GGUF files: Q4_0 with any share of zeros and any group, written in seconds."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

LAYERS, HIDDEN, INTERMEDIATE, HEADS, GROUPS, VOCABULARY = 22, 2048, 5632, 32, 4, 32000
"""1.1 billion parameters, the shape of TinyLlama."""


def q4_0(out: int, columns: int, density: float, group: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Random Q4_0 blocks [out, columns / 32 * 18]: `density` of the weights kept, scales that repeat in groups."""
    codes = rng.integers(0, 15, (out, columns), np.uint8)
    codes += codes >= 8  # never 8, the zero
    codes[rng.random((out, columns), np.float32) >= density] = 8
    scales = (0.005 * (1 + rng.random((out, columns // group), np.float32))).astype(np.float16)
    blocks = np.empty((out, columns // 32, 18), np.uint8)
    blocks[..., :2] = np.repeat(scales, group // 32, 1)[..., None].view(np.uint8)
    pairs = codes.reshape(out, -1, 2, 16)
    blocks[..., 2:] = pairs[..., 0, :] | pairs[..., 1, :] << 4
    return blocks.reshape(out, -1)


def write_llama(path: Path, density: float, group: int, layers: int = LAYERS, hidden: int = HIDDEN,
                intermediate: int = INTERMEDIATE, heads: int = HEADS, groups: int = GROUPS,
                vocabulary: int = VOCABULARY) -> None:  # fmt: skip
    """A Llama without a tokenizer; its linears are Q4_0, embedding and head Q8_0. All layers hold the same weights:
    each layer is memory of its own all the same, so it takes the same time."""
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in {
        "block_count": layers, "embedding_length": hidden, "feed_forward_length": intermediate, "head_count": heads,
        "head_count_kv": groups, "context_length": 4096, "vocab_size": vocabulary,
        "rope_dimension_count": hidden // heads, "layer_norm_rms_eps": 1e-5,
    }.items():  # fmt: skip
        getattr(writer, f"add_{key}")(value)
    writer.add_tokenizer_model("no_vocab")

    def add(name: str, data: NDArray, kind: gguf.GGMLQuantizationType | None = None) -> None:
        writer.add_tensor(f"{name}.weight", data, raw_dtype=kind)

    narrow = hidden // heads * groups
    shapes = {
        "attn_q": (hidden, hidden), "attn_k": (narrow, hidden), "attn_v": (narrow, hidden),
        "attn_output": (hidden, hidden),
        "ffn_gate": (intermediate, hidden), "ffn_up": (intermediate, hidden), "ffn_down": (hidden, intermediate),
    }  # fmt: skip
    weights = {name: q4_0(*shape, density, group, rng) for name, shape in shapes.items()}
    float_rows = rng.standard_normal((vocabulary, hidden), np.float32) * 0.02
    table = gguf.quants.quantize(float_rows, gguf.GGMLQuantizationType.Q8_0)
    norm = np.ones(hidden, np.float32)
    add("token_embd", table, gguf.GGMLQuantizationType.Q8_0)
    add("output", table, gguf.GGMLQuantizationType.Q8_0)
    add("output_norm", norm)
    for layer in range(layers):
        for name, data in weights.items():
            add(f"blk.{layer}.{name}", data, gguf.GGMLQuantizationType.Q4_0)
        add(f"blk.{layer}.attn_norm", norm)
        add(f"blk.{layer}.ffn_norm", norm)

    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
