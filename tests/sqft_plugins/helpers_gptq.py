"""AutoGPTQ folders written by the definition of the format, loop by loop, for the tests to read back."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sqft_plugins.grid import QuantizedWeight, int4_weight


def pack_down(codes: list[list[int]]) -> Tensor:
    """[rows][columns] of 4-bit codes → int32 [rows / 8, columns]: row 8 i + k in bits 4 k of word i."""
    words = []
    for i in range(0, len(codes), 8):
        row = []
        for column in range(len(codes[0])):
            word = 0
            for k in range(8):
                word |= codes[i + k][column] << (4 * k)
            row.append(word - 2**32 if word >= 2**31 else word)
        words.append(row)
    return torch.tensor(words, dtype=torch.int32)


def naive_tensors(module: str, weight: QuantizedWeight, offset: int, g_idx: list[int] | None) -> dict[str, Tensor]:
    """The four tensors of a layer; offset: what is subtracted from each zero point, modulo 16."""
    codes = weight.codes.t().tolist()  # [in][out]
    zeros = [[(zero - offset) % 16 for zero in row] for row in weight.zero_point.tolist()]  # [out][groups]
    stored = {
        f"{module}.qweight": pack_down(codes),
        f"{module}.qzeros": pack_down(zeros).t().contiguous(),
        f"{module}.scales": weight.scale.t().contiguous().to(torch.float16),
    }
    if g_idx is not None:
        stored[f"{module}.g_idx"] = torch.tensor(g_idx, dtype=torch.int32)
    return stored


def random_weight(rows: int, columns: int, group_size: int, symmetric: bool, generator: torch.Generator):
    """Codes, scales of fp16's 11 bits, and zero points from 1 up, as v1 can hold them."""
    groups = 1 if group_size == -1 else columns // group_size
    codes = torch.randint(0, 16, (rows, columns), generator=generator, dtype=torch.uint8)
    scale = (torch.rand(rows, groups, generator=generator) * 0.02 + 0.001).to(torch.float16).to(torch.float32)
    zero_point = torch.randint(1, 16, (rows, groups), generator=generator, dtype=torch.uint8)
    return int4_weight(codes, scale, torch.full_like(zero_point, 8) if symmetric else zero_point)


def write_gptq(
    source: Path,
    target: Path,
    group_size: int = 32,
    symmetric: bool = True,
    version: int = 1,
    with_g_idx: bool = True,
    config_file: bool = False,
    **changes,
) -> dict[str, QuantizedWeight]:
    """The float folder `source` with random INT4 weights in all `_proj` layers, as AutoGPTQ would have saved it →
    module → what was written. config_file: quantize_config.json and AutoGPTQ's file name, as before transformers."""
    target.mkdir(parents=True)
    generator = torch.Generator().manual_seed(7)
    tensors = load_file(source / "model.safetensors")
    written = {}
    for name in sorted(tensors):
        if not name.endswith("_proj.weight"):
            continue
        module, (rows, columns) = name.removesuffix(".weight"), tensors.pop(name).shape
        written[module] = random_weight(rows, columns, group_size, symmetric, generator)
        width = columns if group_size == -1 else group_size
        g_idx = [i // width for i in range(columns)] if with_g_idx else None
        tensors |= naive_tensors(module, written[module], 1 if version == 1 else 0, g_idx)
    quantization = {"bits": 4, "group_size": group_size, "desc_act": False, "sym": symmetric}
    if version == 2:
        quantization["checkpoint_format"] = "gptq_v2"
    quantization |= changes
    config = json.loads((source / "config.json").read_text())
    if config_file:
        (target / "quantize_config.json").write_text(json.dumps(quantization))
    else:
        config["quantization_config"] = {"quant_method": "gptq", **quantization}
    (target / "config.json").write_text(json.dumps(config, indent=2))
    save_file(tensors, target / ("gptq_model-4bit-32g.safetensors" if config_file else "model.safetensors"))
    for file in source.glob("*token*"):
        (target / file.name).write_bytes(file.read_bytes())
    return written
