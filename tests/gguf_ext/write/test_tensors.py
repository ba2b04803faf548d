"""INT4 to the bit, whatever the form of the folder."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from gguf import MODEL_ARCH, GGUFReader, get_tensor_name_map, quants
from helpers_gptq import write_gptq
from safetensors.torch import load_file, save_file

from gguf_ext import export_gguf, verify_gguf
from gguf_ext.errors import UnmappedTensorError
from gguf_ext.estimate import estimate_gguf
from sqft_plugins.checkpoint import GridStamp, ModelFolder
from sqft_plugins.checkpoint.compact_convert import compact_folder
from sqft_plugins.compress.prune import prune_folder
from sqft_plugins.compress.quantize import quantize_folder

# --- INT4, to the bit ---

INT4_FAMILIES = ("mistral", "qwen2", "qwen3", "phi3", "gpt2", "bloom")


@pytest.fixture(scope="module")
def make_int4(make_folder, tmp_path_factory):
    """`make_int4(family, symmetric)`: a tiny model pruned and quantized by the verbs themselves; made once."""
    made = {}

    def make(family, symmetric=True):
        if (family, symmetric) not in made:
            place = tmp_path_factory.mktemp(family)
            make_folder(family, place / "float")
            prune_folder(place / "float", place / "pruned", method="magnitude")
            quantize_folder(place / "pruned", place / "int4", symmetric=symmetric)
            made[family, symmetric] = place / "int4"
        return made[family, symmetric]

    return make


def _naive_rows(family, module, heads):
    """The order of the rows in the file, written out; None where it is the checkpoint's."""
    if family in ("llama", "mistral") and module.endswith(("q_proj", "k_proj")):
        count, width = heads[module.endswith("k_proj")], 16
        return [head * width + half * 8 + i for head in range(count) for i in range(8) for half in range(2)]
    if family == "bloom" and module.endswith("query_key_value"):
        return [(head * 3 + part) * 16 + i for part in range(3) for head in range(heads[0]) for i in range(16)]
    return None


def _assert_bits(family, model, file, architecture):
    """Each INT4 module stands under the name that the gguf package gives it; dequantized by that package it is fp32
    scale * (code - zero_point), and 0 where the mask prunes."""
    folder = ModelFolder(model)
    names = get_tensor_name_map(MODEL_ARCH[architecture.upper()], 2)
    tensors = {tensor.name: tensor for tensor in GGUFReader(file).tensors}
    kinds, seen = set(), set()
    for module in folder.int4.modules:
        tensor = tensors[f"{names.get_name(module)}.weight"]
        wanted, mask = folder.quantized(module).dequantize(), folder.mask(module)
        rows = _naive_rows(family, module, (4, 2))
        if rows is not None:
            wanted, mask = wanted[rows], None if mask is None else mask[rows]
        found = quants.dequantize(tensor.data, tensor.tensor_type)
        np.testing.assert_array_equal(found.view(np.uint32), wanted.numpy().view(np.uint32))
        assert mask is None or not found[~mask.numpy()].any()
        kinds.add(tensor.tensor_type.name)
        seen.add(tensor.name)
    assert len(seen) == len(folder.int4.modules) > 0
    return kinds


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("family", INT4_FAMILIES)
def test_int4_is_exact(family, symmetric, make_int4, tmp_path):
    model = make_int4(family, symmetric)
    report = export_gguf(model, tmp_path / "m.gguf")
    assert _assert_bits(family, model, tmp_path / "m.gguf", report.architecture) == {"Q4_0" if symmetric else "Q5_0"}
    assert report.pruned > 0
    verified = verify_gguf(model, tmp_path / "m.gguf")
    assert verified.ok
    assert verified.equal == verified.tensors


