"""`sqft inspect FILE.gguf` says of a file what it says of the folder the file was made from."""

from __future__ import annotations

import json
import sys

import gguf
import numpy as np
import pytest
import torch

import gguf_ext.plugin
from gguf_ext import export_gguf
from gguf_ext.errors import DamagedFileError, GGUFError
from gguf_ext.inspector import GGUFWeights, inspect_gguf
from gguf_ext.reader import GGUFFile
from gguf_ext.write.transcode import matrix_type
from sqft_plugins.checkpoint import ModelFolder
from sqft_plugins.checkpoint.source import WeightSource
from sqft_plugins.cli import main
from sqft_plugins.errors import DependencyError
from sqft_plugins.inspect import inspect_path, plot_sparsity
from sqft_plugins.inspect.model import float_type
from sqft_plugins.measure import bits_per_weight

SAME = ("shape", "weights", "zeros", "not_finite", "patterns", "scale", "gguf", "bits_per_weight")
NAMES = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output"}
NAMES |= {"gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down"}


def by_target(report: dict) -> dict[str, dict]:
    """The layers of a folder's report under the names that they have in the file."""
    rows = {}
    for row in report["layers"]:
        _, _, block, _, kind = row["name"].split(".")
        rows[f"blk.{block}.{NAMES[kind]}.weight"] = row
    return rows


@pytest.mark.parametrize("model", ["llama_int4", "gemma3_int4"])
def test_a_file_is_what_its_int4_folder_is(model, request, tmp_path):
    folder = request.getfixturevalue(model)
    export_gguf(folder, tmp_path / "m.gguf")
    theirs, ours = by_target(inspect_path(folder)), inspect_path(tmp_path / "m.gguf")
    assert ours["kind"] == "gguf"
    assert ours["bytes"] == (tmp_path / "m.gguf").stat().st_size
    assert {row["name"] for row in ours["layers"]} == set(theirs)
    for row in ours["layers"]:
        expected = theirs[row["name"]]
        # the folder stores the shape of each module beside its codes, 16 bytes
        bits = expected["bits_per_weight"] - 8 * 16 / expected["weights"]
        rows = expected["shape"][0]
        scales = expected["weights"] // 32 * 2
        assert bits == pytest.approx(8 * (expected["weights"] / 2 + scales * 2) / expected["weights"]), rows
        for key in SAME[:-1]:
            assert row[key] == expected[key], (row["name"], key)
        assert row["codes"] == expected["codes"]
        assert row["bits_per_weight"] == 4.5
        assert row["dtype"] == "Q4_0"
    stamp = json.loads((folder / "sqft" / "stamp.json").read_text())
    for key in ("pipeline", "mask_hash", "scale_hash", "base"):
        assert ours["stamp"][key] == stamp[key]
    assert ours["grid"] == {"bits": 4, "group_size": 32, "symmetric": True}
    json.dumps(ours)


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_file_is_read_as_the_folder_that_it_holds(llama, make, tmp_path, symmetric):
    folder = make["int4"](llama, tmp_path / "int4", symmetric=symmetric)
    export_gguf(folder, tmp_path / "m.gguf")
    theirs: WeightSource = ModelFolder(folder)
    file = GGUFFile(tmp_path / "m.gguf")
    ours: WeightSource = GGUFWeights(file)

    module, name = "model.layers.0.mlp.down_proj", "blk.0.ffn_down.weight"
    assert torch.equal(ours.weight(name), theirs.weight(module))
    assert ours.weight_shape(name) == theirs.weight_shape(module) == ours.weight(name).shape
    assert torch.equal(ours.quantized(name).steps(), theirs.quantized(module).steps())
    assert torch.equal(ours.quantized(name).dequantize(), ours.weight(name))
    assert ours.mask(name) is None
    assert ours.is_quantized(name)
    assert not ours.is_quantized("token_embd.weight")
    # a block of 32 has a scale of two bytes, Q5_0 a fifth bit for each code
    assert bits_per_weight(ours, [name]) == {"Q4_0": 4.5, "Q5_0": 5.5}[file.tensors[name].type_name]


