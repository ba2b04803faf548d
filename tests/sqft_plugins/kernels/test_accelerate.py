"""accelerate(model): the same results from the packed weights, and all put back by undo()."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import sqft_plugins
from sqft_plugins.checkpoint import ModelFolder, load_model
from sqft_plugins.checkpoint.attached import attached_weight
from sqft_plugins.compress.prune import prune_folder
from sqft_plugins.compress.quantize import quantize_folder
from sqft_plugins.errors import CheckpointError, KernelError, SQFTError
from sqft_plugins.grid import QuantizedWeight
from sqft_plugins.kernels import layout
from sqft_plugins.kernels.linear import NoWeightError, SparseInt4Linear
from sqft_plugins.kernels.load import load_accelerated
from sqft_plugins.structure import find_linears, weight_of

PROMPT = torch.arange(5, 25).view(2, 10)


@pytest.fixture(scope="module")
def int4(tiny_model, tmp_path_factory):
    """`int4(family, symmetric)` → the folder of a tiny model, pruned to 50 % and quantized; each is made once."""
    made: dict[tuple, Path] = {}

    def make(family: str = "llama", symmetric: bool = True, group_size: int = 32) -> Path:
        key = (family, symmetric, group_size)
        if key not in made:
            folder = tmp_path_factory.mktemp("int4")
            tiny_model(family).save_pretrained(folder / "float")
            prune_folder(folder / "float", folder / "pruned", method="magnitude")
            quantize_folder(folder / "pruned", folder / "int4", symmetric=symmetric, group_size=group_size)
            made[key] = folder / "int4"
        return made[key]

    return make


@pytest.mark.parametrize(
    ("family", "symmetric", "group_size"),
    [("llama", True, 32), ("qwen2", False, 64), ("gpt2", False, 32), ("gemma3", True, -1), ("bloom", True, 64)],
)
@torch.no_grad()
def test_the_model_computes_the_same_from_fewer_bytes_and_undo_puts_all_back(int4, family, symmetric, group_size):
    path = int4(family, symmetric, group_size)
    model, untouched = load_model(path, torch.float32), load_model(path, torch.float32)
    expected = model(PROMPT).logits
    parameters = dict(model.named_parameters())
    done = sqft_plugins.accelerate(model)
    assert sorted(done.layers) == ModelFolder(path).int4.modules
    assert all(isinstance(model.get_submodule(name), SparseInt4Linear) for name in done.layers)
    assert done.packed_bytes < done.float_bytes / 4  # of 32 bits a weight; tiny layers have much padding
    assert done.skipped == {}
    # activations lose 2^-16 of the largest of their segment in each of some 14 layers
    torch.testing.assert_close(model(PROMPT).logits, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
    assert torch.equal(load_accelerated(path, torch.float32)(PROMPT).logits, model(PROMPT).logits)
    assert model.generate(PROMPT, max_new_tokens=3, do_sample=False, pad_token_id=0).shape == (2, 13)
    done.undo()
    done.undo()
    assert done.layers == []
    state = untouched.state_dict()
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert all(parameter is parameters[name] for name, parameter in model.named_parameters())
    assert torch.equal(model(PROMPT).logits, expected)


def test_a_model_is_loaded_packed_without_its_float_weights(int4, monkeypatch, capsys):
    path, stood_in = int4("gpt2", False, 32), []
    monkeypatch.setattr(QuantizedWeight, "dequantize", lambda *_: pytest.fail("a float weight is made"))
    monkeypatch.setattr("sqft_plugins.kernels.load.why_not", lambda layer, _: stood_in.append(layer.weight))
    model = load_accelerated(path, torch.bfloat16)
    names = ModelFolder(path).int4.modules
    assert all(isinstance(model.get_submodule(name), SparseInt4Linear) for name in names)
    assert f"{len(names)} INT4 layers run packed" in capsys.readouterr().err
    assert [weight.untyped_storage().nbytes() for weight in stood_in] == [2] * len(names)  # one number each
    assert model.dtype == torch.bfloat16
    assert model.generate(PROMPT, max_new_tokens=2, do_sample=False, pad_token_id=0).shape == (2, 12)


def test_a_folder_that_cannot_be_loaded_packed_is_refused(int4, tmp_path):
    with pytest.raises(KernelError, match=r"float has no INT4 layers: `sqft quantize`"):
        load_accelerated(int4().parent / "float")
    copy = shutil.copytree(int4(), tmp_path / "copy")
    tensors = load_file(copy / "model.safetensors")
    tensors.pop("model.norm.weight")
    name = "model.layers.1.mlp.up_proj.weight_scale"
    save_file(tensors, copy / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"lacks the tensor model.norm.weight"):
        load_accelerated(copy)
    tensors = load_file(int4() / "model.safetensors")
    tensors[name] = tensors[name] * 1.0001
    save_file(tensors, copy / "model.safetensors")
    with pytest.raises(SQFTError, match=r"float16"):
        load_accelerated(copy)


def test_a_dtype_that_the_kernels_do_not_have_is_refused_before_a_weight_is_read(int4, monkeypatch):
    monkeypatch.setattr(ModelFolder, "quantized", lambda *_: pytest.fail("a weight is read"))
    with pytest.raises(KernelError, match=r"cannot run packed, its weight is torch.float64: load it without"):
        load_accelerated(int4(), torch.float64)


def test_what_was_done_is_said(int4, capsys):
    done = sqft_plugins.accelerate(load_model(int4(), torch.bfloat16))
    said = capsys.readouterr().err
    assert f"accelerate: {len(done.layers)} INT4 layers run packed" in said
    assert "MB of weights are" in said
    assert str(done) in said.replace("\n", " ")


def test_a_layer_that_was_merged_into_stays_and_is_told(int4, capsys):
    model = load_model(int4(), torch.float32)
    name, layer = next(iter(find_linears(model).items()))
    weight_of(layer)[3, 5] += 0.01
    changed = layer.weight.clone()
    hooked = model.get_submodule("model.layers.1.mlp.up_proj")
    hooked.register_forward_hook(lambda *_: None)
    done = sqft_plugins.accelerate(model)
    assert set(done.skipped) == {name, "model.layers.1.mlp.up_proj"}
    assert "was an adapter merged into it?" in done.skipped[name]
    assert "hooks" in done.skipped["model.layers.1.mlp.up_proj"]
    assert f"{name} stays" in capsys.readouterr().err
    assert model.get_submodule(name) is layer
    assert torch.equal(layer.weight, changed)


def test_what_has_no_int4_layers_is_refused(tiny_model, int4):
    with pytest.raises(KernelError, match="LlamaForCausalLM has no INT4 layers"):
        sqft_plugins.accelerate(tiny_model("llama"))
    model = load_model(int4(), torch.float32)
    sqft_plugins.accelerate(model)
    with pytest.raises(KernelError, match="accelerated already"):
        sqft_plugins.accelerate(model)
    broken = load_model(int4(), torch.float32)
    before = dict(broken.named_modules())
    for layer in find_linears(broken).values():
        layer.weight.data *= 1.5
    with pytest.raises(KernelError, match="none of 14 INT4 layers can be swapped"):
        sqft_plugins.accelerate(broken)
    assert dict(broken.named_modules()) == before


def test_scales_that_float16_does_not_hold_leave_their_layer_as_it_was(int4):
    """Another program's scales may have all the bits of float32."""
    model = load_model(int4(), torch.float32)
    layer = model.get_submodule("model.layers.1.mlp.up_proj")
    found, _ = attached_weight(layer)
    layer.weight_scale.data *= 1.0001
    layer.weight.data = found._replace(grid=replace(found.grid, scale=layer.weight_scale.data.float())).dequantize()
    done = sqft_plugins.accelerate(model)
    assert list(done.skipped) == ["model.layers.1.mlp.up_proj"]
    assert "float16" in done.skipped["model.layers.1.mlp.up_proj"]
    assert len(done.layers) == 13


