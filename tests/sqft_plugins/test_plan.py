"""`sqft plan`: sizes to the byte, refusals by name, and no weight read."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sqft_plugins.checkpoint import ModelFolder
from sqft_plugins.checkpoint.compact_convert import compact_folder
from sqft_plugins.checkpoint.shards import ShardFile, TensorSpec
from sqft_plugins.cli import main
from sqft_plugins.compress.prune import prune_folder
from sqft_plugins.compress.quantize import quantize_folder
from sqft_plugins.errors import CheckpointError, SQFTError
from sqft_plugins.plan import PlanSettings, machine, plan_folder


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Rates are measured for a moment only; their size is not what these tests are about."""
    monkeypatch.setattr(machine, "GEMM_SECONDS", 0.005)
    monkeypatch.setattr(machine, "SAMPLE_OUTS", (16, 64))


def stages(report) -> dict:
    return {stage["stage"]: stage for stage in report["stages"]}


def on_disk(folder: Path) -> tuple[int, int]:
    """Bytes of the weight files, and of everything else."""
    weights = ModelFolder(folder).weight_bytes
    return weights, sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) - weights


def bits(folder: Path, modules) -> float:
    read = ModelFolder(folder)
    weights = sum(read.mask(module).numel() for module in modules)
    return 8 * sum(read.spec(name).nbytes for module in modules for name in read.parts(module)) / weights


@pytest.mark.parametrize(
    ("group_size", "symmetric", "sparsity"), [(32, True, 0.5), (64, False, "2:4"), (-1, True, 0.3), (-1, False, "1:4")]
)
def test_sizes_are_those_of_the_folders_that_are_written(family, tiny_model, tmp_path, group_size, symmetric, sparsity):
    tiny_model(family).save_pretrained(tmp_path / "base")
    settings = PlanSettings(sparsity=sparsity, group_size=group_size, symmetric=symmetric, method="magnitude")
    planned = stages(plan_folder(tmp_path / "base", settings))
    prune_folder(tmp_path / "base", tmp_path / "pruned", method="magnitude", sparsity=sparsity)
    quantize_folder(tmp_path / "pruned", tmp_path / "int4", group_size=group_size, symmetric=symmetric)
    modules = list(ModelFolder(tmp_path / "pruned").masks)
    for stage, folder in (("source", "base"), ("pruned", "pruned"), ("INT4", "int4"), ("merged", "pruned")):
        weights, other = on_disk(tmp_path / folder)
        assert planned[stage]["bytes"] == weights, stage
        assert abs(planned[stage]["other"] - other) < 4096, stage  # config.json grows, and there is stamp.json
        if folder != "base":
            assert planned[stage]["bits_per_weight"] == bits(tmp_path / folder, modules)
    assert planned["merged INT4"]["bytes"] == planned["INT4"]["bytes"]


@pytest.mark.parametrize(("symmetric", "sparsity"), [(True, 0.5), (False, "2:4"), (True, 0.3)])
def test_the_compact_form_is_at_most_what_is_planned(tiny_llama, tmp_path, symmetric, sparsity):
    planned = stages(plan_folder(tiny_llama, PlanSettings(sparsity=sparsity, symmetric=symmetric)))["compact"]
    prune_folder(tiny_llama, tmp_path / "pruned", method="magnitude", sparsity=sparsity)
    quantize_folder(tmp_path / "pruned", tmp_path / "int4", symmetric=symmetric)
    compact_folder(tmp_path / "int4", tmp_path / "compact")
    assert not planned["exact"]
    assert planned["bytes"] == ModelFolder(tmp_path / "compact").weight_bytes  # random weights have no zeros before


