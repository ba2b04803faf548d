"""Adapters that earlier versions wrote: loaded, extracted, merged, trained on; tests/samples/README.md lists them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file
from sample_content import digest, tensors_in

from sqft_plugins._version import VERSION
from sqft_plugins.checkpoint import ModelFolder, load_model
from sqft_plugins.cli import main
from sqft_plugins.tune.extract import extract_adapter
from sqft_plugins.tune.merge import merge_folder

BASES = {
    "run/train": "run/prune",
    "adapter-searched": "run/prune",
    "adapter-dense": "run/prune",
    "adapter-qa": "run/prune",
    "adapter-qa-int4": "int4-asymmetric",
    "extracted": "run/prune",
    "extracted-dense": "run/prune",
    "extracted-mixed": "run/prune",
}
TRAINING = (
    "--data", "train.jsonl", "--steps", "4", "--target-modules", "q_proj,v_proj,down_proj", "--rank", "4",
    "--rank-choices", "4,3,2", "--alpha", "8", "--learning-rate", "0.02", "--batch-size", "4",
    "--dtype", "float32",  # that of the machine that wrote the samples: "auto" is bfloat16 where AMX makes it fast
)  # fmt: skip


@pytest.mark.parametrize("adapter", BASES)
def test_an_adapter_loads_with_the_tensors_it_had(samples: Path, adapter: str) -> None:
    expected = json.loads((samples / "expected.json").read_text())["adapters"][adapter]
    assert tensors_in(samples / adapter / "adapter_model.safetensors") == expected
    model = PeftModel.from_pretrained(load_model(BASES[adapter], dtype=torch.float32), adapter)
    assert {name: digest(tensor) for name, tensor in get_peft_model_state_dict(model).items()} == expected


@pytest.mark.parametrize(("adapter", "extracted"), [("run/train", "extracted"), ("adapter-dense", "extracted-dense")])
def test_extracting_gives_the_sub_adapter_it_gave(samples: Path, adapter: str, extracted: str) -> None:
    extract_adapter(adapter, samples / "again", "heuristic")
    for name, tensor in load_file(samples / extracted / "adapter_model.safetensors").items():
        assert torch.equal(load_file(samples / "again/adapter_model.safetensors")[name], tensor), name
    configs = [json.loads((samples / name / "adapter_config.json").read_text()) for name in ("again", extracted)]
    for config in configs:
        config["target_modules"].sort()
        config.setdefault("rounding", "nearest")  # the only one until 0.1
    assert configs[0] == configs[1]


def test_merging_gives_the_folder_it_gave_and_every_zero(samples: Path) -> None:
    merge_folder("run/prune", "run/train", samples / "again", "heuristic")
    again, merged = ModelFolder("again"), ModelFolder("run/merge")
    for name in merged.tensor_names:
        assert torch.equal(again.tensor(name) == 0, merged.tensor(name) == 0), name
        # sums of products are rounded in another order on another processor: at most one step of bfloat16
        torch.testing.assert_close(again.tensor(name), merged.tensor(name), rtol=2**-7, atol=0)


@pytest.mark.parametrize(
    ("adapter", "merged", "grid"),
    [("adapter-qa", "merged-qa", "int4"), ("adapter-qa-int4", "merged-qa-int4", "int4-asymmetric")],
)
def test_a_quantization_aware_merge_gives_the_codes_it_gave(samples: Path, adapter, merged, grid) -> None:
    merge_folder(BASES[adapter], adapter, samples / "again", "heuristic")
    again, before, base = ModelFolder("again"), ModelFolder(merged), ModelFolder(grid)
    for name in before.int4.modules:
        one, other = again.quantized(name), before.quantized(name)
        assert torch.equal(one.codes, other.codes), name
        assert torch.equal(one.scale, base.quantized(name).scale), name
        assert torch.equal(one.zero_point, base.quantized(name).zero_point), name


@pytest.mark.parametrize("name", ["train", "train-best"])
def test_a_killed_training_goes_on(samples: Path, capsys, name: str) -> None:
    if VERSION != "0.1.0":
        pytest.skip("another version may begin anew")
    best = ("--eval-data", "test.jsonl", "--eval-every", "1", "--keep", "best") if name == "train-best" else ()
    with pytest.raises(SystemExit) as end:
        main(["train", "run/prune", *TRAINING, *best, "--checkpoint-every", "2", "--out", f"killed/{name}", "--json"])
    printed = capsys.readouterr()
    assert end.value.code == 0, printed.err
    assert "going on from step 2 of 4" in printed.err
    undisturbed = json.loads((samples / "run/train/training.json").read_text())
    report = json.loads((samples / f"killed/{name}/training.json").read_text())
    assert report["losses"] == pytest.approx(undisturbed["losses"], rel=1e-5)
    assert not (samples / f"killed/.{name}.checkpoints").exists()
    if best:
        assert [row["step"] for row in report["evaluations"]][-1] == 4
        return
    for name, tensor in load_file("run/train/adapter_model.safetensors").items():
        torch.testing.assert_close(
            load_file("killed/train/adapter_model.safetensors")[name], tensor, rtol=1e-3, atol=1e-5
        )
