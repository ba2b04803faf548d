"""Training through the INT4 grid and merging into it, as the command line does: folders in, folders out."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from sqft_plugins.checkpoint import ModelFolder, load_model
from sqft_plugins.cli import main
from sqft_plugins.compress.quantize import quantize_folder
from sqft_plugins.errors import MismatchError, SQFTError
from sqft_plugins.evaluate import open_session
from sqft_plugins.measure import zeros_kept
from sqft_plugins.tune import AdapterSettings, TrainSettings
from sqft_plugins.tune.dtypes import choose_dtype
from sqft_plugins.tune.examples import Example
from sqft_plugins.tune.extract import extract_adapter
from sqft_plugins.tune.merge import merge_folder
from sqft_plugins.tune.merge_report import TEXT as PROBE
from sqft_plugins.tune.train import train_adapter

EXAMPLES = [Example(f"Question: what follows {n}?\nAnswer:", f" {n + 1}") for n in range(40)]
SETTINGS = {"rank": 8, "alpha": 16, "rank_choices": [8, 6, 4], "quantization_aware": True}
TRAINING = TrainSettings.make({"steps": 20, "batch_size": 8, "learning_rate": 1e-2})
WEIGHTS = "adapter_model.safetensors"


def train(base, out, examples=EXAMPLES, training=TRAINING, **changes):
    return train_adapter(base, out, examples, AdapterSettings.make({**SETTINGS, **changes}), training)


@pytest.fixture(scope="module")
def adapter(int4, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter") / "adapter"
    report = train(int4, folder)
    assert report["losses"][-1] < report["losses"][0] - 0.5  # random weights learn little
    return folder


def probe_logits(model, tokens):
    with torch.no_grad():
        return model(input_ids=tokens).logits


GRIDS = [
    {}, {"group_size": 64, "symmetric": False}, {"group_size": -1},
    {"bits": 2, "symmetric": False}, {"bits": 3, "symmetric": False}, {"bits": 6}, {"bits": 8},
]  # fmt: skip


@pytest.mark.parametrize("grid", GRIDS)
def test_a_merge_is_on_the_grid_again_and_computes_what_was_trained(adapter, int4, pruned, tmp_path, grid) -> None:
    if grid:
        quantize_folder(pruned, tmp_path / "int4", **grid)
        train(tmp_path / "int4", tmp_path / "adapter")
        int4, adapter = tmp_path / "int4", tmp_path / "adapter"
    report = merge_folder(int4, adapter, tmp_path / "merged", "median")
    base, merged = ModelFolder(int4), ModelFolder(tmp_path / "merged")
    assert report["zeros_lost"] == 0
    assert report["max_logit_difference"] < 1e-5
    assert report["codes_changed"] > 0.05
    assert merged.grid == base.grid
    assert merged.stamp.pipeline == [*base.stamp.pipeline, "sqft-qa-merge"]
    assert (merged.stamp.mask_hash, merged.stamp.scale_hash) == (base.stamp.mask_hash, base.stamp.scale_hash)
    assert set(merged.stamp.ranks.values()) == {6}
    assert merged.config["quantization_config"]["sqft"]["pipeline"] == merged.stamp.pipeline
    assert zeros_kept(merged, base.masks) == 1.0
    mine, theirs = load_file(int4 / "model.safetensors"), load_file(tmp_path / "merged" / "model.safetensors")
    assert list(mine) == list(theirs)
    changed = {name for name in mine if not torch.equal(mine[name], theirs[name])}
    assert changed == {f"{module}.weight_packed" for module in merged.stamp.ranks}  # codes of what is adapted, no more
    for module in base.int4.modules:
        assert int(merged.quantized(module).codes.max()) <= 2 ** grid.get("bits", 4) - 1
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (tmp_path / "merged" / name).read_bytes() == (int4 / name).read_bytes()


def test_the_merged_folder_answers_as_the_adapter_did(adapter, int4, tmp_path) -> None:
    merge_folder(int4, adapter, tmp_path / "merged", "min")
    prompts = [example.prompt for example in EXAMPLES[:6]]
    before = open_session(int4, adapter=adapter, rank="min", dtype="float32")
    after = open_session(tmp_path / "merged", dtype="float32")
    assert list(before.generate(prompts, 6)) == list(after.generate(prompts, 6))
    tokens = before.tokenize(PROBE)
    torch.testing.assert_close(before.logprobs(tokens), after.logprobs(tokens), rtol=1e-5, atol=1e-5)


def test_a_fresh_process_merges_to_the_same_bytes(adapter, int4, tmp_path) -> None:
    merge_folder(int4, adapter, tmp_path / "here")
    arguments = ["merge", str(int4), str(adapter), "--out", str(tmp_path / "there"), "--json"]
    command = [sys.executable, "-c", "from sqft_plugins.cli import main; main()", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["max_logit_difference"] < 1e-5
    for file in ("model.safetensors", "sqft/stamp.json", "sqft/mask.safetensors", "config.json"):
        assert (tmp_path / "there" / file).read_bytes() == (tmp_path / "here" / file).read_bytes()


def test_a_sub_adapter_merges_to_the_same_codes(adapter, int4, tmp_path) -> None:
    merge_folder(int4, adapter, tmp_path / "super", 4)
    extract_adapter(adapter, tmp_path / "sub", 4)
    merge_folder(int4, tmp_path / "sub", tmp_path / "merged")
    name = "model.safetensors"
    assert (tmp_path / "merged" / name).read_bytes() == (tmp_path / "super" / name).read_bytes()


def test_over_the_float_base_beside_its_int4_folder(pruned, int4, tmp_path) -> None:
    train(pruned, tmp_path / "adapter", grid=str(int4))
    report = merge_folder(pruned, tmp_path / "adapter", tmp_path / "merged")
    assert report["int4"] == str(int4)
    assert report["max_logit_difference"] < 1e-5  # also through what is not adapted: it ran as INT4
    assert report["zeros_lost"] == 0
    merged = ModelFolder(tmp_path / "merged")
    gate = "model.layers.0.mlp.gate_proj"
    assert torch.equal(merged.quantized(gate).codes, ModelFolder(int4).quantized(gate).codes)
    with pytest.raises(MismatchError, match=r"trained over the float base .*: load it on .*model"):
        merge_folder(int4, tmp_path / "adapter", tmp_path / "out")
    moved = tmp_path / "moved"
    shutil.copytree(int4, moved)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps({**config, "grid": "/gone/int4"}))
    with pytest.raises(SQFTError, match="/gone/int4 is not a folder"):
        merge_folder(pruned, tmp_path / "adapter", tmp_path / "out")
    merge_folder(pruned, tmp_path / "adapter", tmp_path / "again", grid=moved)
    name = "model.safetensors"
    assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "merged" / name).read_bytes()


def test_the_result_can_be_tuned_again_but_not_merged_into_twice(adapter, int4, tmp_path) -> None:
    merge_folder(int4, adapter, tmp_path / "merged")
    with pytest.raises(MismatchError, match="a model that was merged into has other codes, too"):
        merge_folder(tmp_path / "merged", adapter, tmp_path / "twice")
    assert not (tmp_path / "twice").exists()
    train(tmp_path / "merged", tmp_path / "next")
    merge_folder(tmp_path / "merged", tmp_path / "next", tmp_path / "twice")
    steps = ModelFolder(tmp_path / "twice").stamp.pipeline
    assert steps[-2:] == ["sqft-qa-merge", "sqft-qa-merge"]


def test_a_merge_that_changes_nothing_says_so(adapter, int4, tmp_path, capsys) -> None:
    shutil.copytree(adapter, tmp_path / "still")
    tensors = load_file(adapter / WEIGHTS)
    save_file({n: t * 0 if "lora_B" in n else t for n, t in tensors.items()}, tmp_path / "still" / WEIGHTS)
    report = merge_folder(int4, tmp_path / "still", tmp_path / "merged")
    assert report["codes_changed"] == 0
    assert "changes 0.000% of the kept codes: it was hardly trained" in capsys.readouterr().err
    name = "model.safetensors"
    assert (tmp_path / "merged" / name).read_bytes() == (int4 / name).read_bytes()


def test_what_int4_would_lose_is_not_merged(int4, pruned, tmp_path) -> None:
    few = TRAINING.model_copy(update={"steps": 2})
    train(int4, tmp_path / "dense", training=few, quantization_aware=False, sparse=False)
    train_adapter(int4, tmp_path / "lora", EXAMPLES, AdapterSettings.make({"rank": 8}), few, tuner="lora")
    train(pruned, tmp_path / "masked", training=few, quantization_aware=False)
    for name in ("dense", "lora", "masked"):
        with pytest.raises(SQFTError, match=r"is INT4 and .* is not quantization-aware: .* a small delta is lost"):
            merge_folder(int4, tmp_path / name, tmp_path / "out")
    with pytest.raises(SQFTError, match=r"--grid .* is for a quantization-aware adapter, .*masked is not:"):
        merge_folder(pruned, tmp_path / "masked", tmp_path / "out", grid=int4)
    assert not (tmp_path / "out").exists()


def test_what_was_trained_beside_the_linear_layers_is_not_lost_in_silence(adapter, int4, tmp_path) -> None:
    from peft import get_peft_model

    from peft_ext import SQFTConfig

    config = SQFTConfig(r=4, target_modules=["q_proj"], quantization_aware=True, modules_to_save=["lm_head"])
    model = get_peft_model(load_model(int4, dtype=torch.float32), config)
    model.get_submodule("base_model.model.lm_head").modules_to_save["default"].weight.data.mul_(1.1)
    model.save_pretrained(tmp_path / "more")
    with pytest.raises(
        SQFTError, match=r"computes other logits than the adapter did .*\(modules_to_save\) cannot be mer"
    ):
        merge_folder(int4, tmp_path / "more", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_float_model_is_no_int4_base(adapter, pruned, tmp_path) -> None:
    with pytest.raises(MismatchError, match=r"is float, but .* was trained through a grid: merge into the quantized"):
        merge_folder(pruned, adapter, tmp_path / "out")


def test_training_refuses_before_it_loads(pruned, int4, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("sqft_plugins.tune.train.load_base", lambda *a, **k: pytest.fail("the model was loaded"))
    for base, changes, message in [
        (pruned, {}, r"needs a grid, but .* is a float model"),
        (int4, {"dropout": 0.1}, r"dropout=0.1 cannot be used with quantization_aware"),
        (int4, {"sparse": False}, r"sparse=False over .*, whose mask prunes"),
        (
            int4,
            {"quantization_aware": False},
            r"is INT4, and a masked adapter cannot merge back to it: train with --qu",
        ),
        (int4, {"quantization_aware": False, "grid": "x"}, r"grid='x' needs quantization_aware=True"),
    ]:
        with pytest.raises(SQFTError, match=message):
            train(base, tmp_path / "out", **changes)
    settings = AdapterSettings.make({"rank": 8, "quantization_aware": True})
    with pytest.raises(SQFTError, match="quantization_aware needs --tuner sqft"):
        train_adapter(int4, tmp_path / "out", EXAMPLES, settings, TRAINING, tuner="lora")


def test_a_gradient_that_is_not_finite_names_its_layer(int4, tmp_path, monkeypatch) -> None:
    from peft_ext.tuner import SQFTTuner

    attach = SQFTTuner.attach

    def broken(self, model, settings):
        tuned = attach(self, model, settings)
        layer = tuned.get_submodule("base_model.model.model.layers.1.mlp.down_proj")
        layer.lora_B["default"].weight.data.fill_(torch.inf)  # codes are finite all the same, and so is the loss
        return tuned

    monkeypatch.setattr(SQFTTuner, "attach", broken)
    with pytest.raises(SQFTError, match=r"gradient of .*layers\.1\.mlp\.down_proj\.lora_A.* is not finite: lower"):
        train(int4, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_dtype_of_training_holds_a_float_base_exactly(pruned, tiny_gemma, monkeypatch) -> None:
    monkeypatch.setattr("sqft_plugins.tune.dtypes.fast_dtype", lambda: torch.bfloat16)
    float32, bfloat16 = ModelFolder(pruned), ModelFolder(tiny_gemma)
    assert choose_dtype(float32, exact=False)[0] == torch.bfloat16
    assert choose_dtype(float32, exact=True)[0] == torch.float32
    assert choose_dtype(bfloat16, exact=True)[0] == torch.bfloat16


def test_trained_in_bfloat16_it_merges_the_codes_it_was_trained_with(int4, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("sqft_plugins.tune.dtypes.fast_dtype", lambda: torch.bfloat16)
    report = train(int4, tmp_path / "adapter")
    assert report["dtype"] == "bfloat16"
    merge_folder(int4, tmp_path / "adapter", tmp_path / "merged", "max")
    from peft_ext.tuner import SQFTTuner

    tuned = SQFTTuner().load(load_model(int4, dtype=torch.bfloat16), tmp_path / "adapter")
    merged = ModelFolder(tmp_path / "merged")
    for module, weight in SQFTTuner().quantized(tuned).items():
        assert torch.equal(weight.codes, merged.quantized(module).codes)


def run(*arguments: str) -> None:
    with pytest.raises(SystemExit) as exit:
        main(list(arguments))
    assert exit.value.code == 0


def test_the_command_line_trains_and_merges(int4, tmp_path, capsys) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join(json.dumps({"prompt": e.prompt, "completion": e.completion}) for e in EXAMPLES))
    options = ["--steps", "5", "--batch-size", "4", "--rank", "8", "--learning-rate", "1e-2"]
    out = str(tmp_path / "adapter")
    run("train", str(int4), "--data", str(data), "--quantization-aware", *options, "--out", out)
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert "CompressedTensorsConfig(dequantize=True)" in card
    assert "| pipeline | QA-SparsePEFT |" in card
    run("merge", str(int4), out, "--out", str(tmp_path / "merged"))
    assert "of the kept codes changed, 0 zeros lost" in capsys.readouterr().out
