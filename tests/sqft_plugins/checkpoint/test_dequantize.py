"""INT4 folders as plain linears: layers of all kinds, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import MixtralConfig, MixtralForCausalLM

from sqft_plugins.checkpoint import GridStamp, ModelFolder, load_model
from sqft_plugins.checkpoint.attached import has_grid
from sqft_plugins.checkpoint.int4 import int4_config, int4_tensors
from sqft_plugins.compress.prune import prune_folder
from sqft_plugins.compress.quantize import quantize_folder
from sqft_plugins.errors import CheckpointError, KernelError
from sqft_plugins.grid import int4_weight, make_scale, quantize
from sqft_plugins.kernels.load import load_accelerated
from sqft_plugins.structure import find_linears, weight_of


@pytest.fixture(scope="module")
def gpt2(tiny_model, tmp_path_factory) -> Path:
    """A pruned INT4 GPT-2, whose linears are Conv1D: weights [in, out] in memory, [out, in] in the folder."""
    folder = tmp_path_factory.mktemp("gpt2")
    tiny_model("gpt2").save_pretrained(folder / "float")
    prune_folder(folder / "float", folder / "pruned", method="magnitude")
    quantize_folder(folder / "pruned", folder / "int4", symmetric=False)
    return folder / "int4"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_conv1d_gets_its_weight_turned_back(gpt2, dtype):
    folder, model = ModelFolder(gpt2), load_model(gpt2, dtype=dtype)
    layers = find_linears(model)
    assert sorted(layers) == folder.int4.modules
    for name, layer in layers.items():
        assert torch.equal(weight_of(layer), folder.weight(name).to(dtype))
        assert torch.equal(folder.mask(name) & (weight_of(layer) != 0), weight_of(layer) != 0)
    assert model.lm_head.weight is model.transformer.wte.weight
    assert torch.equal(model.transformer.wte.weight, folder.tensor("transformer.wte.weight").to(dtype))
    assert model.generate(torch.tensor([[2, 40, 50]]), max_new_tokens=3, do_sample=False).shape == (1, 6)


def test_the_mask_of_a_float_conv1d_is_that_of_the_turned_weight(gpt2):
    pruned = ModelFolder(gpt2.parent / "pruned")
    for name in pruned.masks:
        assert torch.equal(pruned.mask(name), pruned.weight(name) != 0)


def test_a_folder_of_the_bare_body_is_found_without_the_first_part_of_its_names(gpt2, tmp_path):
    """GPT-2 and Bloom are published without `transformer.`."""
    copy = shutil.copytree(gpt2, tmp_path / "copy")
    tensors = load_file(copy / "model.safetensors")
    save_file({n.removeprefix("transformer."): t for n, t in tensors.items()}, copy / "model.safetensors")
    ours, theirs = load_model(copy).state_dict(), load_model(gpt2).state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_experts_are_dequantized_into_the_tensor_that_transformers_makes_of_them(tmp_path, monkeypatch):
    """As other programs quantize Mixtral: each expert a module of its own in the folder, none in the model."""
    config = MixtralConfig(
        vocab_size=64, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, num_local_experts=2,
    )  # fmt: skip
    MixtralForCausalLM(config).save_pretrained(tmp_path / "int4")
    tensors, grid = load_file(tmp_path / "int4" / "model.safetensors"), GridStamp(group_size=32, symmetric=True)
    experts = [n.removesuffix(".weight") for n in tensors if ".experts." in n]
    q_proj = "model.layers.0.self_attn.q_proj"
    assert len(experts) == 6
    for module in (*experts, q_proj):
        weight = tensors.pop(f"{module}.weight")
        scale, zero_point = make_scale(weight)
        quantized = int4_weight(quantize(weight, scale, zero_point), scale, zero_point)
        tensors |= int4_tensors(module, quantized, grid, torch.float32)
    save_file(tensors, tmp_path / "int4" / "model.safetensors", {"format": "pt"})
    stored = json.loads((tmp_path / "int4" / "config.json").read_text())
    (tmp_path / "int4" / "config.json").write_text(json.dumps(int4_config(stored, grid, ["lm_head"])))

    folder, model = ModelFolder(tmp_path / "int4"), load_model(tmp_path / "int4")
    fused = model.model.layers[0].mlp.experts.gate_up_proj
    name = next(name for name in experts if name.endswith(("1.w1", "1.gate_proj")))
    assert torch.equal(fused[1, :64], folder.weight(name))
    assert torch.equal(weight_of(model.get_submodule(q_proj)), folder.weight(q_proj))
    assert has_grid(model.get_submodule(q_proj))
    monkeypatch.setattr(ModelFolder, "quantized", lambda *_: pytest.fail("a weight is read before the refusal"))
    monkeypatch.setattr(ModelFolder, "tensor", lambda *_: pytest.fail("a weight is read before the refusal"))
    with pytest.raises(KernelError, match=r"experts\.0\.\w+ is no layer of its own: load it without accelerating it"):
        load_accelerated(tmp_path / "int4")


# --- what our loader refuses ---


def test_tensors_that_are_missing_left_over_or_of_another_shape(gpt2, tmp_path):
    copy = shutil.copytree(gpt2, tmp_path / "copy")
    tensors = load_file(copy / "model.safetensors")
    norm = "transformer.ln_f.weight"
    for changed, message in [
        ({n: t for n, t in tensors.items() if n != norm}, rf"lacks the tensor {norm} \(1 in all\)"),
        ({**tensors, "transformer.other": torch.zeros(1)}, r"does not know, the tensor transformer\.other"),
        ({**tensors, norm: torch.ones(3)}, rf"has in another shape the tensor {norm}"),
        ({**tensors, "other.weight_packed": torch.zeros(1, 8).int()}, r"does not know, the tensor other\.weight"),
    ]:
        save_file(changed, copy / "model.safetensors")
        with pytest.raises(CheckpointError, match=message):
            load_model(copy)
    save_file(tensors, copy / "model.safetensors")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "n_inner": 96}))
    with pytest.raises(CheckpointError, match=r"has in another shape the tensor transformer\.h\.0\.mlp\.c_fc"):
        load_model(copy)
