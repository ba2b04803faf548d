"""What the report says is what the files say, and no damaged file stops it."""

from __future__ import annotations

import json
import shutil
import time

from helpers_report import Page, adapter_folder, evaluation, search_folder

from sqft_plugins.inspect import inspect_path
from sqft_plugins.report import collect, page


def test_a_model_is_told_as_inspect_measures_it(models) -> None:
    report = collect(models / "int4")
    inspected = inspect_path(models / "int4")
    (row,), (layers,) = report.artefacts, report.layers
    assert (row.zeros, row.bits_per_weight) == (inspected["total"]["zeros"], inspected["total"]["bits_per_weight"])
    assert (row.bytes, row.zeros_kept) == (inspected["bytes"], 1.0)
    assert [cell[2] for cell in layers.cells] == [one["zeros"] for one in inspected["layers"]]
    assert sum(layers.codes) == inspected["total"]["weights"]
    assert layers.zero_code == 8
    said = Page(page(report)).said
    assert "codes" in said
    assert "magnitude → round-to-nearest" in said


def test_a_lost_zero_is_never_a_round_hundred(models, tmp_path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(models / "pruned", tmp_path / "broken")
    file = tmp_path / "broken" / "model.safetensors"
    tensors = load_file(file)
    weight = tensors["model.layers.0.mlp.up_proj.weight"]
    weight.view(-1)[int((weight.view(-1) == 0).nonzero()[0])] = 1.0
    save_file(tensors, file, metadata={"format": "pt"})
    report = collect(tmp_path / "broken")
    assert 0.9999 < report.artefacts[0].zeros_kept < 1
    said = Page(page(report)).said
    assert "<100 %" in said
    assert "1 pruned weights are not zero" in said


def test_a_folder_of_several_is_joined(models, tmp_path) -> None:
    for name in ("pruned", "int4"):
        (tmp_path / name).symlink_to(models / name)
    adapter_folder(tmp_path / "deeper" / "adapter", [2.0, 1.0, 0.5], draws=[[8, 4], [8, 8], [4, 4]])
    search_folder(tmp_path / "search")
    (tmp_path / "arc.json").write_text(json.dumps(evaluation(tmp_path / "int4", perplexity=1.0)))
    (tmp_path / "elsewhere.json").write_text(json.dumps(evaluation("gpt2", 0.25)))
    report = collect(tmp_path)
    rows = {row.name: row for row in report.artefacts}
    assert set(rows) == {"pruned", "int4", "deeper/adapter", "elsewhere"}
    assert [(s.metric, s.value, s.stderr, s.questions) for s in rows["int4"].scores] == [
        ("acc", 0.5, 0.03, 300),
        ("acc_norm", 0.6, None, 300),
    ]
    assert rows["elsewhere"].scores[0].value == 0.25
    (training,) = report.trainings
    assert (training.rank_choices, training.draws) == ([8, 4], [[1, 1], [2, 0], [0, 2]])
    (search,) = report.searches
    assert [(t.number, t.score, t.cost) for t in search.trials] == [(0, 0.3, 120), (1, 0.1, 90), (2, 0.2, 60)]
    assert report.left_out == {}
    said = Page(page(report)).said
    assert "50.0 ± 3.0 %" in said
    assert "noise: not to be told from the heuristic" in said
    assert "0.000 ± 0.013" in said  # not -0.00002


def test_a_file_of_lm_evaluation_harness_is_joined_to_the_model_that_it_names(models, tmp_path) -> None:
    (tmp_path / "int4").symlink_to(models / "int4")
    theirs = {**evaluation("x"), "model_source": "hf", "model_name": str(tmp_path / "int4")}
    del theirs["model"]
    (tmp_path / "results_2026.json").write_text(json.dumps(theirs))
    (row,) = collect(tmp_path, quick=True).artefacts
    assert (row.name, row.scores[0].value) == ("int4", 0.5)


def test_a_run_of_a_recipe_is_told_in_its_order(models, tmp_path) -> None:
    run = tmp_path / "run"
    (run / "stages").mkdir(parents=True)
    (run / "recipe.yaml").write_text("model: gpt2\nprune:\n  sparsity: 0.5\n")
    shutil.copytree(models / "pruned", run / "z-first")
    shutil.copytree(models / "int4", run / "a-second")
    scores = {"a-second": evaluation("/old/place/run/a-second"), "base": evaluation("/old/base", 0.75)}
    (run / "score").mkdir()
    for name, one in scores.items():
        (run / "score" / f"{name}.json").write_text(json.dumps(one))
    first = {"key": "1" * 64, "inputs": {"after": [], "options": {"sparsity": 0.5}}, "result": {"seconds": 7.0}}
    second = {"key": "2" * 64, "inputs": {"after": ["1" * 64]}, "result": {"seconds": 5.0}}
    third = {"key": "3" * 64, "inputs": {"after": ["2" * 64]}, "result": {"scores": scores, "seconds": 1.0}}
    for name, record in (("score", third), ("a-second", second), ("z-first", first)):  # copied: times say nothing
        (run / "stages" / f"{name}.json").write_text(json.dumps(record))
        time.sleep(0.01)
    report = collect(run)
    assert [step.name for step in report.steps] == ["z-first", "a-second", "score"]
    assert [(row.name, row.seconds) for row in report.artefacts] == [
        ("base", None),
        ("z-first", 7.0),
        ("a-second", 5.0),
    ]
    assert report.artefacts[2].scores[0].value == 0.5
    assert len(report.artefacts[2].scores) == 2  # once, though stage and file both have it
    said = Page(page(report)).said
    assert "model: gpt2\nprune:" in said
    assert report.summary.startswith("Arc-easy: base 75.0 ± 3.0 %, a-second 50.0 ± 3.0 % at ")


def test_a_demo_is_told_with_its_command(models, tmp_path) -> None:
    run = tmp_path / "demo"
    (run / "stages").mkdir(parents=True)
    shutil.copytree(models / "pruned", run / "base")
    shutil.copytree(models / "int4", run / "int4")
    row = {"accuracy_stderr": 0.03, "zeros_kept": 1.0, "bits_per_weight": 4.5, "bytes": 5, "seconds": 2.0}
    stages = [
        {"name": "dense", "accuracy": 0.35, "perplexity": 18.5, **row},
        {"name": "int4", "accuracy": 0.8, "perplexity": 52.0, **row},
    ]
    (run / "report.json").write_text(
        json.dumps({"task": "sums", "stages": stages, "settings": {"steps": 7, "seed": 0}})
    )
    report = collect(run)
    assert [row.name for row in report.artefacts] == ["dense", "int4"]
    assert [layers.name for layers in report.layers] == ["dense", "int4"]
    assert report.command == f"sqft demo --out {run} --steps 7"
    assert report.summary == "Sums: dense 35.0 ± 3.0 %, int4 80.0 ± 3.0 % at 4.50 bits a weight and every pruned " \
        "weight still zero."  # fmt: skip


def test_what_is_damaged_is_named_and_left_out(models, tmp_path) -> None:
    (tmp_path / "int4").symlink_to(models / "int4")
    damaged = adapter_folder(tmp_path / "adapter", [2.0, 1.0])
    (damaged / "training.json").write_text('{"tuner": "sqft", "losses": [1.0, "no')
    typed = adapter_folder(tmp_path / "typed", [2.0])
    (typed / "training.json").write_text('{"tuner": "sqft", "losses": [1.0, "no"]}')
    search = search_folder(tmp_path / "search")
    (search / "trials.csv").write_text("number,state,origin,score,stderr,parameters\n0,complete,,x,0,1\n")
    (tmp_path / "cut.json").write_text('{"results": ')
    (tmp_path / "other.json").write_text("[]")
    (tmp_path / "notes").mkdir()
    report = collect(tmp_path)
    assert set(report.left_out) == {"adapter", "typed", "search", "cut.json", "other.json", "notes"}
    assert "training.json" in report.left_out["adapter"]
    assert "losses.1" in report.left_out["typed"]
    assert "trials.csv" in report.left_out["search"]
    assert report.left_out["notes"] == "not recognised"
    said = Page(page(report)).said
    assert "Left out" in said
    assert "losses.1" in said
