"""sqft prune, quantize and inspect as a user runs them: output, exit codes, one-line errors."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sqft_plugins.checkpoint import ModelFolder
from sqft_plugins.cli import main


@pytest.fixture
def sqft(capfd):
    """Runs the command line → exit code, stdout, stderr. `capfd`: libraries write past sys.stderr."""

    def run(*arguments) -> tuple[int, str, str]:
        capfd.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return int(stopped.value.code or 0), out, err

    return run


def last_line(err: str) -> str:
    return err.strip().splitlines()[-1]


def test_the_way_from_a_model_to_int4(sqft, tiny_llama, tmp_path):
    pruned, int4 = tmp_path / "pruned", tmp_path / "int4"
    code, out, _ = sqft("prune", tiny_llama, "--sparsity", 0.5, "--sequences", 4, "--length", 32, "--out", pruned)
    assert code == 0
    assert "50.00% of 0.1 M weights in 14 layers pruned (wanda" in out

    code, out, _ = sqft("quantize", pruned, "--out", int4, "--json")
    assert code == 0
    assert json.loads(out)["group_size"] == 32
    assert ModelFolder(int4).stamp.pipeline == ["wanda", "round-to-nearest"]  # type: ignore[union-attr]

    code, out, _ = sqft("inspect", int4)
    assert code == 0
    for text in (
        "50.00% pruned, 0 pruned weights are not zero",
        "14 Q4_0",
        "INT4, group 32, symmetric",
        "wanda → round-to-nearest",
    ):
        assert text in out
    code, out, _ = sqft("inspect", tiny_llama, "--json")
    assert code == 0
    assert json.loads(out)["total"]["layers"] == 14


def test_options_of_quantize(sqft, tiny_llama, tmp_path):
    code, out, _ = sqft("quantize", tiny_llama, "--group-size", -1, "--asymmetric", "--out", tmp_path / "out")
    assert code == 0
    assert "asymmetric" in out
    assert ModelFolder(tmp_path / "out").grid.group_size == -1  # type: ignore[union-attr]
    code, _, err = sqft("quantize", tiny_llama, "--out", tmp_path / "out")
    assert (code, "--overwrite" in err) == (2, True)
    code, _, _ = sqft("quantize", tiny_llama, "--out", tmp_path / "out", "--overwrite")
    assert code == 0
    assert ModelFolder(tmp_path / "out").grid.group_size == 32  # type: ignore[union-attr]


def test_calibration_from_a_file(sqft, tiny_llama, tmp_path):
    lines = [json.dumps({"prompt": f"What is {n} plus {n}? ", "completion": str(2 * n)}) for n in range(100)]
    (tmp_path / "c.jsonl").write_text("\n".join(lines))
    arguments = (
        "prune",
        tiny_llama,
        "--sparsity",
        0.3,
        "--sequences",
        4,
        "--length",
        16,
        "--calibration",
        tmp_path / "c.jsonl",
    )
    code, out, _ = sqft(*arguments, "--out", tmp_path / "out", "--json")
    assert code == 0
    assert json.loads(out)["calibration"] == {"source": str(tmp_path / "c.jsonl"), "tokens": [4, 16]}


@pytest.mark.parametrize("verb", ["prune", "quantize", "inspect"])
def test_help_ends_with_examples(sqft, verb):
    code, out, _ = sqft(verb, "--help")
    assert code == 0
    assert out.count(f"  sqft {verb} ") >= 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prune", "MODEL", "--sparsity", "50"], "sparsity=50.0 is outside 0..1"),
        (
            ["prune", "MODEL", "--sparsity", "3:5"],
            "sparsity=3:5 does not divide in=64 of model.layers.0.self_attn.q",
        ),
        (["prune", "MODEL", "--sparsity", "0.5", "--exclude", "upproj"], "did you mean 'up_proj'"),
        (["prune", "MODEL", "--sparsity", "0.5", "--sparsity-of", "up_proj"], "is no PATTERN=VALUE"),
        (["quantize", "MODEL", "--exclude", ".*"], "leaves no layer to work on"),
        (["prune", "MODEL"], "Missing option '--sparsity'"),
        (["prune", "MODEL", "--sparsity", "x"], "sparsity='x' is no pattern"),
        (["prune", "MODEL", "--sparsity", "0.5", "--method", "wnda"], "did you mean 'wanda'?"),
        (["prune", "MODEL", "--sparsity", "0.5", "--calibration", "none.txt"], "--calibration none.txt is not a file"),
        (["prune", "MODEL", "--sparsity", "0.5", "--sequence", "4"], "--sequence"),
        (["prune", "./nowhere", "--sparsity", "0.5"], "./nowhere is not a folder"),
        (["quantize", "./nowhere"], "./nowhere is not a folder"),
        (["quantize", "MODEL", "--group-size", "128"], "group_size=128 does not divide in=64"),
        (["quantize", "MODEL", "--method", "gptk"], "--method 'gptk' is unknown: did you mean 'gptq'?"),
    ],
)
def test_errors_are_one_line_and_leave_nothing(sqft, tiny_llama, tmp_path, arguments, message):
    filled = [str(tiny_llama) if argument == "MODEL" else argument for argument in arguments]
    code, out, err = sqft(*filled, "--out", tmp_path / "out")
    assert code == 2
    assert out == ""
    assert last_line(err).startswith("sqft: ")
    assert message in last_line(err)
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_inspect_names_what_is_wrong(sqft, tiny_llama, tmp_path):
    for arguments, message in [
        ((tmp_path / "none",), "is not there"),
        ((tmp_path,), "has no config.json"),
        ((tiny_llama, "--plot", tmp_path / "x.doc"), "has no known format"),
    ]:
        code, _, err = sqft("inspect", *arguments)
        assert code == 2
        assert message in last_line(err)
    (tmp_path / "x.png").write_text("mine")
    code, _, err = sqft("inspect", tiny_llama, "--plot", tmp_path / "x.png")
    assert (code, "--plot" in err) == (2, True)
    assert (tmp_path / "x.png").read_text() == "mine"


@pytest.mark.once
def test_after_ctrl_c_the_same_command_goes_on(sqft, tiny_llama, tmp_path):
    """A real process, interrupted after its first block; saving is made slow so that the moment is certain."""
    code = (
        "import sys, time\n"
        "from sqft_plugins.compress.job import Job\n"
        "save = Job.save\n"
        "def slow(self, *a):\n    save(self, *a)\n    print('saved', flush=True)\n    time.sleep(60)\n"
        "Job.save = slow\n"
        "from sqft_plugins.cli import main\n"
        "main(sys.argv[1:])\n"
    )
    command = [
        "prune",
        tiny_llama,
        "--sparsity",
        "0.5",
        "--sequences",
        "2",
        "--length",
        "16",
        "--out",
        tmp_path / "out",
    ]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, cwd=Path(__file__).parents[3],
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # tests in the background ignore Ctrl-C
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == "saved":
            break
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert last_line(err).startswith("sqft: interrupted")
    assert not (tmp_path / "out").exists()
    code, _, err = sqft(*command)
    assert code == 0
    assert "going on at block 2:" in err
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]
