"""Memory and time: estimates that follow the work, without a weight read."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sqft_plugins.checkpoint.shards import ShardFile, TensorSpec
from sqft_plugins.plan import PlanSettings, machine, plan_folder
from sqft_plugins.plan.costs import EFFICIENCY

pytestmark = pytest.mark.usefixtures("quick_machine")


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    """A Llama of 3.3 billion parameters that has its size but no data: its file is one hole."""
    from transformers import LlamaConfig

    folder = tmp_path_factory.mktemp("large")
    config = LlamaConfig(
        hidden_size=4096, intermediate_size=11008, num_hidden_layers=16, num_attention_heads=32, vocab_size=4096
    )
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    shapes = {"model.embed_tokens": (4096, 4096), "lm_head": (4096, 4096), "model.norm": (4096,)}
    for block in range(16):
        name = f"model.layers.{block}"
        shapes |= {f"{name}.self_attn.{kind}_proj": (4096, 4096) for kind in "qkvo"}
        shapes |= {f"{name}.mlp.{kind}_proj": (11008, 4096) for kind in ("gate", "up")}
        shapes |= {f"{name}.mlp.down_proj": (4096, 11008)}
        shapes |= {f"{name}.{kind}_layernorm": (4096,) for kind in ("input", "post_attention")}
    specs = {f"{module}.weight": TensorSpec(torch.bfloat16, shape) for module, shape in shapes.items()}
    ShardFile(folder / "model.safetensors", specs)
    return folder


def test_no_weight_is_read(large):
    assert (large / "model.safetensors").stat().st_size > 6e9
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    report = plan_folder(large)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10  # KiB
    assert report["weights"] == 16 * (4 * 4096**2 + 3 * 4096 * 11008)
    assert 4.5 < {row["stage"]: row for row in report["stages"]}["INT4"]["bits_per_weight"] < 4.51


def test_estimates_follow_the_work(large):
    def steps(**options):
        return {row["step"].split()[0]: row for row in plan_folder(large, PlanSettings(**options))["steps"]}

    few, many = steps(), steps(sequences=256, method="sparsegpt")
    # one block with its work, not the model's 13 GB in float32
    assert few["prune"]["peak_memory"] < 4e9
    assert few["prune"]["peak_memory"] < many["prune"]["peak_memory"] < few["merge"]["peak_memory"]
    assert few["merge"]["peak_memory"] > 3.3e9 * 4
    assert few["prune"]["seconds"] < many["prune"]["seconds"]
    assert few["eval"]["seconds"] is None
    tokens = 256 * 128
    assert many["prune"]["peak_memory"] > tokens * 4096 * 4 + 11008**2 * 4


def test_a_recovery_has_both_models_in_memory_and_is_planned_where_it_is_asked_for(large, monkeypatch):
    monkeypatch.setattr("sqft_plugins.plan.costs.fast_dtype", lambda: torch.float32)
    without, asked = (plan_folder(large, PlanSettings(recover=recover)) for recover in (False, True))
    assert "recover" not in {row["step"] for row in without["steps"]}
    (row,) = [row for row in asked["steps"] if row["step"] == "recover"]
    weights = 16 * (4 * 4096**2 + 3 * 4096 * 11008)
    assert row["peak_memory"] > 2 * 4 * weights + 16 * weights  # both models; what learns, with gradient and moments
    flops = row["seconds"] * EFFICIENCY * asked["machine"]["gemm_gflops"] * 1e9
    assert 8 <= flops / (640 * 128 * weights) < 9  # the dense model forward, the pruned one forward and back, heads


def test_memory_does_not_grow_with_depth(tiny_model, tmp_path):
    peaks = {}
    for depth in (2, 4):
        tiny_model("llama", num_hidden_layers=depth).save_pretrained(tmp_path / str(depth))
        rows = plan_folder(tmp_path / str(depth), PlanSettings(quantize_method="gptq"))["steps"]
        peaks[depth] = {row["step"]: row["peak_memory"] for row in rows}
    assert peaks[2]["prune (wanda)"] == peaks[4]["prune (wanda)"]
    assert peaks[2]["quantize (gptq)"] == peaks[4]["quantize (gptq)"]
    assert peaks[2]["merge"] < peaks[4]["merge"]


def test_the_estimated_peak_is_near_the_measured_one(tiny_llama, tmp_path):
    """What a tiny model needs is the interpreter with its libraries: the constant that all estimates stand on."""
    code = (
        "from sqft_plugins.compress.prune import prune_folder\n"
        f"print(prune_folder({str(tiny_llama)!r}, {str(tmp_path / 'pruned')!r})['peak_memory_mib'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    measured = int(done.stdout) << 20
    (planned,) = [row["peak_memory"] for row in plan_folder(tiny_llama)["steps"] if row["step"] == "prune (wanda)"]
    assert 0.7 * measured < planned < 1.4 * measured


def test_the_costs_of_a_method_are_those_of_columns_and_weights(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(machine.time, "perf_counter", lambda: clock[0])

    def run(rows: int, columns: int) -> None:
        clock[0] += columns * (2e-4 + rows * 3e-8)

    assert machine.column_costs(run) == pytest.approx((2e-4, 3e-8), rel=1e-6)


def test_the_machine_is_measured():
    assert 0 < machine.available_memory() < 1 << 50
    assert machine.gemm_rate() > 1e6
