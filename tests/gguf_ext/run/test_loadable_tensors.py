"""Tensors that no operator of llama.cpp takes."""

from __future__ import annotations

import pytest
import torch
from helpers_llama import dies

from gguf_ext import LlamaSession
from gguf_ext.errors import UnloadableFileError
from gguf_ext.reader import GGUFFile

TYPES = {0: "F32", 1: "F16", 26: "I32", 28: "F64", 30: "BF16"}


@pytest.fixture(scope="module")
def retyped(base, tmp_path_factory):
    """Family, tensor, type → its file with that tensor so; a type of None leaves it out."""
    gguf = pytest.importorskip("gguf")
    root = tmp_path_factory.mktemp("types")

    def write(family, name, kind):
        values, make_file = base(family)
        plain, file = root / f"{family}.gguf", root / f"{family}-{name}-{kind}.gguf"
        make_file(plain, {})
        read = GGUFFile(plain)
        writer = gguf.GGUFWriter(file, read.metadata["general.architecture"])
        plurals = {"floats": "FLOAT32", "ints": "INT32"}
        for key in values:
            entry = read.kinds[key]
            item = gguf.GGUFValueType[plurals.get(entry, entry.removesuffix("s").upper())]
            array = (gguf.GGUFValueType.ARRAY, item) if entry.endswith("s") else (item, None)
            writer.add_key_value(key, values[key], *array)
        for info in read.tensors.values():
            rows = torch.from_numpy(read.dequantize(info.name).copy()).reshape(info.shape)
            if info.name == name and kind is None:
                continue
            kinds = {1: torch.float16, 26: torch.int32, 28: torch.float64}
            if info.name == name and kind == 30:
                half = rows.bfloat16().view(torch.uint8).numpy()
                writer.add_tensor(info.name, half, raw_dtype=gguf.GGMLQuantizationType.BF16)
            else:
                writer.add_tensor(info.name, rows.to(kinds.get(kind if info.name == name else 0, rows.dtype)).numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return file

    return write


WRONG_TYPES = [
    ("llama", "output_norm.weight", 1),
    ("qwen2", "blk.1.attn_q.bias", 30),
    ("gpt2", "blk.0.attn_norm.bias", 1),
    ("gemma3_text", "blk.0.attn_q_norm.weight", 28),
    ("llama", "blk.1.ffn_up.weight", 28),
    ("llama", "token_embd.weight", 26),
    ("phi3", "blk.1.attn_qkv.weight", None),
]


def test_tensors_that_no_operator_takes_are_refused(retyped):
    for family, name, kind in WRONG_TYPES:
        file = retyped(family, name, kind)
        with pytest.raises(UnloadableFileError, match=f"{name} is ({TYPES.get(kind)}|of {TYPES.get(kind)}|missing)"):
            LlamaSession(file)
    fine = [retyped("llama", "blk.1.ffn_up.weight", kind) for kind in (0, 1, 30)]
    for file in fine:
        LlamaSession(file, threads=1).close()
    assert dies(*(retyped(*case) for case in WRONG_TYPES), *fine) == [True] * len(WRONG_TYPES) + [False] * len(fine)
