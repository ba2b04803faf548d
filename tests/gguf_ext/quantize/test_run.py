"""Files by llama.cpp's own quantizer: its types, our importance matrix, nothing of the float file left; and with other
codes on its scales.

    pytest tests/gguf_ext/quantize/test_run.py
"""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from gguf_ext import LlamaSession, export_gguf, quantize_gguf
from gguf_ext.blocks import TensorType, codes_of, replace_codes
from gguf_ext.blocks.types import BLOCKS
from gguf_ext.errors import GGUFError, TargetExistsError
from gguf_ext.ggml import quantize
from gguf_ext.quantize.compensate import check_zeros
from gguf_ext.quantize.importance import importance_matrix
from gguf_ext.reader import GGUFFile
from sqft_plugins.checkpoint import ModelFolder, open_model
from sqft_plugins.compress.calibration import calibration_texts, token_batch
from sqft_plugins.compress.compensate import QUANTIZING, compensated, ordered_factor
from sqft_plugins.compress.float_model import Calibration, FloatModel
from sqft_plugins.compress.prune import prune_folder

SMALL = Calibration(None, 4, 32)


@pytest.fixture(scope="module")
def files(llama, tmp_path_factory):
    place = tmp_path_factory.mktemp("quantized")
    for name, options in (("with", {}), ("without", {"importance": False}), ("gptq", {"method": "gptq"})):
        quantize_gguf(llama, place / f"{name}.gguf", type="q4_0", sequences=4, length=32, **options)
    export_gguf(llama, place / "float.gguf")
    return place


def inputs_of(folder, module):
    """[tokens, in]: what a module gets of the calibration text, in transformers."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    seen: list[torch.Tensor] = []
    model.get_submodule(module).register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].flatten(0, 1)))
    with torch.no_grad():
        model(token_batch(calibration_texts(None), AutoTokenizer.from_pretrained(folder), 4, 32))
    return seen[0]


def test_the_importance_is_the_mean_square_of_the_inputs(llama):
    """Against transformers, with a hook at each layer and nothing of our driver."""
    found = importance_matrix(llama, SMALL)
    model = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32).eval()
    seen: dict[str, torch.Tensor] = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            module.register_forward_pre_hook(
                lambda module, inputs, name=name: seen.update({name: inputs[0].double().square().mean((0, 1))})
            )
    with torch.no_grad():
        model(token_batch(calibration_texts(None), AutoTokenizer.from_pretrained(llama), 4, 32))
    assert found.keys() == seen.keys()
    for name, values in seen.items():
        torch.testing.assert_close(found[name].double(), values, rtol=1e-4, atol=1e-10)


@pytest.mark.parametrize("name", ["with", "without"])
def test_the_blocks_are_ggmls(files, llama, name):
    """The file has what `ggml_quantize_chunk` makes of each weight with its row of the matrix."""
    matrix = importance_matrix(llama, SMALL) if name == "with" else {}
    quantized, floats = GGUFFile(files / f"{name}.gguf"), GGUFFile(files / "float.gguf")
    tensor, module = "blk.1.ffn_down.weight", "model.layers.1.mlp.down_proj"
    weight, row = floats.dequantize(tensor), matrix.get(module)
    wanted = quantize(weight, TensorType.Q4_0, *BLOCKS[TensorType.Q4_0], None if row is None else row.numpy())
    np.testing.assert_array_equal(quantized.raw(tensor), wanted)


def test_gptq_changes_codes_alone(files):
    """Whatever is no code has the bytes that llama.cpp's quantizer wrote, in every tensor."""
    own, ours = GGUFFile(files / "with.gguf"), GGUFFile(files / "gptq.gguf")
    assert own.metadata == ours.metadata
    changed = 0
    for name, info in own.tensors.items():
        old, new = own.raw(name), ours.raw(name)
        if info.type == TensorType.Q4_0:
            changed += int((codes_of(old, TensorType.Q4_0) != codes_of(new, TensorType.Q4_0)).sum())
            new = replace_codes(new, codes_of(old, TensorType.Q4_0), TensorType.Q4_0)
        np.testing.assert_array_equal(old, new)
    assert changed > 0


def test_the_codes_of_the_first_layer_are_gptqs_on_those_scales(files, llama):
    module = "model.layers.0.self_attn.q_proj"
    weight = ModelFolder(llama).weight(module)
    x = inputs_of(llama, module)
    ours, own = (open_model(files / f"{name}.gguf").quantized(module) for name in ("gptq", "with"))
    factor_of = partial(ordered_factor, damping=QUANTIZING)
    assert torch.equal(ours.codes, compensated(weight, x.T @ x, ours.grid, factor_of=factor_of))
    errors = [float((x @ (one.dequantize() - weight).T).norm()) for one in (ours, own)]
    assert errors[0] < errors[1]


