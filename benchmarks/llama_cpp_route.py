"""llama.cpp's own way from an INT4 folder to Q4_0, the peer of `sqft export gguf`: float weights, an F16 file, and its
quantizer over that."""

from __future__ import annotations

from pathlib import Path

import torch

from gguf_ext.errors import RuntimeFailedError
from gguf_ext.run.session import last_error, library
from sqft_plugins.checkpoint import ModelFolder, copy_side_files
from sqft_plugins.checkpoint.shards import ShardFile, TensorSpec
from sqft_plugins.checkpoint.writer import write_config

F16, Q4_0 = 1, 2
"""ggml_type F16; llama_ftype MOSTLY_Q4_0."""


def write_float(int4: Path, target: Path) -> Path:
    """The folder `target`: the INT4 folder with its weights in fp16, where a symmetric grid is exact (scales have 8
    significant bits, codes 3). One tensor is in memory at a time."""
    folder = ModelFolder(int4)
    target.mkdir()
    modules = set(folder.int4.modules)
    parts = {part for module in modules for part in folder.parts(module)}
    specs = {f"{module}.weight": TensorSpec(torch.float16, tuple(folder.int4.shape(module))) for module in modules}
    specs |= {name: folder.spec(name) for name in folder.files if name not in parts}
    shard = ShardFile(target / "model.safetensors", dict(sorted(specs.items())))
    for name in shard.specs:
        module = name.removesuffix(".weight")
        if module in modules:
            exact = folder.quantized(module).dequantize()
            half = exact.to(torch.float16)
            assert torch.equal(half.to(torch.float32), exact), f"{module} is not exact in fp16: take a symmetric model"
            shard.write(name, half)
        else:
            shard.write(name, folder.tensor(name))
    copy_side_files(folder, target)
    write_config(target, {key: value for key, value in folder.config.items() if key != "quantization_config"})
    return target


def quantize(source: Path, target: Path, *, threads: int = 1, keep_embedding: bool = False) -> Path:
    """`llama-quantize source target Q4_0`. keep_embedding: leaves embedding and head in F16, where llama.cpp takes Q6_K
    by default, so that only the weights that are INT4 in our file differ."""
    c = library()
    settings = c.llama_model_quantize_default_params()
    settings.nthread, settings.ftype = threads, Q4_0
    if keep_embedding:
        settings.token_embedding_type = settings.output_tensor_type = F16
    if c.llama_model_quantize(str(source).encode(), str(target).encode(), settings):
        raise RuntimeFailedError(f"llama.cpp cannot quantize {source} ({last_error()})")
    return target
