"""LoRA files: llama.cpp with the file against PEFT, switched, scaled, and what is refused."""

from __future__ import annotations

import json

import pytest
import torch
from gguf import GGUFReader, GGUFValueType, GGUFWriter
from helpers_lora import logits, peft_logits, save_adapter, session_of
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

import peft_ext  # noqa: F401 (registers SQFT with PEFT)
from gguf_ext import GGUFError, export_lora
from gguf_ext.errors import AdapterError, RuntimeFailedError, UnmappedTensorError
from gguf_ext.reader import GGUFFile
from peft_ext import SQFTConfig
from sqft_plugins.cli import main
from sqft_plugins.errors import CheckpointError, MismatchError, OutputExistsError, SQFTError
from sqft_plugins.tune.extract import extract_adapter

TARGETS = {
    "llama": ["q_proj", "k_proj", "v_proj", "down_proj", "lm_head"],
    "qwen2": ["q_proj", "k_proj", "up_proj"],
    "gpt2": ["c_attn", "c_fc"],
    "bloom": ["query_key_value", "dense_4h_to_h"],
    "phi3": ["qkv_proj", "gate_up_proj"],
}


@pytest.mark.parametrize("family", TARGETS)
def test_logits_with_ranks_that_differ_are_those_of_the_merged_model(family, bases, tmp_path):
    base, file = bases(family)
    first = TARGETS[family][0]
    patterns = {"rank_pattern": {first: 4}, "alpha_pattern": {rf"[01]\.\w+\.{first}": 24}}
    adapter = save_adapter(base, tmp_path / "adapter", TARGETS[family], **patterns)
    report = export_lora(adapter, tmp_path / "lora.gguf")
    assert set(report.ranks) == {4, 8}
    wanted = peft_logits(base, adapter)
    with session_of(file) as session:
        bare = logits(session)
        session.set_adapters({tmp_path / "lora.gguf": 1.0})
        largest = float((logits(session) - wanted).abs().max())
    tolerance = 2e-3 if family in ("gpt2", "bloom") else 1e-4  # llama.cpp's gelu goes through a table in fp16
    assert largest < tolerance
    assert float((bare - wanted).abs().max()) > 20 * tolerance


def test_two_adapters_are_switched_and_scaled(bases, tmp_path):
    base, file = bases("llama")
    one, two = (save_adapter(base, tmp_path / str(seed), TARGETS["llama"], seed=seed) for seed in (1, 2))
    files = [tmp_path / "one.gguf", tmp_path / "two.gguf"]
    for adapter, target in zip((one, two), files, strict=True):
        export_lora(adapter, target, base=base)
    with session_of(file) as session:
        bare = logits(session)
        for adapter, target in ((one, files[0]), (two, files[1]), (one, files[0])):
            session.set_adapters({target: 1.0})
            torch.testing.assert_close(logits(session), peft_logits(base, adapter), rtol=0, atol=1e-4)
        session.set_adapters({files[0]: 0.5})
        config = json.loads((one / "adapter_config.json").read_text())
        (one / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 8}))
        torch.testing.assert_close(logits(session), peft_logits(base, one), rtol=0, atol=1e-4)
        session.set_adapters({})
        torch.testing.assert_close(logits(session), bare, rtol=0, atol=0)


@pytest.mark.parametrize("use_rslora", [False, True])
def test_a_sub_adapter_of_a_dense_sqft_adapter(use_rslora, bases, tmp_path):
    base, file = bases("llama")
    settings = {"sparse": False, "rank_choices": [8, 6, 4], "use_rslora": use_rslora}
    adapter = save_adapter(base, tmp_path / "super", ["q_proj", "v_proj"], config=SQFTConfig, **settings)
    with pytest.raises(AdapterError, match="is elastic: write one of its ranks with `sqft extract"):
        export_lora(adapter, tmp_path / "lora.gguf")
    extract_adapter(adapter, tmp_path / "sub", 6)
    export_lora(tmp_path / "sub", tmp_path / "lora.gguf")
    with session_of(file) as session:
        session.set_adapters({tmp_path / "lora.gguf": 1.0})
        found = logits(session)
    torch.testing.assert_close(found, peft_logits(base, tmp_path / "sub"), rtol=0, atol=1e-4)


def test_ranks_and_weights_that_are_not_those_of_the_configuration_are_refused(bases, tmp_path):
    base, _ = bases("llama")
    adapter = save_adapter(base, tmp_path / "adapter", ["q_proj", "lm_head"])
    export_lora(adapter, tmp_path / "lora.gguf")
    file = adapter / "adapter_config.json"
    config = json.loads(file.read_text())
    for changes in ({"r": 16}, {"rank_pattern": {"q_proj": 4}}):
        file.write_text(json.dumps({**config, **changes}))
        with pytest.raises(CheckpointError, match=r"has rank 8 in its tensors and \d+ in adapter_config\.json"):
            export_lora(adapter, tmp_path / "lora.gguf", overwrite=True)
    file.write_text(json.dumps(config))
    tensors = load_file(adapter / "adapter_model.safetensors")
    name = next(name for name in tensors if ".base_layer." in name)
    tensors[name] = tensors[name] + 1
    save_file(tensors, adapter / "adapter_model.safetensors")
    with pytest.raises(MismatchError, match="carries a lm_head of its own, which is not that of"):
        export_lora(adapter, tmp_path / "lora.gguf", overwrite=True)


