"""AutoGPTQ and GPTQModel folders, written naively by the definition, read as any INT4 folder is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers_gptq import pack_down, write_gptq
from safetensors.torch import load_file, save_file

from sqft_plugins.checkpoint import GridStamp, ModelFolder, load_model
from sqft_plugins.errors import CheckpointError, GridError, SQFTError
from sqft_plugins.grid import ACT_ORDER, INT4

MODULE = "model.layers.0.mlp.up_proj"


@pytest.fixture(scope="module")
def written(tiny_llama, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("written") / "gptq"
    write_gptq(tiny_llama, folder)
    return folder


@pytest.fixture
def folder(written, tmp_path) -> Path:
    return shutil.copytree(written, tmp_path / "gptq")


def change_config(folder: Path, **changes) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] |= changes
    (folder / "config.json").write_text(json.dumps(config))


def change_tensors(folder: Path, **changes) -> None:
    """qweight=..., qzeros=...: of `MODULE`; None removes the tensor."""
    tensors = load_file(folder / "model.safetensors")
    tensors |= {f"{MODULE}.{part}": tensor for part, tensor in changes.items()}
    save_file({name: t for name, t in tensors.items() if t is not None}, folder / "model.safetensors")


def assert_same(weight, expected) -> None:
    assert weight.equals(expected)
    assert weight.scale.dtype == torch.float32


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(("group_size", "symmetric"), [(32, True), (64, False), (128, True), (-1, False), (-1, True)])
def test_codes_scales_and_zero_points_come_back(tiny_model, tmp_path, version, group_size, symmetric):
    tiny_model("llama", hidden_size=128, intermediate_size=256).save_pretrained(tmp_path / "float")
    written = write_gptq(tmp_path / "float", tmp_path / "gptq", group_size, symmetric, version)
    folder = ModelFolder(tmp_path / "gptq")
    assert folder.grid == GridStamp(group_size=group_size, symmetric=symmetric)
    assert folder.int4.modules == sorted(written)
    for module, expected in written.items():
        assert_same(folder.quantized(module), expected)
        width = expected.codes.shape[1] // expected.scale.shape[1]
        scale, zero = (
            part.double().repeat_interleave(width, 1) for part in (expected.scale, expected.zero_point)
        )  # [out, in]
        naive = scale * (expected.codes.double() - zero)
        assert torch.equal(folder.weight(module).double(), naive)
        assert folder.mask(module) is None
        assert set(folder.parts(module)) == {f"{module}.{part}" for part in ("qweight", "qzeros", "scales", "g_idx")}
        assert folder.int4.scale_spec(module).dtype == torch.float16
    assert not folder.masks


def test_the_names_of_older_folders(tiny_llama, tmp_path):
    written = write_gptq(tiny_llama, tmp_path / "gptq", with_g_idx=False, config_file=True)
    folder = ModelFolder(tmp_path / "gptq")
    assert folder.grid == GridStamp(group_size=32, symmetric=True)
    assert_same(folder.quantized(MODULE), written[MODULE])


def test_a_zero_point_of_zero_survives_gptqmodels_v1(tiny_llama, tmp_path):
    """GPTQModel subtracts 1 from each code of a word at once, modulo 2^32: a zero borrows from its neighbour."""
    written = write_gptq(tiny_llama, tmp_path / "gptq", symmetric=False)
    rows = written[MODULE].zero_point.shape[0]
    zeros = torch.arange(2 * rows).reshape(rows, 2).to(torch.uint8) % 16  # every code at every place, 0 included
    v2 = pack_down(zeros.tolist()).t()  # [groups, out / 8]
    v1 = torch.tensor([[(word - 0x11111111 + 2**31) % 2**32 - 2**31 for word in row] for row in v2.tolist()])
    change_tensors(tmp_path / "gptq", qzeros=v1.to(torch.int32))
    assert torch.equal(ModelFolder(tmp_path / "gptq").quantized(MODULE).zero_point, zeros)


@pytest.mark.parametrize(("declared", "stored", "zero"), [("gptq", 2, 8), ("gptq_v2", 1, 7)])
def test_a_symmetric_folder_under_the_wrong_name_is_read_as_stored(
    tiny_llama, tmp_path, capsys, declared, stored, zero
):
    """As Qwen3.5-27B-GPTQ-Int4 (vLLM pull request 38966): 8 under the name of v1."""
    written = write_gptq(tiny_llama, tmp_path / "gptq", version=stored, checkpoint_format=declared)
    folder = ModelFolder(tmp_path / "gptq")
    assert folder.grid == GridStamp(group_size=32, symmetric=True)
    assert_same(folder.quantized(MODULE), written[MODULE])
    assert f"{declared} with sym: true, but its zero points are stored as {zero}" in capsys.readouterr().err


def test_a_folder_that_is_symmetric_in_name_only_is_asymmetric(tiny_llama, tmp_path, capsys):
    written = write_gptq(tiny_llama, tmp_path / "gptq", symmetric=False, sym=True)
    folder = ModelFolder(tmp_path / "gptq")
    assert folder.grid == GridStamp(group_size=32, symmetric=False)
    assert_same(folder.quantized(MODULE), written[MODULE])
    assert "not every zero point is 8: read as asymmetric" in capsys.readouterr().err


def test_a_model_of_it_is_the_float_model_of_the_same_weights(tiny_model, tmp_path):
    """bfloat16, tied embeddings: each weight is the exact one rounded once; the rest is untouched."""
    tiny_model("gemma3").save_pretrained(tmp_path / "float")
    written = write_gptq(tmp_path / "float", tmp_path / "gptq", symmetric=False)
    reference = load_model(tmp_path / "float")
    for module, weight in written.items():
        reference.get_submodule(module).weight.data.copy_(weight.dequantize())
    model = load_model(tmp_path / "gptq")
    assert not model.training
    assert model.dtype == torch.bfloat16
    assert model.name_or_path == str(tmp_path / "gptq")
    assert not hasattr(model.config, "quantization_config")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    ours = model.state_dict()
    for name, tensor in reference.state_dict().items():
        assert torch.equal(ours[name], tensor), name
    for module, weight in written.items():
        layer = model.get_submodule(module)
        assert layer.quantization_scheme.weights.group_size == 32
        assert not layer.quantization_scheme.weights.symmetric
        assert torch.equal(layer.weight_scale, weight.scale)  # 11 bits do not fit bfloat16: it stays float32
        assert torch.equal(layer.weight_zero_point, weight.zero_point.to(torch.int8) - 8)
        assert [name for name, _ in layer.named_parameters()] == ["weight"]  # the grid is trained and saved nowhere
    tokens = torch.tensor([[2, 40, 50, 60]])
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, reference(tokens).logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_dtype_that_is_asked_for(folder, dtype):
    model = load_model(folder, dtype=dtype)
    layer = model.get_submodule(MODULE)
    assert torch.equal(layer.weight, ModelFolder(folder).weight(MODULE).to(dtype))
    assert layer.weight_scale.dtype == dtype  # fp16 scales are exact in both


def test_zero_biases_that_the_model_has_not_are_left_out_and_others_refused(folder, capsys):
    change_tensors(folder, bias=torch.zeros(128))
    load_model(folder)
    assert f"{MODULE}.bias is zero and the model has no such bias: left out" in capsys.readouterr().err
    change_tensors(folder, bias=torch.ones(128))
    with pytest.raises(CheckpointError, match=r"does not know, the tensor model\.layers\.0\.mlp\.up_proj\.bias"):
        load_model(folder)


@pytest.mark.parametrize("desc_act", [True, False])
def test_the_order_in_the_tensor_counts_whatever_the_config_says(folder, desc_act):
    change_config(folder, desc_act=desc_act)
    plain = ModelFolder(folder).quantized(MODULE)
    assert plain.grid.kind == INT4  # the order in the tensor is trivial
    change_tensors(folder, g_idx=torch.arange(64, dtype=torch.int32).flip(0) // 32)
    ordered = ModelFolder(folder).quantized(MODULE)
    assert ordered.grid.kind == ModelFolder(folder).grid.kind == ACT_ORDER[4]
    swapped = torch.cat([plain.grid.scale[:, 1:].repeat(1, 32), plain.grid.scale[:, :1].repeat(1, 32)], 1)
    assert torch.equal(ordered.dequantize(), plain.steps().float() * swapped)
    assert torch.equal(load_model(folder, dtype=torch.float32).get_submodule(MODULE).weight, ordered.dequantize())
    change_tensors(folder, g_idx=torch.zeros(64, dtype=torch.int32))  # never filled in
    assert ModelFolder(folder).quantized(MODULE).equals(plain)


# --- what is refused ---


def test_act_order_without_its_tensor_is_refused(tiny_llama, tmp_path):
    write_gptq(tiny_llama, tmp_path / "gptq", with_g_idx=False, desc_act=True)
    with pytest.raises(CheckpointError, match=r"has desc_act but no tensor model\.layers\.0"):
        _ = ModelFolder(tmp_path / "gptq").grid


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bits": 6}, "has bits=6: give a model of 2, 3, 4, 8 bits"),
        ({"checkpoint_format": "marlin"}, "checkpoint_format marlin: save it as gptq or gptq_v2"),
        ({"is_marlin_format": True}, "save it as gptq or gptq_v2"),
        ({"group_size": None}, "has group_size=None"),
        ({"group_size": 48}, "group_size=48 does not divide in=128 of model"),
        ({"dynamic": {"+:.*up_proj": {"bits": 8}}}, "has settings of its own for"),
    ],
)
def test_settings_that_are_refused(folder, changes, message):
    change_config(folder, **changes)
    with pytest.raises(SQFTError, match=message):
        _ = ModelFolder(folder).grid


def test_layers_that_were_left_out_are_no_settings_of_their_own(folder):
    change_config(folder, dynamic={"-:.*lm_head": {}})
    assert ModelFolder(folder).grid == GridStamp(group_size=32, symmetric=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"qzeros": None}, r"has no tensor model\.layers\.0\.mlp\.up_proj\.qzeros"),
        ({"scales": None}, r"has no tensor model\.layers\.0\.mlp\.up_proj\.scales"),
        ({"scales": torch.ones(1, 128)}, r"up_proj\.scales of .*model\.safetensors is \(1, 128\), expected \(2, 128\)"),
        ({"qzeros": torch.full((2, 4), 0x77777777).int()}, r"up_proj\.qzeros of .* is \(2, 4\), expected \(2, 16\)"),
        ({"g_idx": torch.zeros(8).int()}, r"up_proj\.g_idx of .* is \(8,\), expected \(64,\)"),
        ({"qweight": torch.zeros(7, 128).int()}, "group_size=32 does not divide in=56"),
        ({"scales": torch.full((2, 128), torch.nan)}, r"model\.safetensors: .*up_proj\.scales holds NaN or infinity"),
    ],
)
def test_tensors_that_are_missing_damaged_or_of_another_shape_are_named(folder, changes, message):
    change_tensors(folder, **changes)
    with pytest.raises(SQFTError, match=message):
        ModelFolder(folder).quantized(MODULE)
    with pytest.raises((CheckpointError, GridError), match=message):
        load_model(folder)
