"""Two gloo processes train as one does: DDP and FSDP2, by Trainer and by hand, checkpoints across world sizes.

DeepSpeed is not run here; docs/how-to/train.md says so.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from filelock import FileLock
from helpers_peft import fill_adapter, sparsify
from helpers_training import RESUMES, STEPS, make_config, train
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from sqft_plugins.compress.quantize import quantize_folder
from sqft_plugins.errors import SQFTError

HERE = Path(__file__).parent
FIXED = {"rank_choices": None}
SUM_ORDER = 2e-6
"""Relative tolerance of losses: two processes add the gradients of their halves of the batch in another order."""


def start(folder: Path) -> list[subprocess.Popen]:
    """The two processes of worker_distributed.py, with torchrun's variables."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    paths = {"PYTHONPATH": os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))}
    return [
        subprocess.Popen(
            [sys.executable, str(HERE / "worker_distributed.py"), str(folder)],
            env={**os.environ, **shared, **paths, "RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip


def run_everything(folder: Path, sparse_model, dense: Path) -> None:
    """Fills `folder`: the runs of two processes, and the same ones in this process."""
    sparse_model.save_pretrained(folder / "base")
    fill_adapter(get_peft_model(load_base(folder), make_config())).save_pretrained(folder / "adapter")
    quantize_folder(folder / "base", folder / "grids" / "int3", bits=3, symmetric=False)
    if find_spec("llama_cpp"):
        from gguf_ext.quantize.run import quantize_gguf

        quantize_gguf(dense, folder / "grids" / "q4_1.gguf", type="Q4_1", importance=False)
    train(load_base(folder), folder / "one", steps=STEPS // 2, config=FIXED)
    processes = start(folder)
    found = {
        "one": vars(train(load_base(folder), folder / "whole")),
        "one_fixed": vars(train(load_base(folder), folder / "whole_fixed", config=FIXED)),
    }
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors[-3000:]
    (folder / "one.json").write_text(json.dumps(found, default=sorted))


@pytest.fixture(scope="module")
def runs(tiny_model, tiny_llama, tmp_path_factory, worker_id) -> SimpleNamespace:
    """What two processes found (`both`), the same run in one process (`one`, `one_fixed`), and the folder.

    The workers of pytest-xdist share one such folder; the first makes it.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "distributed"
    with FileLock(f"{folder}.lock"):
        if not (folder / "one.json").exists():
            run_everything(folder, sparsify(tiny_model("llama")), tiny_llama)
    both = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]
    return SimpleNamespace(both=both, folder=folder, **json.loads((folder / "one.json").read_text()))


def load_base(folder: Path):
    return AutoModelForCausalLM.from_pretrained(folder / "base")


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "final" / "adapter_model.safetensors")


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_two_processes_draw_the_same_ranks_as_one(runs, way) -> None:
    assert runs.both[0][way]["ranks"] == runs.both[1][way]["ranks"] == runs.one["ranks"]
    assert len({rank for step in runs.one["ranks"] for rank in step}) == 3


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_two_processes_have_the_loss_curve_of_one(runs, way) -> None:
    assert runs.both[0][way]["losses"] == runs.both[1][way]["losses"]
    assert runs.both[0][way]["losses"] == pytest.approx(runs.one["losses"], rel=SUM_ORDER)


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_two_processes_save_the_adapter_of_one(runs, way) -> None:
    ours, theirs = adapter(runs.folder / way), adapter(runs.folder / "whole")
    assert ours.keys() == theirs.keys()
    for name in ours:  # Adam divides small gradients by their own size, so that their last bits count
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=1e-5)


def test_only_fsdp_shards(runs) -> None:
    assert runs.both[0]["fsdp"]["parameters"] == ["DTensor"]
    assert runs.both[0]["ddp"]["parameters"] == ["Tensor"]


@pytest.mark.skipif(not RESUMES, reason="transformers before 5.18 reads an optimizer to cpu:0, which torch has not")
def test_a_run_of_one_process_goes_on_in_two(runs) -> None:
    assert runs.both[0]["continued"]["losses"] == pytest.approx(runs.one_fixed["losses"][STEPS // 2 :], rel=SUM_ORDER)


def test_a_run_of_two_processes_goes_on_in_one(runs, tmp_path) -> None:
    half = f"checkpoint-{STEPS // 2}"
    shutil.copytree(runs.folder / "ddp_fixed" / half, tmp_path / half)
    watch = train(load_base(runs.folder), tmp_path, config=FIXED, resume=True)
    assert watch.losses == pytest.approx(runs.both[0]["ddp_fixed"]["losses"][STEPS // 2 :], rel=SUM_ORDER)


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_an_adapter_of_two_processes_loads_in_one(runs, way) -> None:
    """The mask hash, too: every process, also one without the weights, ends with that of the base."""
    model = PeftModel.from_pretrained(load_base(runs.folder), runs.folder / way / "final")
    assert model.peft_config["default"].mask_hash == make_hash(runs)
    saved = adapter(runs.folder / way)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            assert torch.equal(parameter, saved[name.replace(".default", "")])


def make_hash(runs) -> str:
    return get_peft_model(load_base(runs.folder), make_config()).peft_config["default"].mask_hash


def test_a_sharded_model_evaluates_as_a_whole_one_and_keeps_no_copy(runs) -> None:
    for found in runs.both:
        assert found["evaluated"] == {"differences": [0.0, 0.0], "copies": 0}


@pytest.mark.parametrize("which", [0, 1], ids=["reentrant", "not reentrant"])
def test_gradient_checkpointing_works_sharded(runs, which) -> None:
    for found in runs.both:
        assert found["checkpointed"][which]["sharded"] == pytest.approx(found["checkpointed"][which]["whole"])
        assert len(set(found["checkpointed"][which]["whole"])) == 3


@pytest.mark.parametrize("rounding", ["nearest", "compensated"])
@pytest.mark.parametrize("grid", ["int3", "q4_1.gguf"])
def test_other_grids_are_trained_through_sharded_as_whole(runs, grid, rounding) -> None:
    for found in runs.both:
        if f"{grid}, {rounding}" not in found["grids"]:
            pytest.skip("llama-cpp-python is not installed")
        run = found["grids"][f"{grid}, {rounding}"]
        assert run["sharded"] == pytest.approx(run["whole"], rel=1e-5)
        assert run["difference"] < 1e-4
        assert len(set(run["whole"])) == 3


def test_a_sharded_model_merges_and_unmerges_bit_for_bit(runs) -> None:
    for found in runs.both:
        assert found["merged"] == {"merged": True, "changed": True, "unmerged": True}


def test_a_process_without_the_weights_accepts_the_adapter(runs) -> None:
    assert [found["loaded_once"]["zeros"] for found in runs.both] == pytest.approx([0.5, 1.0], abs=0.02)


def test_what_cannot_work_sharded_is_refused(runs) -> None:
    for found in runs.both:
        assert "is sharded already (DTensor): add the adapter first" in found["refused"]["late"]
        assert "safe_merge=True does nothing to a sharded weight" in found["refused"]["safe"]


def test_a_base_under_zero_3_is_refused(sparse_llama) -> None:
    base = sparse_llama()
    base.model.layers[1].mlp.up_proj.weight.ds_id = 7  # DeepSpeed's mark on a partitioned parameter
    with pytest.raises(SQFTError, match=r"layers.1.mlp.up_proj is partitioned by DeepSpeed ZeRO-3"):
        get_peft_model(base, make_config())
