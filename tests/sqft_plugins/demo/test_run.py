"""The demo on a tiny model: its report, resuming, its own data. The real model's run is in tests/real."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from sqft_plugins.demo import run as demo
from sqft_plugins.demo.report import write_report
from sqft_plugins.demo.run import DemoSettings, run_demo
from sqft_plugins.demo.task import TEST, TRAIN, WordProblems, is_held_out
from sqft_plugins.errors import SQFTError
from sqft_plugins.stages import Stages

NAMES = ["dense", "pruned", "tuned", "merged", "int4", "gguf"]
KEYS = {"accuracy", "perplexity", "zeros_kept", "bits_per_weight", "bytes", "seconds"}


def settings(model, **changes) -> DemoSettings:
    values = {
        "model": model and str(model),
        "steps": 3,
        "batch_size": 4,
        "questions": 4,
        "rank_choices": [8, 6, 4],
        **changes,
    }
    return DemoSettings.make(values)


@pytest.fixture(scope="module")
def finished(tiny_llama, tmp_path_factory):
    """(folder, report, the names of the stages in each table that was shown)."""
    out, shown = tmp_path_factory.mktemp("demo") / "out", []

    def show(report) -> None:
        shown.append([stage["name"] for stage in report["stages"]])
        assert [line.split(" ")[1] for line in table_of(out)] == shown[-1]
        assert json.loads((out / "report.json").read_text()) == report

    return out, run_demo(out, settings(tiny_llama), show=show), shown


def table_of(out) -> list[str]:
    """The rows of the table in report.md."""
    lines = [line for line in (out / "report.md").read_text().splitlines() if line.startswith("| ")]
    return [line for line in lines if not line.startswith(("| stage", "| ---"))]


def test_the_table_grows_by_a_row_with_each_stage_that_is_scored(finished) -> None:
    assert finished[2] == [NAMES[: count + 1] for count in range(len(NAMES))]


def test_the_report_has_every_stage(finished) -> None:
    out, report, _ = finished
    assert json.loads((out / "report.json").read_text())["stages"] == report["stages"]
    stages = {stage["name"]: stage for stage in report["stages"]}
    assert list(stages) == NAMES
    assert all(set(stage) >= KEYS for stage in report["stages"])
    assert [stages[name]["zeros_kept"] for name in ("pruned", "tuned", "merged", "int4", "gguf")] == [1.0] * 5
    assert stages["dense"]["zeros_kept"] < 0.1
    assert report["merge"]["max_logit_difference"] < 1e-3
    assert report["merge"]["zeros_lost"] == 0
    assert report["gguf"]["equal"]
    assert stages["gguf"]["bits_per_weight"] == 4.5  # Q4_0: 18 bytes for 32 weights
    assert stages["gguf"]["perplexity"] == pytest.approx(stages["int4"]["perplexity"], rel=0.05)
    assert (out / "report.png").stat().st_size > 5000
    page = (out / "report.md").read_text()
    assert "a plain LoRA merge keeps none (`sqft demo --compare-lora` shows it" in page
    assert "- **lora_merged**" not in page


@pytest.mark.once
def test_the_comparison_with_plain_lora_is_added_to_a_finished_demo(finished, tiny_llama, tmp_path) -> None:
    out = shutil.copytree(finished[0], tmp_path / "out")
    report = run_demo(out, settings(tiny_llama, compare_lora=True))
    assert [stage["name"] for stage in report["stages"]] == [*NAMES[:4], "lora_merged", *NAMES[4:]]
    assert set(report["reused"]) >= {*NAMES, "prune", "train", "merge", "quantize", "export"}
    assert report["stages"][4]["zeros_kept"] < 0.01
    assert f"the plain LoRA merge lost {report['lora_merge']['zeros_lost']:,}." in (out / "report.md").read_text()

    without = run_demo(out, settings(tiny_llama))
    assert [stage["name"] for stage in without["stages"]] == NAMES
    assert "lora_merge" not in without


def test_the_models_own_file_is_tuned_as_it_comes(tiny_llama, tmp_path, monkeypatch) -> None:
    """The tiny model and its file in the place of Gemma's, which come from a package."""
    from gguf_ext import quantize_gguf

    def file(target) -> None:
        quantize_gguf(tiny_llama, target, type="Q4_0", importance=False)

    monkeypatch.setattr(demo, "prepare_base", lambda target, overwrite: shutil.copytree(tiny_llama, target))
    monkeypatch.setattr(demo, "prepare_file", file)
    out = tmp_path / "out"
    report = run_demo(out, settings(None, batch_size=2))
    rows = {stage["name"]: stage for stage in report["stages"]}
    assert list(rows) == [*NAMES, "file", "file_tuned"]
    assert abs(rows["file"]["bytes"] - rows["file_tuned"]["bytes"]) < 2000  # the note of the merge
    assert rows["file"]["bits_per_weight"] == rows["file_tuned"]["bits_per_weight"] == 4.5
    assert "other codes, all else as it was" in (out / "report.md").read_text()
    assert "file" not in [row["name"] for row in run_demo(out, settings(None, batch_size=2, skip_file=True))["stages"]]


