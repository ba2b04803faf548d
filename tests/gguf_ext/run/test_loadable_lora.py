"""LoRA files that llama.cpp would die of."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

import gguf_ext
from gguf_ext import LlamaSession, export_gguf
from gguf_ext.arch import Entry
from gguf_ext.errors import UnloadableFileError
from gguf_ext.reader import GGUFFile


def test_a_lora_file_is_no_model(tmp_path, base):
    base("llama")[1](tmp_path / "lora.gguf", {"general.type": ("adapter", "string")})
    for door in (LlamaSession, gguf_ext.load):
        with pytest.raises(UnloadableFileError, match="it is a LoRA file"):
            door(tmp_path / "lora.gguf")


@pytest.fixture(scope="module")
def lora(save, tmp_path_factory):
    """A base's file and a function that writes its LoRA file with other entries and tensors."""
    from peft import LoraConfig, get_peft_model

    from gguf_ext import export_lora

    gguf, root = pytest.importorskip("gguf"), tmp_path_factory.mktemp("lora")
    folder = save("llama")
    export_gguf(folder, root / "base.gguf")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj"])).save_pretrained(root / "adapter")
    export_lora(root / "adapter", root / "plain.gguf", base=folder)
    read = GGUFFile(root / "plain.gguf")

    def write(file, entries=(), tensors=()):
        changed = {key: Entry(key, value, read.kinds[key]) for key, value in read.metadata.items()}
        changed |= {entry.key: entry for entry in entries}
        kinds = {"uint32": gguf.GGUFValueType.UINT32, "string": gguf.GGUFValueType.STRING}
        writer = gguf.GGUFWriter(file, changed.pop("general.architecture").value)
        for key, value, kind in changed.values():
            if not kind.endswith("s"):
                writer.add_key_value(key, value, kinds.get(kind) or gguf.GGUFValueType[kind.upper()])
        for info in read.tensors.values():
            rows = read.dequantize(info.name).reshape(info.shape).copy()
            writer.add_tensor(info.name, dict(tensors).get(info.name, lambda same: same)(rows))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return file

    return root / "base.gguf", write


A = "blk.0.attn_q.weight.lora_a"


@pytest.mark.parametrize(
    ("entries", "tensors", "why"),
    [
        ([], {A: lambda rows: rows.astype("float64")}, f"{A} is of F64"),
        ([], {A: lambda rows: rows.astype("int32")}, f"{A} is of I32"),
        ([], {A: lambda rows: rows * float("nan")}, f"{A} holds values that are no numbers"),
        ([], {A: lambda rows: rows + float("inf")}, f"{A} holds values that are no numbers"),
        ([], {A: lambda rows: torch.from_numpy(rows).expand(2, *rows.shape).numpy().copy()}, f"{A} has 3 dimensions"),
        ([Entry("adapter.lora.alpha", 3, "uint32")], {}, "adapter.lora.alpha is of kind uint32"),
        ([Entry("adapter.lora.alpha", float("nan"), "float32")], {}, "adapter.lora.alpha=nan"),
        ([Entry("adapter.lora.task_name", 3, "uint32")], {}, "adapter.lora.task_name is of kind uint32"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_deadly_lora_file_is_refused_before_llama_cpp_has_it(lora, tmp_path, entries, tensors, why):
    base, write = lora
    file = write(tmp_path / "lora.gguf", entries, tensors)
    with LlamaSession(base, threads=1) as session:
        with pytest.raises(UnloadableFileError, match=f"cannot add {file}: {why}"):
            session.set_adapters({file: 1.0})
        session.set_adapters({write(tmp_path / "fine.gguf"): 1.0})
    with pytest.raises(UnloadableFileError, match=why):
        gguf_ext.load(base, {"math": file})