def test_a_sharded_source_and_layers_left_out(tiny_llama, tmp_path):
    base = shutil.copytree(tiny_llama, tmp_path / "base")
    whole = load_file(base / "model.safetensors")
    names = sorted(whole)
    index = {}
    for number, chosen in enumerate((names[::2], names[1::2]), 1):
        save_file({name: whole[name] for name in chosen}, base / f"model-{number}.safetensors", {"format": "pt"})
        index |= dict.fromkeys(chosen, f"model-{number}.safetensors")
    (base / "model.safetensors").unlink()
    (base / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    report = plan_folder(base, PlanSettings(exclude=["down_proj"]))
    quantize_folder(base, tmp_path / "int4", exclude=["down_proj"])
    assert report["modules"] == 12
    assert stages(report)["INT4"]["bytes"] == ModelFolder(tmp_path / "int4").weight_bytes


def test_adapters_are_as_peft_saves_them(tiny_llama, tmp_path):
    pytest.importorskip("peft")
    from peft import get_peft_model

    from peft_ext import SQFTConfig
    from sqft_plugins.checkpoint import load_model

    choices = {"r": 8, "rank_choices": [8, 6, 4], "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"}
    get_peft_model(load_model(tiny_llama), SQFTConfig(sparse=False, **choices)).save_pretrained(tmp_path / "adapter")
    settings = PlanSettings(rank=8, rank_choices=["8", "6", "4"], target_modules=["q_proj", "down_proj"])
    report = plan_folder(tiny_llama, settings)
    assert report["targets"] == 4
    planned = stages(report)
    assert planned["adapter, rank 8"]["bytes"] == (tmp_path / "adapter" / "adapter_model.safetensors").stat().st_size
    difference = planned["adapter, rank 8"]["bytes"] - planned["adapter, rank 6"]["bytes"]
    assert abs(difference - 4 * 2 * 2 * (64 + 64 + 128 + 64)) < 64  # two ranks of two layers of two kinds


def test_default_targets_that_the_model_lacks_are_no_error(tiny_model, tmp_path):
    tiny_model("gpt2").save_pretrained(tmp_path / "gpt2")
    report = plan_folder(tmp_path / "gpt2")
    assert report["targets"] == 0
    assert [step["step"].split()[0] for step in report["steps"]] == ["prune", "quantize", "eval", "export"]
    assert plan_folder(tmp_path / "gpt2", PlanSettings(target_modules=["all-linear"]))["targets"] == 8


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
    assert 4.5 < stages(report)["INT4"]["bits_per_weight"] < 4.51


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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": 1.5}, r"sparsity=1.5 is outside 0\.\.1"),
        ({"sparsity": "5:4"}, r"sparsity=5:4 is no N:M"),
        ({"sparsity": "2:6"}, r"sparsity=2:6 does not divide in=64 of model\.layers\.0\.self_attn\.q_proj"),
        ({"overrides": {"down_proj": "3:5"}}, r"sparsity=3:5 does not divide in=128 of .*down_proj"),
        ({"overrides": {"dwn_proj": 0.3}}, r"--sparsity-of 'dwn_proj' matches no layer: did you mean 'down_proj'"),
        ({"group_size": 48}, r"group_size=48 does not divide in=64 of .*q_proj: use one of \[32, 64, -1\]"),
        ({"group_size": 128}, r"group_size=128 does not divide in=64"),
        ({"exclude": ["q_prj"]}, r"--exclude 'q_prj' matches no layer: did you mean 'q_proj'"),
        ({"exclude": [".*"]}, r"leaves no layer to work on"),
        ({"rank_choices": [24, 16]}, r"maximum 24 but r=32"),
        ({"rank_choices": ["32", "x"]}, r"rank_choices.1='x'"),
        ({"rank": 0}, r"rank=0"),
        ({"target_modules": ["c_attn"]}, r"--target-modules 'c_attn' matches no layer"),
        ({"method": "wamda"}, r"--method 'wamda' is unknown: did you mean 'wanda'"),
        ({"quantize_method": "gtpq"}, r"--quantize-method 'gtpq' is unknown: did you mean 'gptq'"),
        ({"sequences": 0}, r"sequences=0: input should be greater than or equal to 1"),
        ({"length": 1}, r"length=1: input should be greater than or equal to 2"),
    ],
)
def test_what_a_step_would_refuse_is_refused(options, message, tiny_llama):
    with pytest.raises(SQFTError, match=message):
        plan_folder(tiny_llama, PlanSettings(**options))


def test_what_is_no_float_model_is_refused(tiny_llama, tmp_path):
    with pytest.raises(CheckpointError, match="is not a folder"):
        plan_folder("google/gemma-3-270m")
    quantize_folder(tiny_llama, tmp_path / "int4")
    with pytest.raises(SQFTError, match="is INT4 already"):
        plan_folder(tmp_path / "int4")


def test_excluded_layers_may_have_any_shape(tiny_llama):
    with pytest.raises(SQFTError, match="group_size=128"):
        plan_folder(tiny_llama, PlanSettings(group_size=128))
    others = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj"]
    assert plan_folder(tiny_llama, PlanSettings(group_size=128, exclude=others))["modules"] == 2


def test_exports_say_what_the_file_would_be(tiny_llama, tiny_model, tmp_path):
    rows = {(row["format"], row["of"]): row for row in plan_folder(tiny_llama)["exports"]}
    assert rows["vllm", "INT4"]["possible"]
    assert rows["gguf", "INT4"]["types"]["Q4_0"] == 14
    assert rows["gguf", "INT4"]["exact"]
    tiny_model("opt").save_pretrained(tmp_path / "opt")
    rows = {(row["format"], row["of"]): row for row in plan_folder(tmp_path / "opt")["exports"]}
    assert not rows["gguf", "INT4"]["possible"]
    assert "llama.cpp has no OPT" in rows["gguf", "INT4"]["reason"]
    tiny_model("llama", intermediate_size=48).save_pretrained(tmp_path / "odd")
    odd = plan_folder(tmp_path / "odd", PlanSettings(group_size=16))
    rows = {(row["format"], row["of"]): row for row in odd["exports"]}
    assert "needs multiples of 32" in rows["vllm", "INT4"]["reason"]


def test_the_command_line(tiny_llama, capsys, monkeypatch):
    def run(*arguments) -> int:
        with pytest.raises(SystemExit) as done:
            main(["plan", str(tiny_llama), *arguments])
        return int(done.value.code or 0)

    assert run("--sparsity", "2:4", "--rank-choices", "32,16") == 0
    shown = capsys.readouterr().out
    assert "adapter, rank 16" in shown
    assert shown.rstrip().endswith("fits")
    assert run("--json") == 0
    assert json.loads(capsys.readouterr().out)["fits"] is True
    monkeypatch.setattr("sqft_plugins.plan.run.available_memory", lambda: 100 << 20)
    assert run() == 1
    shown = capsys.readouterr().out
    assert shown.count("does not fit") == 7
    assert run("--group-size", "48") == 2
    assert "group_size=48" in capsys.readouterr().err


def test_the_stored_names_of_a_bare_body(tiny_model, tmp_path):
    """GPT-2 as it is published: what we write has the model's own names, which are longer."""
    tiny_model("gpt2").save_pretrained(tmp_path / "bare")
    tensors = load_file(tmp_path / "bare" / "model.safetensors")
    bare = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    save_file(bare, tmp_path / "bare" / "model.safetensors", {"format": "pt"})
    planned = stages(plan_folder(tmp_path / "bare"))
    prune_folder(tmp_path / "bare", tmp_path / "pruned", method="magnitude")
    assert planned["pruned"]["bytes"] == ModelFolder(tmp_path / "pruned").weight_bytes
    assert planned["source"]["bytes"] == (tmp_path / "bare" / "model.safetensors").stat().st_size
