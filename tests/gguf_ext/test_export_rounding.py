"""What is rounded because it was asked for: scales to fp16, embeddings to a narrow type. The largest error is told."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest
import torch
from gguf import GGUFReader, quants
from safetensors.torch import load_file, save_file

from gguf_ext import GGUFError, LlamaSession, export_gguf, verify_gguf
from gguf_ext.errors import BlockSizeError, NonFiniteWeightError, ScaleNotExactError, ScaleRangeError
from gguf_ext.inspector import inspect_gguf
from gguf_ext.reader import GGUFFile
from gguf_ext.write.transcode import check_scale
from sqft_plugins.checkpoint import ModelFolder
from sqft_plugins.cli import main

LAYER = "model.layers.0.mlp.up_proj"


@pytest.fixture(scope="module")
def inexact(llama_int4, tmp_path_factory):
    """An INT4 model one of whose layers has scales of more than 11 bits."""
    folder = tmp_path_factory.mktemp("inexact") / "model"
    shutil.copytree(llama_int4, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors[f"{LAYER}.weight_scale"] *= 1 + 2**-13
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _run(*arguments) -> int:
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    return int(caught.value.code or 0)


def test_the_default_refuses_and_names_the_option(inexact, tmp_path):
    with pytest.raises(ScaleNotExactError, match=rf"{LAYER}\.weight: scale=.*--rounding allow"):
        export_gguf(inexact, tmp_path / "m.gguf")
    assert list(tmp_path.iterdir()) == []


def test_rounded_scales_are_those_of_fp16_and_the_error_is_told(inexact, tmp_path, capsys):
    report = export_gguf(inexact, tmp_path / "m.gguf", rounding="allow")
    weight, mask = ModelFolder(inexact).quantized(LAYER), ModelFolder(inexact).mask(LAYER)
    scale = weight.scale.half().float().repeat_interleave(32, 1)
    wanted = scale * (weight.codes.float() - weight.zero_point.repeat_interleave(32, 1))
    (tensor,) = [item for item in GGUFReader(tmp_path / "m.gguf").tensors if item.name == "blk.0.ffn_up.weight"]
    found = quants.dequantize(tensor.data, tensor.tensor_type)
    np.testing.assert_array_equal(found, wanted.numpy())
    assert not found[~mask.numpy()].any()
    error = float((wanted - weight.dequantize()).abs().max())
    assert error > 0
    assert (report.exact, report.largest_error) == (False, error)
    metadata = GGUFFile(tmp_path / "m.gguf").metadata
    assert metadata["sqft.exact"] is False
    assert metadata["sqft.largest_error"] == error
    assert inspect_gguf(tmp_path / "m.gguf")["stamp"]["exact"] is False
    verified = verify_gguf(inexact, tmp_path / "m.gguf")
    assert (verified.ok, verified.exact, verified.rounded, verified.largest_error) == (True, False, 1, error)
    capsys.readouterr()
    assert _run("verify", inexact, tmp_path / "m.gguf", "--json") == 1  # any difference
    assert json.loads(capsys.readouterr().out)["largest_error"] == error
    assert _run("verify", inexact, tmp_path / "m.gguf", "--rounding", "allow") == 0
    assert f"1 rounded to their type in the file, by {error:.3g} at most" in capsys.readouterr().out


def test_the_command_line_tells_the_error(inexact, tmp_path, capsys):
    assert _run("export", "gguf", inexact, "--out", tmp_path / "m.gguf", "--rounding", "allow") == 0
    assert "equal but for rounding, by" in capsys.readouterr().out
    assert _run("export", "gguf", inexact, "--out", tmp_path / "n.gguf", "--rounding", "yes") == 2
    assert "rounding='yes' is unknown" in capsys.readouterr().err


def test_an_exact_model_is_exact_with_rounding_allowed(llama_int4, tmp_path):
    report = export_gguf(llama_int4, tmp_path / "m.gguf", rounding="allow")
    assert (report.exact, report.largest_error) == (True, 0)
    assert GGUFFile(tmp_path / "m.gguf").metadata["sqft.exact"] is True
    assert verify_gguf(llama_int4, tmp_path / "m.gguf").exact


def test_a_file_that_calls_itself_exact_must_be(inexact, tmp_path):
    export_gguf(inexact, tmp_path / "m.gguf", rounding="allow")
    data = (tmp_path / "m.gguf").read_bytes()
    at = data.index(b"sqft.exact") + len(b"sqft.exact") + 4
    (tmp_path / "m.gguf").write_bytes(data[:at] + b"\x01" + data[at + 1 :])
    report = verify_gguf(inexact, tmp_path / "m.gguf")
    assert [item.name for item in report.differences] == ["sqft.exact"]


def test_a_scale_that_fp16_makes_zero_is_refused_even_then():
    with pytest.raises(ScaleRangeError, match=r"scale=1\.49012e-08 is below 2\^-25"):
        check_scale(torch.tensor([[1.0, 2.0**-26]]), "w", "allow")
    check_scale(torch.tensor([[0.0, 2.0**-24, 1 / 3]]), "w", "allow")


# --- embeddings ---


@pytest.mark.parametrize("name", ["llama", "gemma3"])
@pytest.mark.parametrize("kind", ["f32", "f16", "bf16", "q8_0"])
def test_the_embedding_and_the_head_get_the_type_that_is_asked_for(name, kind, request, tmp_path):
    model = request.getfixturevalue(name)
    report = export_gguf(model, tmp_path / "m.gguf", embedding_type=kind)
    tensors = {tensor.name: tensor for tensor in GGUFReader(tmp_path / "m.gguf").tensors}
    heads = {"llama": ["token_embd.weight", "output.weight"], "gemma3": ["token_embd.weight"]}[name]  # gemma3 is tied
    error = 0.0
    for head in heads:
        assert tensors[head].tensor_type.name == kind.upper()
        stored = "lm_head" if head == "output.weight" else "model.embed_tokens"
        weight = ModelFolder(model).tensor(f"{stored}.weight").float().numpy()
        error = max(
            error, float(np.abs(quants.dequantize(tensors[head].data, tensors[head].tensor_type) - weight).max())
        )
    others = {tensor.tensor_type.name for tensor in tensors.values() if tensor.name not in heads}
    assert others == {"F32"}
    assert report.largest_error == error
    assert report.exact is (error == 0) is (kind == "f32")
    verified = verify_gguf(model, tmp_path / "m.gguf")
    assert verified.ok
    assert (verified.rounded, verified.largest_error) == (len(heads) if error else 0, error)
    with LlamaSession(tmp_path / "m.gguf", threads=1) as session:
        assert torch.isfinite(session.logprobs(list(range(4, 40)))).all()


def test_a_q8_0_embedding_is_near_the_model(llama, tmp_path):
    export_gguf(llama, tmp_path / "a.gguf", float_type="f32")
    export_gguf(llama, tmp_path / "b.gguf", float_type="f32", embedding_type="q8_0")
    found = []
    for name in "ab":
        with LlamaSession(tmp_path / f"{name}.gguf", threads=1, kv_type="f32") as session:
            found.append(session.logprobs(list(range(4, 100))))
    assert 0 < float((found[0] - found[1]).abs().mean()) < 0.1


def test_a_float_embedding_that_is_most_of_the_file_is_told_with_the_size_it_could_have(
    gemma3_int4, gemma3, tmp_path, capsys
):
    large = export_gguf(gemma3_int4, tmp_path / "large.gguf")
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "--embedding-type q8_0" in line]
    small = export_gguf(gemma3_int4, tmp_path / "small.gguf", embedding_type="q8_0")
    export_gguf(gemma3, tmp_path / "float.gguf")  # floats are what was asked for
    assert "--embedding-type" not in capsys.readouterr().err

    sizes = [{tensor.name: tensor.n_bytes for tensor in GGUFReader(made.path).tensors} for made in (large, small)]
    wanted = [int(sizes[0]["token_embd.weight"]), *(sum(map(int, each.values())) for each in sizes)]
    assert re.findall(r"[\d,]{4,}", line) == [f"{size:,}" for size in wanted]


def test_an_embedding_type_that_is_none_or_does_not_fit_is_refused(llama, make, byte_level, tmp_path):
    with pytest.raises(GGUFError, match=r"embedding_type='q4_0' is unknown.*sqft quantize"):
        export_gguf(llama, tmp_path / "m.gguf", embedding_type="q4_0")
    odd = make["llama"](byte_level, tmp_path / "odd", hidden_size=48, num_hidden_layers=1)
    with pytest.raises(BlockSizeError, match="in=48 is not a multiple of 32"):
        export_gguf(odd, tmp_path / "m.gguf", embedding_type="q8_0")
    tensors = load_file(odd / "model.safetensors")
    tensors["lm_head.weight"][0, 0] = 7e4
    save_file(tensors, odd / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(NonFiniteWeightError, match="where F16 ends: use --embedding-type bf16"):
        export_gguf(odd, tmp_path / "m.gguf", embedding_type="f16")
    assert not (tmp_path / "m.gguf").exists()
