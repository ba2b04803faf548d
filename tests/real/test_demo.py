"""The main job on the real model: what `make demo` promises, at a smaller scale."""

from __future__ import annotations

import json

import pytest
import torch

from sqft_plugins.checkpoint import ModelFolder
from sqft_plugins.checkpoint.restore import restore_grids


@pytest.mark.once  # the only ones that ask for a model that is whole
def test_the_rows_are_as_good_as_they_promise(demo) -> None:
    out, report = demo
    stages = {stage["name"]: stage for stage in report["stages"]}
    assert stages["pruned"]["perplexity"] > 1.3 * stages["dense"]["perplexity"]
    losses = json.loads((out / "adapter" / "training.json").read_text())["losses"]
    assert sum(losses[-3:]) < sum(losses[:3]) - 0.5
    assert stages["int4"]["perplexity"] < 1.25 * stages["merged"]["perplexity"]  # round-to-nearest: 1.6 times


def test_the_report_keeps_its_promises(demo) -> None:
    _, report = demo
    stages = {stage["name"]: stage for stage in report["stages"]}
    assert report["merge"]["max_logit_difference"] < 1e-3
    assert report["merge"]["zeros_lost"] == 0
    # the merged model is stored in bfloat16, the unmerged sum is computed in the dtype that is fast here
    assert stages["merged"]["perplexity"] == pytest.approx(stages["tuned"]["perplexity"], rel=0.01)
    assert [stages[name]["zeros_kept"] for name in ("pruned", "tuned", "merged", "int4", "gguf")] == [1.0] * 5
    assert report["pruned_sparsity"] == pytest.approx(0.5, abs=0.001)
    assert stages["int4"]["bits_per_weight"] == pytest.approx(4.5, abs=0.01)
    # the same weights; llama.cpp rounds activations to 8 bits
    assert stages["gguf"]["perplexity"] == pytest.approx(stages["int4"]["perplexity"], rel=0.05)
    assert report["gguf"]["equal"]


@pytest.mark.slow  # one more training; tests/sqft_plugins/demo asks the same of a tiny model
def test_a_plain_lora_merge_keeps_none_of_the_zeros(compared) -> None:
    (row,) = [stage for stage in compared["stages"] if stage["name"] == "lora_merged"]
    assert row["zeros_kept"] < 0.01


def test_every_gguf_tensor_is_bit_equal_by_llama_cpps_own_dequantizer(demo) -> None:
    from gguf import GGUFReader
    from gguf.quants import dequantize as upstream

    out, _ = demo
    folder = ModelFolder(out / "int4")
    kinds = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj"}
    kinds |= {"attn_output": "self_attn.o_proj"}
    kinds |= {f"ffn_{part}": f"mlp.{part}_proj" for part in ("gate", "up", "down")}
    compared = 0
    for tensor in GGUFReader(out / "model.gguf").tensors:
        parts = tensor.name.split(".")
        if parts[0] != "blk" or parts[2] not in kinds:
            continue
        module = f"model.layers.{parts[1]}.{kinds[parts[2]]}"
        found = torch.from_numpy(upstream(tensor.data, tensor.tensor_type).copy())
        weight = folder.quantized(module)
        assert torch.equal(found, weight.dequantize()), module
        assert not found[~folder.mask(module)].any(), module
        compared += 1
    blocks = json.loads((folder.path / "config.json").read_text())["num_hidden_layers"]
    assert compared == 7 * blocks == len(folder.int4.modules)


def test_the_int4_folder_loads_in_stock_transformers(demo) -> None:
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig

    out, _ = demo
    folder = ModelFolder(out / "int4")
    settings = CompressedTensorsConfig(dequantize=True)

    # in the folder's own dtype: each weight is rounded once
    model = AutoModelForCausalLM.from_pretrained(folder.path, quantization_config=settings, dtype="auto")
    weights = {name: model.get_submodule(name).weight for name in folder.int4.modules}
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}
    assert all(torch.equal(weight, folder.weight(name).bfloat16()) for name, weight in weights.items())

    # in float32, where transformers rounds to bfloat16 first from 5.24 on: exact once our code has met the model
    model = AutoModelForCausalLM.from_pretrained(folder.path, quantization_config=settings, dtype=torch.float32)
    restore_grids(model)
    assert all(torch.equal(model.get_submodule(name).weight, folder.weight(name)) for name in folder.int4.modules)