def test_a_second_run_reuses_everything(finished, tiny_llama) -> None:
    out, report, _ = finished
    files = {path: path.stat().st_mtime_ns for path in out.glob("*/*") if path.suffix == ".safetensors"}
    shown = []
    again = run_demo(out, settings(tiny_llama), show=shown.append)
    assert again["stages"] == report["stages"]
    assert shown == [again]
    assert set(again["reused"]) >= {*NAMES, "prune", "train", "quantize", "export"}
    assert files == {path: path.stat().st_mtime_ns for path in files}


@pytest.mark.once
def test_other_questions_score_again_but_train_nothing_anew(finished, tiny_llama) -> None:
    out, *_ = finished
    again = run_demo(out, settings(tiny_llama, questions=5))
    assert not set(again["reused"]) & set(NAMES)
    assert {"prune", "train", "merge", "quantize", "export"} <= set(again["reused"])


@pytest.mark.once
def test_another_model_under_the_same_name_is_not_reused(tiny_llama, tmp_path) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_llama, model)
    run_demo(tmp_path / "out", settings(model))
    os.utime(model / "model.safetensors", ns=(1, 1))  # the same model
    assert "pruned" in run_demo(tmp_path / "out", settings(model))["reused"]
    weights = load_file(model / "model.safetensors")
    save_file({name: tensor.flip(0) for name, tensor in weights.items()}, model / "model.safetensors", {"format": "pt"})
    os.utime(model / "model.safetensors", ns=(1, 1))
    assert run_demo(tmp_path / "out", settings(model))["reused"] == ["size"]


def test_a_folder_that_cannot_be_made_is_refused_before_the_first_stage() -> None:
    with pytest.raises(SQFTError, match="cannot be written: /proc is not a writable folder"):
        Stages(Path("/proc/demo"))


def test_a_stage_that_failed_is_made_again(tmp_path) -> None:
    stages = Stages(tmp_path / "out")
    with pytest.raises(KeyError):
        stages.run("one", lambda: {}["nothing"])
    assert stages.run("one", lambda: {"value": 1})["value"] == 1
    again = Stages(tmp_path / "out")
    assert again.run("one", lambda: pytest.fail("made twice"))["value"] == 1
    assert again.run("one", lambda: {"value": 2}, settings={"changed": True})["value"] == 2
    after = Stages(tmp_path / "out")
    after.run("one", lambda: {"value": 3})
    assert after.run("two", lambda: {"value": 4}, after=["one"], output="missing")["value"] == 4
    assert after.run("two", lambda: {"value": 5}, after=["one"], output="missing")["value"] == 5  # its output is gone


@pytest.mark.once
def test_own_data_are_split_by_prompt(tiny_llama, tmp_path) -> None:
    data = tmp_path / "d.jsonl"
    data.write_text("\n".join(json.dumps({"prompt": f"Say {n}:", "completion": f" {n}"}) for n in range(60)))
    report = run_demo(tmp_path / "out", settings(tiny_llama, data=str(data)))
    assert report["task"] == "d"
    assert [stage["name"] for stage in report["stages"]] == NAMES
    data.write_text('{"prompt": "a", "completion": "b"}\n')
    with pytest.raises(SQFTError, match="has 1 examples: give more, one in five is held out"):
        run_demo(tmp_path / "other", settings(tiny_llama, data=str(data)))
    assert not (tmp_path / "other").exists()


def test_word_problems_share_neither_templates_nor_numbers_between_train_and_test() -> None:
    task = WordProblems(300)
    train, test = task.training(600), task.items()
    assert not set(TRAIN) & set(TEST)

    def numbers(texts):
        return {int(number) for text in texts for number in re.findall(r"\d+", text)}

    seen, held_out = numbers(e.prompt for e in train), numbers(i.prompt for i in test)
    assert seen
    assert held_out
    assert not seen & held_out
    assert all(is_held_out(number) for number in held_out)
    assert [item.prompt for item in test] == [item.prompt for item in WordProblems(300).items()]
    asked = [re.search(r"(?:How many|number of) (\w+)", item.prompt)[1] for item in test]
    assert all(f"{item.answer.strip()} {thing}" in item.prompt for item, thing in zip(test, asked, strict=True))


@pytest.mark.parametrize(
    ("completion", "right"),
    [
        (" 7", True),
        ("7 coins\nQuestion: 8", True),
        (" 3 + 4 = 7", True),
        (" 17", False),
        ("", False),
        (" seven", False),
    ],
)
def test_the_answer_is_the_last_number_of_the_first_line(completion, right) -> None:
    item = WordProblems(1).items()[0].__class__("", " 7")
    assert WordProblems().is_correct(item, completion) is right


def test_report_of_one_stage(tmp_path) -> None:
    stage = dict.fromkeys(KEYS, 1.0) | {"name": "dense", "accuracy_stderr": 0.1}
    report = {"stages": [stage], "task": "t", "settings": {"steps": 1, "data": None}}
    report |= {key: {"max_logit_difference": 0.0, "zeros_lost": 0} for key in ("merge", "lora_merge")}
    write_report(tmp_path, report)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.json", "report.md", "report.png"]
