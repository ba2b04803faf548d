"""Scales as files of others may hold them, in every type of llama.cpp: trained through and merged exactly, or refused
by the name of the tensor.

    pytest tests/gguf_ext/model/test_special_scales.py
"""

from __future__ import annotations

import struct

import numpy as np
import pytest
import torch
from peft import get_peft_model

from gguf_ext import export_gguf
from gguf_ext.blocks import TensorType, dequantize
from gguf_ext.blocks.proof import random_blocks
from gguf_ext.blocks.types import BLOCKS
from gguf_ext.ggml import to_float
from gguf_ext.reader import GGUFFile
from peft_ext import SQFTConfig
from sqft_plugins.adapter.saved import SavedAdapter
from sqft_plugins.checkpoint import load_model, open_model
from sqft_plugins.errors import GridError
from sqft_plugins.tune.merge_file import FileMerge

KINDS = [kind for kind in TensorType if kind.is_block]
WIDTH = 256


def tensor(kind) -> str:
    return f"blk.{KINDS.index(kind)}.attn_q.weight"


def blocks_of(kind, finite: bool) -> np.ndarray:
    """uint8 [256, bytes]: rows of random blocks, the first with ±0, subnormal and the largest scales; where not
    `finite`, with NaN and infinite ones, too."""
    weights, _ = BLOCKS[kind]
    raw = random_blocks(kind, 4 * WIDTH * WIDTH // weights, np.random.default_rng(int(kind)))
    if finite:
        raw = raw[np.isfinite(dequantize(raw, kind)).all(1)]
    return raw[: WIDTH * WIDTH // weights].reshape(WIDTH, -1)


def retyped(source: GGUFFile, target, tensors: dict) -> None:
    """The file with other types and bytes of some tensors: {name: (type, bytes)}."""
    (part,), table, data = source.parts, b"", b""
    for name, info in source.tensors.items():
        kind, raw = tensors.get(name, (info.type, source.raw(name).tobytes()))
        dims = struct.pack(f"<I{len(info.shape)}Q", len(info.shape), *info.shape[::-1])
        table += struct.pack("<Q", len(name)) + name.encode() + dims + struct.pack("<IQ", kind, len(data))
        data += raw + bytes(-len(raw) % 32)
    head = part.data[: part.table[0]].tobytes() + table
    target.write_bytes(head + bytes(-len(head) % 32) + data)


@pytest.fixture(scope="module")
def float_file(make_folder, tmp_path_factory):
    """A model with a layer for each type."""
    folder = tmp_path_factory.mktemp("float")
    shape = {"hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": len(KINDS), "num_key_value_heads": 1}
    export_gguf(make_folder("llama", folder / "model", **shape), folder / "f32.gguf", float_type="f32")
    return GGUFFile(folder / "f32.gguf")


def test_finite_scales_of_every_type_are_merged_as_they_are_trained(float_file, tmp_path) -> None:
    blocks = {tensor(kind): (int(kind), blocks_of(kind, finite=True).tobytes()) for kind in KINDS}
    retyped(float_file, tmp_path / "base.gguf", blocks)
    base = open_model(tmp_path / "base.gguf")
    config = SQFTConfig(r=4, target_modules=["q_proj"], quantization_aware=True, sparse=False, rounding="nearest")
    tuned = get_peft_model(load_model(base.path, torch.float32), config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    tuned.save_pretrained(tmp_path / "adapter")

    saved = SavedAdapter(tmp_path / "adapter")
    merge = FileMerge(base, base, saved.folder, dict.fromkeys(saved.folder.pairs, 4))
    merge.check()
    written = open_model(base.write_codes(tmp_path / "merged.gguf", merge, {"adapter": "a", "adapter_hash": "b"}))
    assert merge.check_written(written) == 0
    trained = saved.tuner.quantized(tuned)
    assert len(trained) == len(KINDS)
    for kind in KINDS:
        module = f"model.layers.{KINDS.index(kind)}.self_attn.q_proj"
        raw = written.source.raw(tensor(kind))
        found = torch.from_numpy(to_float(raw.reshape(-1, BLOCKS[kind][1]), kind, *BLOCKS[kind])).view(WIDTH, WIDTH)
        order = written.int4.file_order(module)
        found = found if order is None else found[torch.argsort(order)]
        wanted = trained[module].dequantize()
        assert bool(torch.isfinite(wanted).all())
        assert torch.equal(found, wanted), kind.name
        assert not torch.equal(wanted, base.weight(module)), kind.name


@pytest.fixture(scope="module")
def spoiled(float_file, tmp_path_factory):
    path = tmp_path_factory.mktemp("spoiled") / "base.gguf"
    retyped(float_file, path, {tensor(kind): (int(kind), blocks_of(kind, finite=False).tobytes()) for kind in KINDS})
    return open_model(path)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_scale_that_is_not_finite_is_refused_by_its_tensor(kind, spoiled) -> None:
    module = f"model.layers.{KINDS.index(kind)}.self_attn.q_proj"
    if np.isfinite(dequantize(spoiled.source.raw(tensor(kind)), kind)).all():  # no scale of the type can be other
        assert bool(torch.isfinite(spoiled.quantized(module).dequantize()).all())
        return
    with pytest.raises(GridError, match=rf"base.gguf: {tensor(kind)} has a scale that is NaN or infinite, or values"):
        spoiled.quantized(module)
