"""Files that earlier versions wrote are opened by this one, with the content they had, and gone on with.

    python -m pytest tests/sqft_plugins/test_samples.py

tests/samples/README.md lists the samples. Those of PEFT, GGUF and value planes are opened in the test folders of these.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from sample_content import digest, model_content

from sqft_plugins._version import VERSION
from sqft_plugins.checkpoint import ModelFolder, load_model
from sqft_plugins.checkpoint.compact_convert import expand_folder
from sqft_plugins.cli import main
from sqft_plugins.configurations import read_configuration, saved_configurations
from sqft_plugins.errors import CheckpointError
from sqft_plugins.evaluate.answers import Answers

MODELS = (
    "base", "run/prune", "run/merge", "run/quantize", "int4", "int4-asymmetric", "compact", "compact-asymmetric",
    "merged-qa", "merged-qa-int4",
)  # fmt: skip
CALIBRATION = ("--calibration", "text.txt", "--sequences", "2", "--length", "16")


def sqft(capsys: pytest.CaptureFixture, *words: str) -> tuple[dict, str]:
    """(what the verb prints with --json, what it says beside)."""
    with pytest.raises(SystemExit) as end:
        main([*words, "--json"])
    printed = capsys.readouterr()
    assert end.value.code == 0, printed.err
    return json.loads(printed.out), printed.err


@pytest.mark.parametrize("model", MODELS)
def test_a_model_folder_holds_what_it_held(samples: Path, model: str) -> None:
    assert model_content(model) == json.loads((samples / "expected.json").read_text())["models"][model]


@pytest.mark.parametrize("model", ["run/prune", "int4", "int4-asymmetric", "compact", "compact-asymmetric"])
def test_a_model_loads_with_the_numbers_of_its_folder(samples: Path, model: str) -> None:
    folder, loaded = ModelFolder(model), load_model(model, dtype=torch.float32)
    modules = [name for name in folder.masks if name.endswith("_proj")]
    assert len(modules) == 14
    for name in modules:
        assert torch.equal(loaded.get_submodule(name).weight, folder.weight(name).float()), name


@pytest.mark.parametrize("name", ["int4", "int4-asymmetric"])
def test_the_compact_form_expands_to_the_int4_folder_byte_for_byte(samples: Path, name: str) -> None:
    compact = samples / name.replace("int4", "compact")
    expand_folder(compact, samples / "expanded")
    files = sorted(file.relative_to(samples / name) for file in (samples / name).rglob("*") if file.is_file())
    for file in files:
        assert (samples / "expanded" / file).read_bytes() == (samples / name / file).read_bytes(), file


@pytest.mark.parametrize("model", MODELS)
def test_inspect_measures_a_model(samples: Path, capsys, model: str) -> None:
    found, _ = sqft(capsys, "inspect", model)
    total = found["total"]
    assert (total["layers"], total["weights"]) == (14, 18432)
    if model != "base":
        assert found["mask_is_the_stamps"]
        assert (total["pruned"], total["violations"]) == (pytest.approx(0.5, abs=1e-3), 0)


@pytest.mark.parametrize("adapter", ["run/train", "adapter-searched", "adapter-qa", "adapter-dense", "extracted-dense"])
def test_inspect_describes_an_adapter(samples: Path, capsys, adapter: str) -> None:
    found, _ = sqft(capsys, "inspect", adapter)
    elastic = not adapter.startswith("extracted")
    assert found["total"]["ranks"] == {"4" if elastic else "3": 6}
    assert found["rank_choices"] == ([4, 3, 2] if elastic else None)


def test_a_prune_that_other_code_left_half_done_begins_anew(samples: Path, capsys) -> None:
    job = samples / "killed/.prune.sqft-job"
    done = json.loads((job / "progress.json").read_text())["rows"]
    report, _ = sqft(capsys, "prune", "base", "--sparsity", "0.5", *CALIBRATION, "--out", "killed/prune")
    assert report["layers"][:7] != done  # the seconds differ: nothing was taken over
    assert not job.exists()
    whole, undisturbed = ModelFolder("killed/prune"), ModelFolder("run/prune")
    for name in undisturbed.tensor_names:
        assert torch.equal(whole.tensor(name), undisturbed.tensor(name)), name
    assert whole.stamp is not None
    assert undisturbed.stamp is not None
    assert whole.stamp.mask_hash == undisturbed.stamp.mask_hash


def test_a_quantize_that_other_code_left_half_done_begins_anew(samples: Path, capsys) -> None:
    """GPTQ damps otherwise than then: a model half of each would be neither."""
    job = samples / "killed/.quantize.sqft-job"
    assert job.exists()
    for out in ("killed/quantize", "undisturbed"):
        sqft(capsys, "quantize", "run/prune", "--method", "gptq", *CALIBRATION, "--out", out)
    assert not job.exists()
    whole, undisturbed = ModelFolder("killed/quantize"), ModelFolder("undisturbed")
    for name in undisturbed.int4.modules:
        assert torch.equal(whole.quantized(name).codes, undisturbed.quantized(name).codes), name
    assert dict(whole.masks).keys() == dict(undisturbed.masks).keys()


def test_a_run_is_finished_and_goes_on_after_a_step_that_is_gone(samples: Path, capsys) -> None:
    if VERSION != "0.1.0":
        pytest.skip("another version makes the steps of a run again")
    steps = ["prune", "train", "merge", "quantize", "export", "eval"]
    plan, _ = sqft(capsys, "run", "recipe.yaml", "--out", "run", "--dry-run")
    assert [step["name"] for step in plan["steps"] if step["done"]] == steps
    merged = load_file("run/merge/model.safetensors")
    shutil.rmtree("run/merge")
    report, _ = sqft(capsys, "run", "recipe.yaml", "--out", "run", "--until", "merge")
    assert [step["name"] for step in report["steps"] if step["reused"]] == ["prune", "train"]
    again = load_file("run/merge/model.safetensors")
    for name, weight in merged.items():
        assert torch.equal(again[name] == 0, weight == 0), name
        torch.testing.assert_close(again[name], weight, rtol=2**-7, atol=0)


def test_a_report_reads_runs_models_adapters_scores_and_searches(samples: Path, capsys) -> None:
    report, _ = sqft(capsys, "report", ".", "--quick")
    steps = ["base", "prune", "train", "merge", "quantize", "export", "eval"]
    assert [step["name"] for step in report["steps"]] == [f"run/{step}" for step in steps]
    kinds = {part["name"]: part["kind"] for part in report["artefacts"]}
    assert kinds.keys() >= {*MODELS, "run/train", "adapter-qa", "extracted", "lora.gguf"}
    assert {part["name"] for part in report["artefacts"] if part["scores"]} >= {"run/prune", "run/train", "run/merge"}
    assert {training["name"] for training in report["trainings"]} >= {"run/train", "adapter-dense", "adapter-qa"}
    for training in report["trainings"]:
        assert len(training["losses"]) == 4
        assert [sum(draw) for draw in training["draws"]] == [6] * 4
    assert [len(search["trials"]) for search in report["searches"]] == [2]


def test_a_search_goes_on_with_its_study(samples: Path, capsys) -> None:
    before = json.loads(Path("search/search.json").read_text())
    how = ("--method", "nsga2", "--against", "parameters", "--subset", "8", "--fresh", "12", "--dtype", "float32")
    asked = ("--data", "test.jsonl", "--evaluations", "3", "--save", "searched", "--overwrite", "--out", "search")
    report, _ = sqft(capsys, "search", "run/prune", "adapter-searched", *how, *asked)
    assert (before["evaluations"], report["evaluations"], report["evaluations_of_this_call"]) == (2, 3, 1)


def test_saved_ranks_and_the_record_of_drawn_ranks_are_read(samples: Path) -> None:
    from sqft_plugins.search.recorded import read_history
    from sqft_plugins.search.run import adapter_space

    saved = saved_configurations("adapter-searched")
    assert list(saved) == ["searched"]
    assert read_configuration(saved["searched"]) == read_configuration("search/configuration.json")
    history = read_history(samples / "adapter-searched", adapter_space(samples / "adapter-searched"))
    assert history is not None
    assert len(history.steps) == 4


def test_remembered_answers_are_found(samples: Path) -> None:
    (file,) = (samples / "eval-cache").glob("*.sqlite")
    with sqlite3.connect(file) as database:
        about = json.loads(database.execute("SELECT value FROM answers WHERE key = 'about'").fetchone()[0])
    answers = Answers(samples / "eval-cache", about)
    assert answers.file == file
    for line in Path("eval-samples.jsonl").read_text().splitlines():
        row = json.loads(line)
        assert answers.get("completion", row["doc"]["prompt"], 12, []) == row["filtered_resps"][0]
    answers.close()


def test_a_newer_stamp_is_refused_with_the_remedy(samples: Path) -> None:
    file = samples / "int4/sqft/stamp.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "version": 2}))
    with pytest.raises(CheckpointError, match=r"stamp.json has stamp version 2, .* up to 1: upgrade sqft-plugins"):
        _ = ModelFolder(samples / "int4").stamp


def test_a_newer_compact_form_is_refused_with_the_remedy(samples: Path) -> None:
    file = samples / "compact/config.json"
    config = json.loads(file.read_text())
    config["quantization_config"]["version"] = 2
    file.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"compact has compact version 2, this release reads up to 1: upgrade"):
        ModelFolder(samples / "compact").quantized("model.layers.0.self_attn.q_proj")


def test_a_newer_record_of_drawn_ranks_is_refused_with_the_remedy(samples: Path) -> None:
    from sqft_plugins.search.recorded import read_history
    from sqft_plugins.search.run import adapter_space

    file = samples / "adapter-searched/sqft_rank_history.jsonl"
    head, *rows = file.read_text().splitlines()
    file.write_text("\n".join([json.dumps({**json.loads(head), "version": 2}), *rows]))
    with pytest.raises(CheckpointError, match=r"sqft_rank_history.jsonl has version 2, this release reads 1: upgrade"):
        read_history(samples / "adapter-searched", adapter_space(samples / "adapter-searched"))


def test_digests_tell_dtype_and_shape_apart() -> None:
    zeros = torch.zeros(4)
    assert len({digest(zeros), digest(zeros.view(2, 2)), digest(zeros.view(torch.int32))}) == 3
