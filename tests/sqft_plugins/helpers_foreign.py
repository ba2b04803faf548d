"""Quantized folders of other programs, written by the documentation of each format with random codes, and what their
weights are by that documentation, computed one number after the other where that is possible.

| name | written after |
|---|---|
| awq | AutoAWQ, awq/utils/packing_utils.py: the order of the columns in a word |
| gptq-order, gptq8, gptq2, gptq3-v2 | AutoGPTQ, auto_gptq/nn_modules/qlinear/qlinear_cuda_old.py: `pack` |
| packed-order | compressed-tensors, compressors/pack_quantized, 0.17: `weight_g_idx` |
| int8, int8-asymmetric, fp8-channel, fp8-tensor, fp8-blocks | compressed-tensors, compressors/naive_quantized |
| fp8-odd-blocks | DeepSeek-V3, inference/kernel.py: `weight_dequant` |
| nvfp4, mxfp4 | compressed-tensors, compressors/nvfp4 and mxfp4 |
| nf4, nf4-double | bitsandbytes, functional.py: `QuantState.as_dict`, `dequantize_4bit` |
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
NF4 = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
]  # fmt: skip


class Layer(NamedTuple):
    """tensors: by the end of their names. codes: uint8 [out, in]. values: float32 [out, in]."""

    tensors: dict[str, Tensor]
    codes: Tensor
    values: Tensor


class Written(NamedTuple):
    """How a layer is written, and what config.json says. code_part: the tensor with the codes."""

    write: Callable[[int, int, torch.Generator], Layer]
    config: dict[str, Any]
    code_part: str
    kind: str


def random_codes(rows: int, columns: int, bits: int, generator: torch.Generator) -> Tensor:
    return torch.randint(0, 2**bits, (rows, columns), generator=generator, dtype=torch.uint8)


def fp16_scales(rows: int, groups: int, generator: torch.Generator) -> Tensor:
    """float16, with its 11 bits."""
    return (torch.rand(rows, groups, generator=generator) * 0.02 + 0.001).half()


def words_of(codes: list[int], bits: int) -> list[int]:
    """One stream of bits, cut into int32."""
    stream = sum(code << (bits * place) for place, code in enumerate(codes))
    words = [(stream >> (32 * word)) & 0xFFFFFFFF for word in range(len(codes) * bits // 32)]
    return [word - 2**32 if word >= 2**31 else word for word in words]


def write_awq(rows: int, columns: int, generator: torch.Generator, group: int = 32) -> Layer:
    codes, scale = random_codes(rows, columns, 4, generator), fp16_scales(rows, columns // group, generator)
    zero = random_codes(rows, columns // group, 4, generator)
    order = [0, 2, 4, 6, 1, 3, 5, 7]

    def packed(numbers: Tensor) -> Tensor:  # [out, n] → [n, out / 8]
        return torch.tensor(
            [
                [words_of([line[8 * word + place] for place in order], 4)[0] for word in range(rows // 8)]
                for line in numbers.t().tolist()
            ],
            dtype=torch.int32,
        )

    values = (codes.float() - zero.float().repeat_interleave(group, 1)) * scale.float().repeat_interleave(group, 1)
    return Layer({"qweight": packed(codes), "qzeros": packed(zero), "scales": scale.t().contiguous()}, codes, values)


def write_gptq(
    rows: int,
    columns: int,
    generator: torch.Generator,
    bits: int = 4,
    added: int = 1,
    ordered: bool = False,
    symmetric: bool = False,
    group: int = 32,
) -> Layer:
    codes, scale = random_codes(rows, columns, bits, generator), fp16_scales(rows, columns // group, generator)
    zero = random_codes(rows, columns // group, bits, generator).clamp(min=1)
    zero = torch.full_like(zero, 2 ** (bits - 1)) if symmetric else zero
    g_idx = torch.arange(columns) // group
    g_idx = g_idx[torch.randperm(columns, generator=generator)] if ordered else g_idx

    down = torch.tensor([words_of(row, bits) for row in codes.tolist()], dtype=torch.int32).t().contiguous()
    zeros = torch.tensor([words_of(line, bits) for line in (zero.t() - added).tolist()], dtype=torch.int32)
    tensors = {"qweight": down, "qzeros": zeros, "scales": scale.t().contiguous(), "g_idx": g_idx.int()}
    return Layer(tensors, codes, (codes.float() - zero[:, g_idx].float()) * scale[:, g_idx].float())


def write_packed(rows: int, columns: int, generator: torch.Generator, group: int = 32) -> Layer:
    """In act-order, asymmetric."""
    codes, scale = random_codes(rows, columns, 4, generator), fp16_scales(rows, columns // group, generator)
    zero = random_codes(rows, columns // group, 4, generator)
    g_idx = (torch.arange(columns) // group)[torch.randperm(columns, generator=generator)]
    tensors = {
        "weight_packed": torch.tensor([words_of(row, 4) for row in codes.tolist()], dtype=torch.int32),
        "weight_scale": scale,
        "weight_shape": torch.tensor([rows, columns]),
        "weight_zero_point": torch.tensor([words_of(line, 4) for line in zero.t().tolist()], dtype=torch.int32)
        .t()
        .contiguous(),
        "weight_g_idx": g_idx.int(),
    }
    return Layer(tensors, codes, (codes.float() - zero[:, g_idx].float()) * scale[:, g_idx].float())


def write_int8(rows: int, columns: int, generator: torch.Generator, symmetric: bool = True) -> Layer:
    codes = random_codes(rows, columns, 8, generator)
    scale = (torch.rand(rows, 1, generator=generator) * 1e-3 + 1e-4).bfloat16()
    zero = torch.full((rows, 1), 128) if symmetric else random_codes(rows, 1, 8, generator).int()
    tensors = {"weight": (codes.int() - 128).char(), "weight_scale": scale}
    tensors |= {} if symmetric else {"weight_zero_point": (zero - 128).char()}
    return Layer(tensors, codes, (codes.float() - zero) * scale.float())


def fp8_codes(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    codes = random_codes(rows, columns, 8, generator)
    return codes.masked_fill((codes & 127) == 127, 3)  # no NaN


def write_fp8(
    rows: int,
    columns: int,
    generator: torch.Generator,
    count: Callable[[int, int], tuple[int, ...]],
    block: tuple[int, int],
    name: str = "weight_scale",
) -> Layer:
    """count: the shape of the scales. block: rows and columns that share one."""
    codes = fp8_codes(rows, columns, generator)
    scale = (torch.rand(count(rows, columns), generator=generator) * 1e-3 + 1e-4).bfloat16()
    scale = scale.float() * 1.0001 if name == "weight_scale_inv" else scale  # float32 has more bits
    two = scale.float() if scale.dim() == 2 else scale.float().view(1, 1)
    places = [[(i // block[0], j // block[1]) for j in range(0, columns)] for i in range(0, rows, block[0])]
    wide = torch.stack([two[i, torch.tensor([j for _, j in row])] for i, row in enumerate(places)])
    wide = wide.repeat_interleave(min(block[0], rows), 0)[:rows]
    weight = codes.view(torch.float8_e4m3fn)
    return Layer({"weight": weight, name: scale}, codes, weight.float() * wide)


def write_fp4(rows: int, columns: int, generator: torch.Generator, group: int = 16) -> Layer:
    codes = random_codes(rows, columns, 4, generator)
    packed = torch.tensor(
        [[low | high << 4 for low, high in zip(row[::2], row[1::2], strict=True)] for row in codes.tolist()]
    )
    level = torch.tensor([*E2M1, *(-level for level in E2M1)])[codes.long()]
    if group == 32:
        stored = torch.randint(110, 125, (rows, columns // 32), generator=generator, dtype=torch.uint8)
        extra, scale = {}, torch.tensor([[2.0 ** (byte - 127) for byte in row] for row in stored.tolist()])
    else:
        stored = torch.randint(1, 126, (rows, columns // 16), generator=generator, dtype=torch.uint8)
        stored, whole = stored.view(torch.float8_e4m3fn), torch.tensor([3517.25])
        extra, scale = {"weight_global_scale": whole}, stored.float() / whole
    tensors = {"weight_packed": packed.to(torch.uint8), "weight_scale": stored, **extra}
    return Layer(tensors, codes, level * scale.repeat_interleave(group, 1))


def write_nf4(rows: int, columns: int, generator: torch.Generator, double: bool = False) -> Layer:
    codes = random_codes(rows, columns, 4, generator)
    flat, blocks = codes.flatten().tolist(), rows * columns // 64
    packed = torch.tensor(
        [[high << 4 | low] for high, low in zip(flat[::2], flat[1::2], strict=True)], dtype=torch.uint8
    )
    state: dict[str, Any] = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [rows, columns]}
    tensors = {"weight": packed, "weight.quant_map": torch.tensor(NF4)}
    if double:
        state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.0312}
        stored = random_codes(1, blocks, 8, generator)[0]
        levels = torch.sort(torch.rand(256, generator=generator) * 2 - 1).values
        nested = torch.rand(-(-blocks // 256), generator=generator) * 0.02
        tensors |= {"weight.absmax": stored, "weight.nested_absmax": nested, "weight.nested_quant_map": levels}
        scale = torch.stack([levels[int(code)] * nested[place // 256] + 0.0312 for place, code in enumerate(stored)])
    else:
        scale = tensors["weight.absmax"] = torch.rand(blocks, generator=generator) * 0.05
    tensors["weight.quant_state.bitsandbytes__nf4"] = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)
    values = torch.tensor(NF4)[codes.long()].view(-1, 64) * scale.unsqueeze(1)
    return Layer(tensors, codes, values.view(rows, columns))


def scheme(form: str, **weights: Any) -> dict[str, Any]:
    groups = {"group_0": {"targets": ["Linear"], "weights": {"type": "float", "symmetric": True} | weights}}
    # what compressed-tensors' own configuration has beside it
    rest = {"quantization_status": "compressed", "ignore": ["lm_head"], "kv_cache_scheme": None}
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": groups, **rest}


def gptq(**more: Any) -> dict[str, Any]:
    return {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": False, **more}


def bound(write: Callable[..., Layer], **more: Any) -> Callable[[int, int, torch.Generator], Layer]:
    return lambda rows, columns, generator: write(rows, columns, generator, **more)


ALL = 10**9
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}
NF4_CONFIG = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
FOREIGN = {
    "awq": Written(write_awq, AWQ, "qweight", "int4"),
    "gptq-order": Written(bound(write_gptq, ordered=True), gptq(desc_act=True), "qweight", "int4_act_order"),
    "gptq8": Written(bound(write_gptq, bits=8), gptq(bits=8), "qweight", "int8"),
    "gptq2": Written(bound(write_gptq, bits=2), gptq(bits=2), "qweight", "int2"),
    "gptq3-v2": Written(
        bound(write_gptq, bits=3, added=0), gptq(bits=3, checkpoint_format="gptq_v2"), "qweight", "int3"
    ),
    "packed-order": Written(
        write_packed,
        scheme(
            "pack-quantized", num_bits=4, type="int", symmetric=False, strategy="group", group_size=32, actorder="group"
        ),
        "weight_packed",
        "int4_act_order",
    ),
    "int8": Written(write_int8, scheme("int-quantized", num_bits=8, type="int", strategy="channel"), "weight", "int8"),
    "int8-asymmetric": Written(
        bound(write_int8, symmetric=False),
        scheme("int-quantized", num_bits=8, type="int", strategy="channel", symmetric=False),
        "weight",
        "int8",
    ),
    "fp8-channel": Written(
        bound(write_fp8, count=lambda rows, _: (rows, 1), block=(1, ALL)),
        scheme("float-quantized", num_bits=8, strategy="channel"),
        "weight",
        "fp8_e4m3",
    ),
    "fp8-tensor": Written(
        bound(write_fp8, count=lambda *_: (1,), block=(ALL, ALL)),
        scheme("float-quantized", num_bits=8, strategy="tensor"),
        "weight",
        "fp8_e4m3",
    ),
    "fp8-blocks": Written(
        bound(write_fp8, count=lambda rows, columns: (-(-rows // 16), -(-columns // 32)), block=(16, 32)),
        scheme("float-quantized", num_bits=8, strategy="block", block_structure=[16, 32]),
        "weight",
        "fp8_e4m3",
    ),
    "fp8-odd-blocks": Written(  # which divide neither rows nor columns
        bound(
            write_fp8,
            count=lambda rows, columns: (-(-rows // 40), -(-columns // 48)),
            block=(40, 48),
            name="weight_scale_inv",
        ),
        {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [40, 48]},
        "weight",
        "fp8_e4m3",
    ),
    "nvfp4": Written(
        write_fp4,
        scheme("nvfp4-pack-quantized", num_bits=4, strategy="tensor_group", group_size=16),
        "weight_packed",
        "nvfp4",
    ),
    "mxfp4": Written(
        bound(write_fp4, group=32),
        scheme("mxfp4-pack-quantized", num_bits=4, strategy="group", group_size=32),
        "weight_packed",
        "mxfp4",
    ),
    "nf4": Written(write_nf4, NF4_CONFIG, "weight", "nf4"),
    "nf4-double": Written(bound(write_nf4, double=True), NF4_CONFIG, "weight", "nf4"),
}


def write_layer(target: Path, name: str, rows: int = 96, columns: int = 128, module: str = "m") -> Layer:
    """A folder of one layer, of no model."""
    layer = FOREIGN[name].write(rows, columns, torch.Generator().manual_seed(7))
    target.mkdir(parents=True)
    save_file({f"{module}.{end}": tensor for end, tensor in layer.tensors.items()}, target / "model.safetensors")
    (target / "config.json").write_text(json.dumps({"quantization_config": FOREIGN[name].config}))
    return layer


def write_foreign(source: Path, target: Path, name: str) -> dict[str, Layer]:
    """The float folder `source` with random codes in all `_proj` layers → module → what was written."""
    target.mkdir(parents=True)
    generator = torch.Generator().manual_seed(7)
    tensors, written = load_file(source / "model.safetensors"), {}
    for own in sorted(name for name in tensors if name.endswith("_proj.weight")):
        module, (rows, columns) = own.removesuffix(".weight"), tensors.pop(own).shape
        written[module] = FOREIGN[name].write(rows, columns, generator)
        tensors |= {f"{module}.{end}": tensor for end, tensor in written[module].tensors.items()}
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"] = FOREIGN[name].config
    (target / "config.json").write_text(json.dumps(config))  # in one line, as this project does not write it
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt", "by": "another program"})
    for file in source.glob("*token*"):
        (target / file.name).write_bytes(file.read_bytes())
    return written
