"""`sqft plan`: refusals by name, exports, the command line."""

from __future__ import annotations

import json

import pytest

from sqft_plugins.cli import main
from sqft_plugins.compress.quantize import quantize_folder
from sqft_plugins.errors import CheckpointError, SQFTError
from sqft_plugins.plan import PlanSettings, plan_folder

pytestmark = pytest.mark.usefixtures("quick_machine")


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