@pytest.mark.parametrize("family", ["mistral", "gpt2"])
def test_the_compact_form_gives_the_very_same_file(family, make_int4, tmp_path):
    model = make_int4(family)
    compact_folder(model, tmp_path / "int4")
    export_gguf(model, tmp_path / "a.gguf")
    export_gguf(tmp_path / "int4", tmp_path / "b.gguf")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_the_compact_form_with_masked_float_layers_gives_the_very_same_file(make_folder, tmp_path):
    prune_folder(make_folder("llama", tmp_path / "float"), tmp_path / "pruned", method="magnitude")
    quantize_folder(tmp_path / "pruned", tmp_path / "int4", exclude=["down_proj"])
    compact_folder(tmp_path / "int4", tmp_path / "compact" / "int4")
    one = export_gguf(tmp_path / "int4", tmp_path / "a.gguf")
    other = export_gguf(tmp_path / "compact" / "int4", tmp_path / "b.gguf")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    assert one.pruned == other.pruned == sum(int((~mask).sum()) for mask in _masks(tmp_path / "int4"))


def _masks(path):
    folder = ModelFolder(path)
    return [folder.mask(module) for module in folder.masks]


@pytest.mark.parametrize(("version", "symmetric"), [(1, True), (2, False)])
def test_autogptq_folders_are_exact_and_their_biases_of_zeros_left_out(
    version, symmetric, make_folder, tmp_path, capsys
):
    make_folder("mistral", tmp_path / "float")
    written = write_gptq(tmp_path / "float", tmp_path / "gptq", symmetric=symmetric, version=version)
    file = tmp_path / "gptq" / "model.safetensors"
    biases = {f"{module}.bias": torch.zeros(len(weight.codes)) for module, weight in written.items()}
    save_file({**load_file(file), **biases}, file)
    report = export_gguf(tmp_path / "gptq", tmp_path / "m.gguf")
    assert f"{len(written)} biases of INT4 layers are all 0" in capsys.readouterr().err
    assert sum(report.types[kind] for kind in ("Q4_0", "Q5_0") if kind in report.types) == len(written)
    assert _assert_bits("mistral", tmp_path / "gptq", tmp_path / "m.gguf", "llama") == {"Q4_0" if symmetric else "Q5_0"}
    save_file({**load_file(file), next(iter(biases)): torch.ones_like(next(iter(biases.values())))}, file)
    with pytest.raises(UnmappedTensorError, match=r"\.bias of model .* has no place in a llama file"):
        export_gguf(tmp_path / "gptq", tmp_path / "n.gguf")


@pytest.mark.parametrize("family", ["gpt2", "bloom"])
def test_a_folder_of_the_bare_body_gives_the_very_same_file(family, make_folder, tmp_path):
    whole = make_folder(family, tmp_path / "whole" / "model")
    bare = tmp_path / "bare" / "model"
    shutil.copytree(whole, bare)
    tensors = load_file(bare / "model.safetensors")
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    if family == "gpt2":
        tensors["h.0.attn.bias"] = torch.ones(1, 1, 256, 256).tril()  # the causal mask, in older checkpoints
    save_file(tensors, bare / "model.safetensors", metadata={"format": "pt"})
    export_gguf(whole, tmp_path / "a.gguf")
    export_gguf(bare, tmp_path / "b.gguf")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    prune_folder(bare, tmp_path / "pruned", method="magnitude")  # masks have the whole names
    report = export_gguf(tmp_path / "pruned", tmp_path / "c.gguf")
    assert report.pruned == sum(int((~ModelFolder(tmp_path / "pruned").mask(m)).sum()) for m in _masked(tmp_path))
    assert report.pruned > 0


def _masked(place):
    return ModelFolder(place / "pruned").masks


@pytest.mark.parametrize("family", INT4_FAMILIES)
def test_the_estimate_is_the_file(family, make_int4, tmp_path):
    source = make_int4(family).parent / "pruned"
    modules = ModelFolder(make_int4(family)).int4.modules
    told = estimate_gguf(source, modules, GridStamp(group_size=32, symmetric=True))
    report = export_gguf(make_int4(family), tmp_path / "m.gguf")
    assert told["types"].get("Q4_0") == report.types["Q4_0"] == len(modules)
    assert report.bytes <= told["bytes"] + 1024
