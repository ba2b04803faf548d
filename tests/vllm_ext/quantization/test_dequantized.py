"""Folders of other widths than 4 bits in vLLM on a CPU: served with the very weights that transformers would load."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers_planes import write_qa_adapter

pytest.importorskip("vllm", reason="vLLM is not installed")

from sqft_plugins.checkpoint import ModelFolder, load_model
from sqft_plugins.grid import ACT_ORDER, INT4, NF4
from vllm_ext.quantization.dequantized import dequantized_stream
from vllm_ext.quantization.widths import has_no_kernel, is_dequantized

pytestmark = pytest.mark.vllm
PROMPTS = [[2, *range(20, 30)], [2, *range(100, 121)], [2, *range(300, 305)]]
GRIDS = {
    "int2": (2, 32, False),
    "int3": (3, 64, False),
    "int5": (5, -1, True),
    "int6": (6, 32, True),
    "int8": (8, -1, False),
}


@pytest.mark.parametrize("grid", GRIDS)
def test_the_weights_are_those_of_transformers(grid, tiny_int4) -> None:
    bits, group_size, symmetric = GRIDS[grid]
    folder = tiny_int4("qwen2", group_size, symmetric, bits=bits)
    for dtype in (torch.float32, torch.bfloat16):
        expected = load_model(folder, dtype).state_dict()
        found = {name: tensor.to(dtype) for name, tensor in dequantized_stream(ModelFolder(folder), dtype)}
        assert found.keys() <= expected.keys()
        assert {name for name in expected if name.endswith("_proj.weight")} <= found.keys()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


def test_a_layer_that_is_stored_turned_is_turned_again(tiny_int4) -> None:
    folder = tiny_int4("gpt2", bits=8, n_embd=128, n_inner=256, n_head=4)
    expected = load_model(folder, torch.float32).state_dict()
    found = dict(dequantized_stream(ModelFolder(folder), torch.float32))
    turned = next(name for name in found if name.endswith("c_fc.weight"))
    assert any(torch.equal(found[turned], tensor) for name, tensor in expected.items() if name.endswith(turned))


@pytest.mark.parametrize(("family", "grid"), [("phi3", "int3"), ("llama", "int8")])
def test_it_answers_as_the_float_model_of_its_weights(family, grid, tiny_int4, engine, ask, tmp_path) -> None:
    bits, group_size, symmetric = GRIDS[grid]
    folder = tiny_int4(family, group_size, symmetric, bits=bits)
    load_model(folder, torch.float32).save_pretrained(tmp_path / "float")
    for file in folder.glob("*token*"):
        shutil.copy(file, tmp_path / "float")
    expected = ask(engine(tmp_path / "float"), PROMPTS)
    assert ask(engine(folder), PROMPTS) == expected


def test_on_a_cpu_only_neighbours_of_four_bits_stay_codes() -> None:
    """The kind says so, not the bits: other grids of 4 bits have no kernel here."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        pytest.skip("for vLLM on a CPU")
    assert not is_dequantized(INT4.name)
    assert all(map(is_dequantized, ("int2", "int3", "int8", ACT_ORDER[4].name, NF4.name)))


@pytest.mark.parametrize("change", ["another program's", "INT4", "activations, too", "no widths"])
def test_folders_of_others_are_ours_where_stock_vllm_has_no_kernel_for_them(change, tiny_int4, tmp_path) -> None:
    from vllm.engine.arg_utils import EngineArgs

    bits = 4 if change == "INT4" else 8
    folder = Path(shutil.copytree(tiny_int4("llama", bits=bits), tmp_path / "theirs"))
    shutil.rmtree(folder / "sqft")
    config = json.loads((folder / "config.json").read_text())
    own = config["quantization_config"]
    own.pop("sqft", None)
    if change == "activations, too":
        own["config_groups"]["group_0"]["input_activations"] = own["config_groups"]["group_0"]["weights"]
    elif change == "no widths":
        own["config_groups"] = None
    (folder / "config.json").write_text(json.dumps(config))
    ours = change == "another program's"
    assert has_no_kernel(own) is ours
    if change in ("another program's", "INT4"):
        made = EngineArgs(model=str(folder), max_model_len=256).create_engine_config()
        assert made.model_config.quantization == ("sqft" if ours else "compressed-tensors")


@pytest.mark.parametrize("grid", ["int2", pytest.param("int8", marks=pytest.mark.slow)])
def test_value_planes_of_other_widths_answer_as_their_merged_folders(grid, tiny_int4, engine, ask, tmp_path) -> None:
    pytest.importorskip("peft")
    from sqft_plugins.tune.merge import merge_folder
    from vllm_ext.adapters.offline import lora_request

    bits, group_size, symmetric = GRIDS[grid]
    folder = tiny_int4("llama", group_size, symmetric, bits=bits)
    adapter = write_qa_adapter(tmp_path / "qa", folder, size=0.2)
    merge_folder(folder, adapter, tmp_path / "merged", 8)
    base, expected = ask(engine(folder), PROMPTS), ask(engine(tmp_path / "merged"), PROMPTS)
    assert base != expected
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SQFT_PLANE_DIR", str(tmp_path / "store"))
        llm = engine(folder, enable_lora=True, max_loras=2, max_lora_rank=8)
        found = ask(llm, PROMPTS * 2, lora_request=[lora_request(f"{adapter}@r8")] * 3 + [None] * 3)
    for ours, theirs in zip(found, expected + base, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert next(iter(one)) == next(iter(other))
            assert one == pytest.approx(other, abs=1e-4)