def test_a_failure_half_way_puts_all_back(int4, monkeypatch):
    model, pack = load_model(int4(), torch.float32), layout.pack
    expected, calls = dict(model.named_modules()), []

    def fails(codes, mask):
        calls.append(codes)
        if len(calls) == 5:
            raise MemoryError
        return pack(codes, mask)

    monkeypatch.setattr("sqft_plugins.kernels.weight.layout.pack", fails)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(MemoryError):
        sqft_plugins.accelerate(model)
    assert dict(model.named_modules()) == expected
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@torch.no_grad()
def test_an_adapter_that_needs_the_float_weight_says_so(int4):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["up_proj"], use_dora=True, init_lora_weights=False)
    model = peft.get_peft_model(load_model(int4(), torch.float32), config).eval()
    expected = model(PROMPT).logits
    done = sqft_plugins.accelerate(model)
    with pytest.raises(NoWeightError, match=r"has no float weight, .*undo\(\)"):
        model(PROMPT)
    with pytest.raises(NoWeightError, match=r"every merge"):
        model.merge_and_unload()
    done.undo()
    assert torch.equal(model(PROMPT).logits, expected)


def test_a_gradient_is_refused_only_when_it_is_taken(int4):
    model = load_model(int4(), torch.float32)
    done = sqft_plugins.accelerate(model)
    logits = model(PROMPT).logits  # outside of no_grad: the embeddings ask for a gradient
    with pytest.raises(KernelError, match="has no gradients: call undo"):
        logits.sum().backward()
    done.undo()
    model(PROMPT).logits.sum().backward()


def test_an_accelerated_model_is_not_saved_without_its_weights(int4, tmp_path):
    model = load_model(int4(), torch.float32)
    done = sqft_plugins.accelerate(model)
    with pytest.raises(KernelError, match=r"cannot be saved: call undo"):
        model.save_pretrained(tmp_path / "saved")
    done.undo()
    assert "model.layers.0.mlp.up_proj.weight" in model.state_dict()


@torch.no_grad()
def test_changing_the_dtype_of_the_model_leaves_the_packed_weights_alone(int4):
    model = load_model(int4(), torch.float32)
    expected = load_model(int4(), torch.bfloat16)(PROMPT).logits.float()
    sqft_plugins.accelerate(model)
    narrow = model.to(torch.bfloat16)(PROMPT).logits
    assert narrow.dtype == torch.bfloat16
    torch.testing.assert_close(narrow.float(), expected, rtol=0.05, atol=0.05 * float(expected.abs().max()))  # bf16


@torch.no_grad()
def test_undo_follows_the_model_to_another_dtype(int4):
    path = int4("qwen2", False, 64)  # has biases
    model = load_model(path, torch.float32)
    done = sqft_plugins.accelerate(model)
    model.to(torch.bfloat16)
    done.undo()
    expected = load_model(path, torch.float32).to(torch.bfloat16)
    assert torch.equal(model(PROMPT).logits, expected(PROMPT).logits)
    assert {parameter.dtype for name, parameter in model.named_parameters() if "weight_" not in name} == {
        torch.bfloat16
    }


@torch.no_grad()
def test_an_accelerated_layer_compiles(int4):
    model = load_model(int4(), torch.float32)
    sqft_plugins.accelerate(model)
    block: nn.Module = model.model.layers[0].mlp
    x = torch.randn(3, 64)
    assert torch.equal(torch.compile(block, backend="aot_eager", fullgraph=True)(x), block(x))