def test_a_file_with_invocation_tokens_is_not_switched_on(bases, tmp_path):
    """llama.cpp's library would add it to every token."""
    base, file = bases("llama")
    export_lora(save_adapter(base, tmp_path / "adapter", ["q_proj"]), tmp_path / "lora.gguf")
    reader = GGUFReader(tmp_path / "lora.gguf")
    writer = GGUFWriter(tmp_path / "alora.gguf", "llama")
    writer.add_string("general.type", "adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_key_value("adapter.alora.invocation_tokens", [5, 6], GGUFValueType.ARRAY, GGUFValueType.UINT32)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with session_of(file) as session, pytest.raises(RuntimeFailedError, match="would have it always on"):
        session.set_adapters({tmp_path / "alora.gguf": 1.0})


def test_another_base_and_modules_without_a_place_are_refused(bases, tiny_gemma, tmp_path):
    base, _ = bases("llama")
    adapter = save_adapter(base, tmp_path / "adapter", ["down_proj"])
    other = _other(base, tmp_path / "other", intermediate_size=96)
    with pytest.raises(MismatchError, match="name its own base with --base"):
        export_lora(adapter, tmp_path / "lora.gguf", base=other)
    with pytest.raises(UnmappedTensorError, match=r"model\.layers\.0\.mlp\.down_proj .* no place in a gpt2 file"):
        export_lora(adapter, tmp_path / "lora.gguf", base=bases("gpt2")[0])
    tied = save_adapter(tiny_gemma, tmp_path / "tied", ["lm_head"])
    with pytest.raises(UnmappedTensorError):
        export_lora(tied, tmp_path / "lora.gguf")
    export_lora(adapter, tmp_path / "lora.gguf")
    with pytest.raises(OutputExistsError):
        export_lora(adapter, tmp_path / "lora.gguf")
    with session_of(bases("qwen2")[1]) as session:
        with pytest.raises(RuntimeFailedError, match="export it for this base"):
            session.set_adapters({tmp_path / "lora.gguf": 1.0})
        with pytest.raises(GGUFError, match="is not a file"):
            session.set_adapters({tmp_path / "none.gguf": 1.0})


def test_a_damaged_adapter_is_named(bases, tmp_path):
    base, _ = bases("llama")
    adapter = save_adapter(base, tmp_path / "adapter", ["down_proj"])
    file = adapter / "adapter_model.safetensors"
    whole = load_file(file)
    a, b = (f"base_model.model.model.layers.0.mlp.down_proj.lora_{side}.weight" for side in "AB")
    module = r"model\.layers\.0\.mlp\.down_proj"
    for tensors, problem in (
        ({**whole, b: whole[b][:, :3].contiguous()}, rf"lora_B .* of {module}, .* together: copy the adapter"),
        ({n: t for n, t in whole.items() if n != b}, rf"has lora_A of {module} but no lora_B: copy the adapter"),
        ({n: t for n, t in whole.items() if n != a}, rf"has lora_B of {module} but no lora_A: copy the adapter"),
        ({n.replace("down", "up"): t for n, t in whole.items()}, "up_proj, which target_modules .* does not name"),
        ({}, "holds no LoRA"),
    ):
        save_file(tensors, file)
        with pytest.raises(SQFTError, match=problem):
            export_lora(adapter, tmp_path / "lora.gguf")
    (adapter / "adapter_config.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"adapter_config\.json holds no JSON object"):
        export_lora(adapter, tmp_path / "lora.gguf")
    assert not (tmp_path / "lora.gguf").exists()


def _other(base, folder, **changes):
    config = AutoConfig.from_pretrained(base)
    config.update(changes)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def test_from_the_command_line(bases, tmp_path, capsys):
    base, _ = bases("llama")
    adapter = save_adapter(base, tmp_path / "adapter", ["q_proj"])
    with pytest.raises(SystemExit) as done:
        main(["export", "gguf-lora", str(adapter), "--out", str(tmp_path / "lora.gguf")])
    assert done.value.code == 0
    assert "llama, 2 modules (2 of rank 8)" in capsys.readouterr().out
    metadata = GGUFFile(tmp_path / "lora.gguf").metadata
    assert (metadata["general.type"], metadata["adapter.type"]) == ("adapter", "lora")
    assert metadata["adapter.lora.alpha"] == 0


def test_an_adapter_saved_as_a_pickle_gives_the_very_same_file(bases, tmp_path):
    """adapter_model.bin, as PEFT wrote it before safetensors."""
    base, _ = bases("llama")
    adapter = save_adapter(base, tmp_path / "adapter", TARGETS["llama"][:2])
    export_lora(adapter, tmp_path / "a.gguf", base=base)
    tensors = load_file(adapter / "adapter_model.safetensors")
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"has no adapter_model\.safetensors"):
        export_lora(adapter, tmp_path / "b.gguf", base=base)
    torch.save(tensors, adapter / "adapter_model.bin")
    export_lora(adapter, tmp_path / "b.gguf", base=base)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


@pytest.mark.parametrize("content", [b"", b"no pickle", [1, 2], {"a": 3}, {"a": AdapterError}])
def test_a_pickle_of_anything_but_tensors_is_refused_in_one_line(content, bases, tmp_path):
    base, _ = bases("llama")
    adapter = save_adapter(base, tmp_path / "adapter", ["q_proj"])
    (adapter / "adapter_model.safetensors").unlink()
    if isinstance(content, bytes):
        (adapter / "adapter_model.bin").write_bytes(content)
    else:
        torch.save(content, adapter / "adapter_model.bin")
    with pytest.raises(CheckpointError, match=r"adapter_model\.bin (is damaged|holds no tensors)") as caught:
        export_lora(adapter, tmp_path / "m.gguf", base=base)
    assert "\n" not in str(caught.value)
