"""Recipes that run: killed and gone on with, reused where nothing changed, refused before the first step."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from helpers_train import killing

from sqft_plugins.checkpoint import ModelFolder
from sqft_plugins.cli import main
from sqft_plugins.errors import SQFTError
from sqft_plugins.measure import zeros_kept
from sqft_plugins.plan import PlanSettings, plan_folder
from sqft_plugins.recipe.dry import plan_recipe
from sqft_plugins.recipe.read import read_recipe
from sqft_plugins.recipe.run import run_recipe
from sqft_plugins.stages import Stages

pytestmark = pytest.mark.usefixtures("quick_machine")

RECIPE = """
model: {model}
prune: {{sparsity: 0.5, method: magnitude}}
train: {{data: d.jsonl, rank: 8, rank_choices: [8, 6, 4], steps: {steps}, batch_size: 4, checkpoint_every: 2}}
merge:
quantize:
export:
eval: {{model: [base, train, merge, export], data: d.jsonl, limit: 3, perplexity: false}}
"""


@pytest.fixture(autouse=True, scope="module")
def own_answers(tmp_path_factory):
    old = os.environ.get("SQFT_EVAL_CACHE")
    os.environ["SQFT_EVAL_CACHE"] = str(tmp_path_factory.mktemp("answers"))
    yield
    os.environ.pop("SQFT_EVAL_CACHE") if old is None else os.environ.update(SQFT_EVAL_CACHE=old)


def write(folder, model, steps=4):
    lines = [json.dumps({"prompt": f"Say {n}:", "completion": f" {n}"}) for n in range(40)]
    (folder / "d.jsonl").write_text("\n".join(lines))
    (folder / "r.yaml").write_text(RECIPE.format(model=model, steps=steps))
    return folder / "r.yaml"


@pytest.fixture(scope="module")
def finished(tiny_llama, tmp_path_factory):
    """(recipe file, run folder, report) of an undisturbed run."""
    folder = tmp_path_factory.mktemp("recipe")
    file = write(folder, tiny_llama)
    return file, folder / "out", run_recipe(read_recipe([file]), folder / "out")


def reused(report) -> list[str]:
    return [step["name"] for step in report["steps"] if step["reused"]]


def test_a_recipe_makes_every_step_and_one_table(finished):
    _, out, report = finished
    rows = {row["name"]: row for row in report["artefacts"]}
    assert list(rows) == ["base", "prune", "train", "merge", "quantize", "export"]
    masks = ModelFolder(out / "prune").masks
    for name in ("merge", "quantize"):
        assert rows[name]["sparsity"] == pytest.approx(0.5, abs=1e-3)
        assert rows[name]["zeros_kept"] == zeros_kept(ModelFolder(out / name), masks) == 1
        assert rows[name]["bytes"] == ModelFolder(out / name).weight_bytes
    assert rows["export"]["bytes"] == (out / "export/model.gguf").stat().st_size
    assert {name for name, row in rows.items() if row["scores"]} == {"base", "train", "merge", "export"}
    assert json.loads((out / "eval/merge.json").read_text())["results"] == rows["merge"]["scores"]
    again = run_recipe(read_recipe([out / "recipe.yaml"]))  # as it was run: it knows its paths and its folder
    assert reused(again) == [step["name"] for step in report["steps"]]
    assert again["artefacts"] == report["artefacts"]


@pytest.mark.once
def test_a_file_in_parts_is_measured_and_scored_as_the_whole_one(finished, tmp_path):
    file, out, report = finished
    first = shutil.copytree(out, tmp_path / "first")
    settings = ["export.split_max_size=100000", "eval.model=[export]"]
    cut = run_recipe(read_recipe([file], settings), first)
    parts = sorted((first / "export").iterdir())
    assert len(parts) > 1

    whole, row = ({row["name"]: row for row in made["artefacts"]}["export"] for made in (report, cut))
    assert row["bytes"] == sum(part.stat().st_size for part in parts) > whole["bytes"]
    assert {**row, "bytes": whole["bytes"]} == whole
    assert whole["scores"]

    moved = first.rename(tmp_path / "second")
    again = run_recipe(read_recipe([file], [*settings, "eval.limit=2"]), moved)
    assert set(reused(again)) == {step["name"] for step in again["steps"]} - {"eval"}


@pytest.mark.once
def test_a_killed_run_goes_on_and_ends_as_an_undisturbed_one(finished, tiny_llama, tmp_path):
    file = write(tmp_path, tiny_llama)
    command = [sys.executable, "-c", "from sqft_plugins.cli import main; main()", "run", str(file)]
    run = subprocess.Popen([*command, "--out", str(tmp_path / "out")], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (tmp_path / "out/stages/prune.json").is_file() and time.monotonic() < deadline and run.poll() is None:
        time.sleep(0.01)
    time.sleep(0.3)  # into the training, or whatever comes by then
    run.send_signal(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL
    before = {file.stem for file in (tmp_path / "out/stages").glob("*.json")}
    assert {"base", "prune"} <= before
    report = run_recipe(read_recipe([file]), tmp_path / "out")
    assert set(reused(report)) | {"base"} == before
    for name in ("train/adapter_model.safetensors", "merge/model.safetensors", "quantize/model.safetensors"):
        assert (tmp_path / "out" / name).read_bytes() == (finished[1] / name).read_bytes(), name


@pytest.mark.once
def test_a_recipe_changed_after_a_kill_starts_its_training_anew(finished, tiny_llama, tmp_path, monkeypatch, capsys):
    file = write(tmp_path, tiny_llama)
    with killing(monkeypatch, 4):
        run_recipe(read_recipe([file], ["train.learning_rate=1e-3"]), tmp_path / "out")
    run_recipe(read_recipe([file]), tmp_path / "out", until="train")
    assert "(learning_rate=0.001, here 0.0003): starting anew" in capsys.readouterr().err.replace("\n", " ")
    weights = "train/adapter_model.safetensors"
    assert (tmp_path / "out" / weights).read_bytes() == (finished[1] / weights).read_bytes()


@pytest.mark.once
def test_only_what_changed_and_what_follows_is_made_again(finished, tmp_path):
    file, out, _ = finished

    def todo(*settings: str, files=(file,)) -> list[str]:
        plan = plan_recipe(read_recipe(files, settings), out)
        return [step["name"] for step in plan["steps"] if not step["done"]]

    assert todo() == []
    assert todo("eval.limit=2") == ["eval"]
    assert todo("quantize.group_size=64") == ["quantize", "export", "eval"]
    assert todo("train.steps=5") == ["train", "merge", "quantize", "export", "eval"]
    assert todo("prune.sparsity=0.4") == ["prune", "train", "merge", "quantize", "export", "eval"]
    moved = tmp_path / "moved"  # where the files lie does not matter, what is in them does
    moved.mkdir()
    for name in ("d.jsonl", "r.yaml"):
        (moved / name).write_bytes((file.parent / name).read_bytes())
    assert todo(files=[moved / "r.yaml"]) == []
    with (moved / "d.jsonl").open("a") as data:
        data.write('\n{"prompt": "Say 41:", "completion": " 41"}\n')
    assert todo(files=[moved / "r.yaml"]) == ["train", "merge", "quantize", "export", "eval"]


def test_a_run_folder_is_one_process_and_until_names_a_step(finished):
    file, out, _ = finished
    report = run_recipe(read_recipe([file]), out, until="train")
    assert [step["name"] for step in report["steps"]] == ["prune", "train"]
    with pytest.raises(SQFTError, match="--until 'trian' is no step: did you mean 'train'"):
        run_recipe(read_recipe([file]), out, until="trian")
    with Stages(out).alone(), pytest.raises(SQFTError, match="is being worked on by another process"):
        run_recipe(read_recipe([file]), out)


def test_what_a_later_step_reads_may_be_there_later(finished):
    file, out, _ = finished
    more = file.with_name("more.yaml")
    more.write_text("search: {data: d.jsonl, starts: [later.json]}\n")
    recipe = read_recipe([file, more])
    plan = plan_recipe(recipe, out, until="merge")
    assert all(step["done"] for step in plan["steps"])
    with pytest.raises(SQFTError, match=r"search: starts .*/later.json: .* cannot be read"):
        plan_recipe(recipe, out)


def test_a_dry_run_tells_sizes_to_the_byte_and_writes_nothing(finished, tiny_llama, tmp_path, capsys):
    file, out, report = finished
    with pytest.raises(SystemExit) as end:
        main(["run", str(file), "--out", str(tmp_path / "new"), "--dry-run", "--json"])
    assert end.value.code == 0
    plan = json.loads(capsys.readouterr().out)
    assert not (tmp_path / "new").exists()
    assert [step["done"] for step in plan["steps"]] == [False] * 6
    made = {row["name"]: row["bytes"] for row in report["artefacts"]}
    planned = {step["name"]: step["bytes"] for step in plan["steps"]}
    for name in ("prune", "merge", "quantize"):
        assert abs(planned[name] - sum(f.stat().st_size for f in (out / name).rglob("*") if f.is_file())) < 8192
    assert abs(planned["export"] - made["export"]) < 1024  # what tells of the pruning is not known before
    assert plan["fits"]
    assert all(step["peak_memory"] > 0 for step in plan["steps"])


def test_a_config_alone_is_planned_as_the_whole_folder(family, tiny_model, tmp_path):
    model = tiny_model(family)
    model.save_pretrained(tmp_path / "whole")
    (tmp_path / "config").mkdir()
    (tmp_path / "config/config.json").write_bytes((tmp_path / "whole/config.json").read_bytes())
    whole, config = (plan_folder(tmp_path / name, PlanSettings(method="magnitude")) for name in ("whole", "config"))
    assert (config["weights"], config["modules"], config["targets"]) == (
        whole["weights"], whole["modules"], whole["targets"]
    )  # fmt: skip
    for one, other in zip(whole["stages"], config["stages"], strict=True):
        assert one["bits_per_weight"] == other["bits_per_weight"]
        assert abs(one["bytes"] - other["bytes"]) < 200, one["stage"]  # the header's own metadata
    assert [step["peak_memory"] for step in whole["steps"]] == [step["peak_memory"] for step in config["steps"]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["train.data=broken.jsonl"], "train: data {folder}/broken.jsonl line 2 is not JSON"),
        (["train.data=missing.jsonl"], "train: data {folder}/missing.jsonl is not a file"),
        (["train.target_modules=[qkv]"], "train: target_modules ['qkv'] are none of this model's layers: choose among"),
        (["train.keep=best"], "train: keep=best needs held-out examples"),
        (["train.max_length=8"], "train: data {folder}/d.jsonl line 1 has 9 tokens, max_length=8"),
        (["train.tensorboard=d.jsonl"], "train: --tensorboard {folder}/d.jsonl: {folder}/d.jsonl is a file"),
        (["train.tuner=lara"], "train: tuner 'lara' is unknown"),
        (["prune.method=wand"], "prune: method 'wand' is unknown: did you mean 'wanda'?"),
        (["prune.sparsity=3:7"], "prune: "),
        (["prune.exclude=[nothing]"], "prune: --exclude 'nothing' matches no layer"),
        (["quantize.group_size=48"], "quantize: "),
        (["quantize.calibration=missing.txt"], "quantize: calibration {folder}/missing.txt is not a file"),
        (["eval.task=arc-esy"], "eval: --task 'arc-esy' is unknown: did you mean 'arc-easy'?"),
        (["eval.dtype=float99"], "eval: --dtype 'float99' is no float type"),
        (["export.float_type=8"], "export: float_type='8' is unknown"),
        (["export.split_max_size=2X"], "export: --split-max-size 2X is no size"),
        (["export.template_gguf=x.gguf"], "export: template_gguf {folder}/x.gguf is not there"),
    ],
)
def test_what_can_be_known_is_refused_before_the_first_step(tiny_llama, tmp_path, monkeypatch, settings, message):
    file = write(tmp_path, tiny_llama)
    (tmp_path / "broken.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{\n')
    monkeypatch.chdir(tmp_path)
    if settings[0].startswith("quantize.calibration"):
        settings = [f"quantize.calibration={tmp_path}/missing.txt"]
    with pytest.raises(SQFTError) as error:
        run_recipe(read_recipe([file], settings), tmp_path / "out")
    assert message.format(folder=tmp_path) in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_left_alone(tiny_llama, tmp_path):
    file = write(tmp_path, tiny_llama)
    with pytest.raises(SQFTError, match="exists and is no run folder"):
        run_recipe(read_recipe([file]), tmp_path)
