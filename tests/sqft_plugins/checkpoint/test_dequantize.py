"""INT4 folders that stock transformers does not dequantize, and what is left on the layers of those that it does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sqft_plugins.checkpoint import ModelFolder, load_model
from sqft_plugins.checkpoint.compact_convert import compact_folder
from sqft_plugins.compress.prune import prune_folder
from sqft_plugins.compress.quantize import quantize_folder
from sqft_plugins.errors import CheckpointError
from sqft_plugins.structure import find_linears, weight_of

GRID = ("weight_scale", "weight_zero_point", "weight_shape")


@pytest.fixture(scope="module")
def gpt2(tiny_model, tmp_path_factory) -> Path:
    """A pruned INT4 GPT-2, whose linears are Conv1D: weights [in, out] in memory, [out, in] in the folder."""
    folder = tmp_path_factory.mktemp("gpt2")
    tiny_model("gpt2").save_pretrained(folder / "float")
    prune_folder(folder / "float", folder / "pruned", method="magnitude")
    quantize_folder(folder / "pruned", folder / "int4", symmetric=False)
    return folder / "int4"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_conv1d_gets_its_weight_turned_back(gpt2, dtype, capsys):
    folder, model = ModelFolder(gpt2), load_model(gpt2, dtype=dtype)
    assert "compressed-tensors does not decompress a Conv1D" in capsys.readouterr().err
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


@pytest.mark.parametrize("family", ["llama", "gemma"])
@pytest.mark.parametrize(("group_size", "symmetric"), [(32, True), (-1, True), (64, False)])
def test_our_loader_leaves_what_transformers_leaves(request, tmp_path, family, group_size, symmetric):
    """The same folder, packed (read by transformers) and compact (read by us): parameters, buffers, scheme, status."""
    prune_folder(request.getfixturevalue(f"tiny_{family}"), tmp_path / "pruned", method="magnitude")
    quantize_folder(tmp_path / "pruned", tmp_path / "int4", group_size=group_size, symmetric=symmetric)
    compact_folder(tmp_path / "int4", tmp_path / "compact")
    theirs, ours = load_model(tmp_path / "int4"), load_model(tmp_path / "compact")
    for name in ModelFolder(tmp_path / "int4").int4.modules:
        a, b = theirs.get_submodule(name), ours.get_submodule(name)
        for part in GRID:
            if part == "weight_zero_point" and symmetric:
                assert not hasattr(b, part)
                continue
            assert torch.equal(getattr(a, part), getattr(b, part)), (name, part)
            assert getattr(a, part).dtype == getattr(b, part).dtype, (name, part)
            assert getattr(a, part).requires_grad == getattr(b, part).requires_grad is False
        schemes = [layer.quantization_scheme.weights.model_dump(exclude={"zp_dtype"}) for layer in (a, b)]
        assert schemes[0] == schemes[1]
        assert a.quantization_status == b.quantization_status
    assert theirs.config.to_dict().keys() == ours.config.to_dict().keys()
    assert theirs.generation_config.to_dict() == ours.generation_config.to_dict()
    assert Path(ours.config._name_or_path).name == "compact"


# --- what our loader refuses ---


def test_tensors_that_are_missing_left_over_or_of_another_shape(gpt2, tmp_path):
    copy = shutil.copytree(gpt2, tmp_path / "copy")
    tensors = load_file(copy / "model.safetensors")
    norm = "transformer.ln_f.weight"
    for changed, message in [
        ({n: t for n, t in tensors.items() if n != norm}, rf"lacks the tensor {norm} \(1 in all\)"),
        ({**tensors, "transformer.other": torch.zeros(1)}, r"does not know, the tensor transformer\.other"),
        ({**tensors, norm: torch.ones(3)}, rf"has in another shape the tensor {norm}"),
        ({**tensors, "other.weight_packed": torch.zeros(1, 8).int()}, "other is INT4 but GPT2LMHeadModel has no such"),
    ]:
        save_file(changed, copy / "model.safetensors")
        with pytest.raises(CheckpointError, match=message):
            load_model(copy)
    save_file(tensors, copy / "model.safetensors")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "n_inner": 96}))
    with pytest.raises(CheckpointError, match=r"has in another shape the tensor transformer\.h\.0\.mlp\.c_fc"):
        load_model(copy)