def test_asymmetric_layers_have_32_codes(llama, make, tmp_path):
    folder = make["int4"](llama, tmp_path / "int4", group_size=32, symmetric=False)
    export_gguf(folder, tmp_path / "m.gguf")
    theirs, ours = by_target(inspect_path(folder)), inspect_path(tmp_path / "m.gguf")
    assert "Q5_0" in ours["total"]["dtypes"]
    for row in ours["layers"]:
        assert row["gguf"] == theirs[row["name"]]["gguf"]
        assert row["zeros"] == theirs[row["name"]]["zeros"]
        assert len(row["codes"]) == (16 if row["dtype"] == "Q4_0" else 32)
        assert row["codes"][len(row["codes"]) // 2] == round(row["zeros"] * row["weights"])
        assert sum(row["codes"]) == row["weights"]


def test_a_float_file_and_its_other_tensors(llama, tmp_path):
    export_gguf(llama, tmp_path / "m.gguf")
    report = inspect_gguf(tmp_path / "m.gguf")
    assert report["total"]["dtypes"] == {"F32": 14}
    assert (report["stamp"], report["grid"]) == (None, None)
    assert "codes" not in report["total"]
    told = {row["name"] for row in report["layers"]} | {row["name"] for row in report["other"]}
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    assert told == {tensor.name for tensor in reader.tensors}
    sizes = {row["name"]: row["bytes"] for row in report["other"]}
    assert sizes == {tensor.name: tensor.n_bytes for tensor in reader.tensors if tensor.name in sizes}


def write_foreign(path, kind: gguf.GGMLQuantizationType) -> np.ndarray:
    """One matrix of any type that the gguf package quantizes → its weights as the gguf package reads them."""
    weight = np.random.default_rng(0).standard_normal((4, 256)).astype(np.float32)
    weight[:, ::2] = 0
    data = gguf.quants.quantize(weight, kind)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("blk.0.ffn_up.weight", data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return gguf.quants.dequantize(data, kind)


@pytest.mark.parametrize("name", ["Q8_0", "Q4_1", "Q5_1", "TQ2_0"])
def test_types_of_others_are_read(name, tmp_path):
    kind = gguf.GGMLQuantizationType[name]
    weight = write_foreign(tmp_path / "m.gguf", kind)
    (row,) = inspect_path(tmp_path / "m.gguf")["layers"]
    assert row["zeros"] == float((weight == 0).mean())
    block, size = gguf.GGML_QUANT_SIZES[kind]
    assert row["bits_per_weight"] == 8 * size / block
    assert "scale" not in row


def test_codebooks_alone_need_the_gguf_package(tmp_path, monkeypatch):
    weight = write_foreign(tmp_path / "grid.gguf", gguf.GGMLQuantizationType.Q4_1)
    write_foreign(tmp_path / "m.gguf", gguf.GGMLQuantizationType.TQ2_0)
    monkeypatch.setitem(sys.modules, "gguf", None)
    (row,) = inspect_gguf(tmp_path / "grid.gguf")["layers"]
    assert row["zeros"] == float((weight == 0).mean())
    with pytest.raises(DependencyError, match="package gguf is not installed"):
        inspect_gguf(tmp_path / "m.gguf")


def test_a_file_that_is_cut_off_is_named(llama_int4, tmp_path):
    export_gguf(llama_int4, tmp_path / "m.gguf")
    whole = (tmp_path / "m.gguf").read_bytes()
    for size in (len(whole) - 40, len(whole) // 2, 30):
        (tmp_path / "cut.gguf").write_bytes(whole[:size])
        with pytest.raises(DamagedFileError, match=r"cut\.gguf"):
            inspect_path(tmp_path / "cut.gguf")
    write_foreign(tmp_path / "foreign.gguf", gguf.GGMLQuantizationType.TQ2_0)
    (tmp_path / "cut.gguf").write_bytes((tmp_path / "foreign.gguf").read_bytes()[:-100])
    with pytest.raises(DamagedFileError, match=r"cut off within tensor blk\.0\.ffn_up\.weight"):
        inspect_path(tmp_path / "cut.gguf")


def test_a_file_without_blocks_is_refused(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tensor("token_embd.weight", np.zeros((2, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(GGUFError, match=r"has no matrices called blk\."):
        inspect_path(tmp_path / "m.gguf")


def test_the_inspector_opens_by_name_or_by_its_first_bytes(llama_int4, tmp_path):
    (inspector,) = gguf_ext.plugin.sqft_inspectors()
    export_gguf(llama_int4, tmp_path / "m.gguf")
    (tmp_path / "blob").write_bytes((tmp_path / "m.gguf").read_bytes())
    (tmp_path / "text").write_text("GGU")
    opened = {path.name: inspector.opens(path) for path in (*tmp_path.iterdir(), tmp_path, tmp_path / "none.gguf")}
    assert opened == {"m.gguf": True, "blob": True, "text": False, tmp_path.name: False, "none.gguf": False}


def test_the_command_line_shows_a_file(llama_int4, tmp_path, capsys):
    export_gguf(llama_int4, tmp_path / "m.gguf")
    capsys.readouterr()
    with pytest.raises(SystemExit) as done:
        main(["inspect", str(tmp_path / "m.gguf"), "--pattern", "3:4"])
    shown = capsys.readouterr().out
    assert not done.value.code
    assert "types            14 Q4_0" in shown
    assert "3:4 " in shown
    assert "magnitude → round-to-nearest" in shown


def test_the_heat_map_works_for_a_file(llama_int4, tmp_path):
    pytest.importorskip("matplotlib")
    export_gguf(llama_int4, tmp_path / "m.gguf")
    plot_sparsity(inspect_path(tmp_path / "m.gguf"), tmp_path / "zeros.svg")
    picture = (tmp_path / "zeros.svg").read_text()
    assert "<svg" in picture


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e6])
def test_inspect_names_the_float_type_that_the_exporter_takes(dtype, scale):
    weight = (torch.randn(8, 32, generator=torch.Generator().manual_seed(1)) * scale).to(dtype)
    weight = weight[:, torch.isfinite(weight.float()).all(0)]
    if weight.numel():
        assert float_type(weight) == matrix_type(weight, "w").name
    rounded = weight.to(torch.bfloat16).to(torch.float32)
    assert float_type(rounded) == matrix_type(rounded, "w").name