def test_pruned_weights_stay_zero(llama_int4, tmp_path):
    pruned = llama_int4.with_name("model-pruned")
    small = {"importance": False, "sequences": 4, "length": 32}
    report = quantize_gguf(pruned, tmp_path / "m.gguf", type="q4_0", method="gptq", **small)
    made, folder = open_model(tmp_path / "m.gguf"), ModelFolder(pruned)
    assert report.sparsity == pytest.approx(0.5, abs=0.01)
    for module in folder.masks:
        assert not made.weight(module)[~folder.mask(module)].any()
    assert not made.dense
    with LlamaSession(tmp_path / "m.gguf") as session:
        assert torch.isfinite(torch.cat(list(session.logits([2, 5, 9])))).all()


def test_a_layer_whose_type_has_no_zero_is_refused(tmp_path, make_folder):
    """llama.cpp gives some layers of a mix another type than its name says, here Q5_1."""
    wide = make_folder("llama", tmp_path / "model")
    prune_folder(wide, tmp_path / "pruned", "magnitude", 0.5)
    quantize_gguf(wide, tmp_path / "m.gguf", type="Q4_1", importance=False)
    with pytest.raises(GGUFError, match=r"takes Q4_1 for model.layers.0.self_attn.q_proj, which cannot hold a 0"):
        check_zeros(FloatModel(tmp_path / "pruned"), tmp_path / "m.gguf")


def test_the_matrix_makes_another_file(files):
    one, other = (GGUFFile(files / f"{name}.gguf").raw("blk.0.attn_q.weight") for name in ("with", "without"))
    assert not np.array_equal(one, other)


def test_llama_cpp_runs_the_file(files):
    logits = {}
    for name in ("float", "with"):
        with LlamaSession(files / f"{name}.gguf") as session:
            logits[name] = torch.cat(list(session.logits([2, 5, 9, 11])))
    assert torch.nn.functional.cosine_similarity(logits["float"], logits["with"]).min() > 0.9


def test_the_file_does_not_say_that_it_is_exact(files):
    assert GGUFFile(files / "float.gguf").metadata["sqft.exact"] is True
    assert GGUFFile(files / "with.gguf").metadata["sqft.exact"] is False


def test_a_report_has_the_share_that_fell_back(llama, tmp_path):
    """Rows of 64 hold no block of 256: llama.cpp takes another type, and the report says which."""
    report = quantize_gguf(llama, tmp_path / "m.gguf", type="Q4_K_M", importance=False)
    assert "Q5_0" in report.types
    assert "Q4_K" not in report.types
    file = GGUFFile(tmp_path / "m.gguf")
    assert sum(report.types.values()) == sum(int(np.prod(info.shape)) for info in file.tensors.values())
    assert (report.calibration, report.weighted, report.type) == (None, 0, "Q4_K_M")


def test_nothing_else_is_left(llama, tmp_path):
    quantize_gguf(llama, tmp_path / "m.gguf", type="Q8_0", importance=False)
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]
    with pytest.raises(TargetExistsError):
        quantize_gguf(llama, tmp_path / "m.gguf", type="Q8_0", importance=False)


def test_models_that_would_lose_their_codes_or_zeros_are_refused(llama_int4, tmp_path):
    with pytest.raises(GGUFError, match=r"is INT4 already: .* its very codes with `sqft export gguf`"):
        quantize_gguf(llama_int4, tmp_path / "m.gguf")
    pruned = llama_int4.with_name("model-pruned")
    with pytest.raises(GGUFError, match=r"is pruned, and llama\.cpp's quantizer keeps no zeros: use --method gptq"):
        quantize_gguf(pruned, tmp_path / "m.gguf")
    with pytest.raises(GGUFError, match=r"is pruned, and types of Q4_K_M cannot hold a 0: use --grid q3_k_s, q4_0,"):
        quantize_gguf(pruned, tmp_path / "m.gguf", method="gptq")
    with pytest.raises(GGUFError, match=r"with an importance matrix llama\.cpp takes Q4_1 for some layers of Q4_0"):
        quantize_gguf(pruned, tmp_path / "m.gguf", type="q4_0", method="gptq")
    with pytest.raises(GGUFError, match="method='gtpq' does not make Q4_K_M: use gptq or"):
        quantize_gguf(llama_int4, tmp_path / "m.gguf", method="gtpq")
    with pytest.raises(GGUFError, match="type='Q4_K_X' is unknown"):
        quantize_gguf(llama_int4, tmp_path / "m.gguf", type="Q4_K_X")
    assert not list(tmp_path.iterdir())


def test_the_command(llama, tmp_path):
    from click.testing import CliRunner

    from sqft_plugins.cli.quantize import command

    small = ["--no-importance", "--sequences", "4", "--length", "32"]
    done = CliRunner().invoke(command, [str(llama), "--grid", "q6_k", *small, "--out", str(tmp_path / "m.gguf")])
    assert done.exit_code == 0, done.output
    assert "(gptq, no importance matrix); Q8_0" in done.stdout  # 256 does not divide 64
    assert "worst error" in done.stdout
