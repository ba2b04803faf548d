"""Checkpoints: a run that was killed and started again ends as the undisturbed one; several processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers_train import EXAMPLES, FILES, TRAINING, killed, train

from sqft_plugins.compress.prune import prune_folder
from sqft_plugins.compress.quantize import quantize_folder
from sqft_plugins.errors import MismatchError, SQFTError
from sqft_plugins.tune.resume import MARK, alone, checkpoint_folder, last_checkpoint

CHECKED = {"checkpoint_every": 3}


def written(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES if (folder / name).exists()}


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("elastic, dropout, evaluated", {"adapter": {"dropout": 0.1}, "eval_fraction": 0.2, "eval_every": 2,
                                         "keep": "best"}),
        pytest.param("accumulated, packed", {"gradient_accumulation": 2, "packing": True}, marks=pytest.mark.once),
        ("quantization-aware", {"adapter": {"quantization_aware": True}}),
        pytest.param("plain LoRA", {"adapter": {"rank_choices": None, "dropout": 0.1}, "tuner": "lora"},
                     marks=pytest.mark.once),
    ],
)  # fmt: skip
def test_a_killed_run_goes_on_and_ends_bit_for_bit_as_the_undisturbed_one(
    kind, options, pruned, int4, tmp_path, monkeypatch, capsys
) -> None:
    base = int4 if kind == "quantization-aware" else pruned
    whole = train(base, tmp_path / "whole", **options)
    call = 8 * options.get("gradient_accumulation", 1)  # within the eighth step: the checkpoint of the sixth is there
    killed(monkeypatch, call, base, tmp_path / "parts", **options, **CHECKED)
    assert not (tmp_path / "parts").exists()
    resumed = train(base, tmp_path / "parts", **options, **CHECKED)
    assert "going on from step 6 of 10" in capsys.readouterr().err.replace("\n", " ")
    assert (whole["resumed_from_step"], resumed["resumed_from_step"]) == (None, 6)
    assert written(tmp_path / "parts") == written(tmp_path / "whole")
    assert len(written(tmp_path / "whole")) == (
        2 if kind in ("elastic, dropout, evaluated", "quantization-aware") else 1
    )
    same = ("losses", "evaluations", "kept_step", "tokens")
    assert {key: resumed[key] for key in same} == {key: whole[key] for key in same}
    assert len(resumed["losses"]) == 10
    assert sorted(path.name for path in tmp_path.iterdir()) == ["parts", "whole"]  # no checkpoint is left


def test_a_checkpoint_that_was_cut_off_is_passed_over(pruned, tmp_path, monkeypatch) -> None:
    train(pruned, tmp_path / "whole")
    killed(monkeypatch, 8, pruned, tmp_path / "parts", **CHECKED)
    last = checkpoint_folder(tmp_path / "parts") / "checkpoint-6"
    (last / MARK).unlink()
    (last / "optimizer.pt").write_bytes(b"cut")
    assert train(pruned, tmp_path / "parts", **CHECKED)["resumed_from_step"] == 3
    assert written(tmp_path / "parts") == written(tmp_path / "whole")


def test_a_checkpoint_of_another_run_is_refused_by_name(pruned, tiny_llama, tmp_path, monkeypatch) -> None:
    out = tmp_path / "out"
    killed(monkeypatch, 5, pruned, out, **CHECKED)
    for changes, message in (
        ({"learning_rate": 2e-2}, r"holds step 3 of another run \(learning_rate=0.01, here 0.02\)"),
        ({"adapter": {"alpha": 8}}, r"\(alpha=16.0, here 8.0\)"),
        ({"examples": EXAMPLES[1:]}, r"\(other data\)"),
        ({"packing": True}, r"\(packing=False, here True\): give the same to go on with it, or remove that folder"),
    ):
        with pytest.raises(MismatchError, match=message):
            train(pruned, out, **CHECKED, **changes)
    other = shutil.copytree(pruned, tmp_path / "other")
    prune_folder(tiny_llama, other, sparsity=0.6, sequences=2, length=32, overwrite=True)
    with pytest.raises(MismatchError, match=r"\(other base\)"):
        train(other, out, **CHECKED)
    assert train(pruned, out, checkpoint_every=5)["resumed_from_step"] == 3  # how often it saves is no matter


def test_a_checkpoint_over_another_grid_is_refused(pruned, tmp_path, monkeypatch, capsys) -> None:
    grid, out = tmp_path / "grid", tmp_path / "out"
    adapter = {"quantization_aware": True, "grid": str(grid)}
    quantize_folder(pruned, grid)
    killed(monkeypatch, 5, pruned, out, adapter=adapter, **CHECKED)
    quantize_folder(pruned, grid, symmetric=False, overwrite=True)
    with pytest.raises(MismatchError, match=r"of another run \(other grid\)"):
        train(pruned, out, adapter=adapter, **CHECKED)
    assert last_checkpoint(checkpoint_folder(out), {"tuner": "lora"}, anew=True) is None  # as a recipe asks for
    assert "of another run" in capsys.readouterr().err
    assert not list(checkpoint_folder(out).glob("checkpoint-*"))


def test_an_output_is_written_by_one_run_at_a_time(pruned, tmp_path) -> None:
    with alone(tmp_path / "out"), pytest.raises(SQFTError, match=r"--out .*out is being written by another process"):
        train(pruned, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_two_processes_train_as_one_also_after_a_kill_and_the_first_one_writes(pruned, tmp_path) -> None:
    settings = {"steps": 60, "eval_fraction": 0.2, "eval_every": 20}
    one = train(pruned, tmp_path / "one", adapter={"rank_choices": [8]}, **settings)
    data = tmp_path / "train.jsonl"
    data.write_text("\n".join(json.dumps({"prompt": e.prompt, "completion": e.completion}) for e in EXAMPLES))
    options = {"data": data, "rank": 8, "alpha": 16, "rank-choices": 8, "checkpoint-every": 5, "out": tmp_path / "two"}
    options |= {name.replace("_", "-"): value for name, value in {**TRAINING, **settings}.items()}
    command = [sys.executable, "-m", "sqft_plugins.cli", "train", pruned, "--json"]
    for name, value in options.items():
        command += [f"--{name}", value]

    def launch() -> list[subprocess.Popen]:
        """With torchrun's variables."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        return [
            subprocess.Popen(
                [str(part) for part in command],
                env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
            for rank in range(2)
        ]  # fmt: skip

    processes = launch()
    mark = checkpoint_folder(tmp_path / "two") / "checkpoint-10" / MARK
    while not mark.exists() and processes[0].poll() is None:
        time.sleep(0.005)
    for process in processes:
        process.kill()
    assert [process.wait() for process in processes] == [-signal.SIGKILL] * 2, processes[0].stderr.read()[-3000:]
    assert not (tmp_path / "two").exists()
    (output, errors), silent = (process.communicate(timeout=600) for process in launch())
    assert "going on from step" in errors
    assert silent[0] == ""
    two = json.loads(output)
    assert (two["processes"], two["resumed_from_step"] >= 10) == (2, True)
    # 1e-4: the order of sums, carried through sixty steps
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-4)
    evaluations = [[row["loss"] for row in run["evaluations"]] for run in (two, one)]
    assert evaluations[0] == pytest.approx(evaluations[1], rel=1e-4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "train.jsonl", "two"]
