"""`sqft search` on a tiny model with a real adapter: what is computed, written, kept, refused."""

from __future__ import annotations

import csv
import json
import math
import random
import shutil

import pytest
import torch

from sqft_plugins.adapter.saved import SavedAdapter
from sqft_plugins.checkpoint import ModelFolder, load_model, load_tokenizer
from sqft_plugins.cli import main
from sqft_plugins.configurations import read_configuration, saved_configuration
from sqft_plugins.errors import DependencyError, MismatchError, OutputExistsError, SQFTError
from sqft_plugins.evaluate import accuracy
from sqft_plugins.evaluate.tasks import JsonlTask
from sqft_plugins.evaluate.transformers_engine import TransformersSession
from sqft_plugins.search.model import SearchedModel
from sqft_plugins.search.objective import AnswerAccuracy, AnswerLikelihood, prepare
from sqft_plugins.search.run import adapter_space, search_adapter
from sqft_plugins.search.settings import SearchSettings
from sqft_plugins.tune import AdapterSettings, TrainSettings
from sqft_plugins.tune.data import IGNORED, tokenize
from sqft_plugins.tune.examples import Example
from sqft_plugins.tune.extract import extract_adapter
from sqft_plugins.tune.merge import merge_folder
from sqft_plugins.tune.train import train_adapter

EXAMPLES = [Example(f"Question: what follows {n}?\nAnswer:", f" {n + 1}") for n in range(80)]
TASK = JsonlTask("numbers.jsonl", EXAMPLES[40:])
SMALL = {"evaluations": 5, "subset": 6, "fresh": 8}


def train(base, folder, **changes):
    settings = {"rank": 8, "alpha": 16, "rank_choices": [8, 6, 4], **changes}
    training = TrainSettings.make({"steps": 12, "batch_size": 4, "learning_rate": 2e-2})
    return train_adapter(base, folder, EXAMPLES[:40], AdapterSettings.make(settings), training)


@pytest.fixture(scope="module")
def trained(pruned, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter") / "adapter"
    train(pruned, folder)
    return folder


@pytest.fixture
def adapter(trained, tmp_path):
    """A copy of its own, since `--save` writes into it."""
    return shutil.copytree(trained, tmp_path / "adapter")


def search(pruned, adapter, out, changes=(), **more):
    return search_adapter(pruned, adapter, TASK, SearchSettings.make({**SMALL, **dict(changes)}), out=out, **more)


def random_ranks(space, seed):
    draw = random.Random(seed)
    return space.expand(tuple(draw.choice(space.ordered) for _ in space.groups))


# --- what is computed ---


def test_a_score_is_the_loss_of_a_freshly_loaded_model_at_those_ranks(pruned, trained) -> None:
    saved, tokenizer = SavedAdapter(trained), load_tokenizer(pruned)
    space = adapter_space(trained, "module")
    searched = SearchedModel(pruned, saved, None, "float32")
    prepared = prepare(TASK.items()[:7], tokenizer, 64, batch_size=3)
    for seed in range(3):  # the second and third on a model whose ranks were others before
        ranks = random_ranks(space, seed)
        assert len(set(ranks.values())) == 3
        found = searched.scores(ranks, AnswerLikelihood(), prepared)
        fresh, _ = saved.load(load_model(pruned, torch.float32), ranks)
        rows = tokenize([Example(item.prompt, item.answer) for item in prepared.items], tokenizer, 64)
        for row, score in zip(rows, found, strict=True):
            with torch.no_grad():
                logits = fresh(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1].log_softmax(-1)
            answer = [(place, token) for place, token in enumerate(row["labels"][1:]) if token != IGNORED]
            naive = -sum(float(logits[place, token]) for place, token in answer) / len(answer)
            assert score == pytest.approx(naive, abs=2e-5)  # float32, other batches


def test_an_accuracy_is_that_of_sqft_eval(pruned, trained) -> None:
    saved, items = SavedAdapter(trained), TASK.items()[:7]
    searched = SearchedModel(pruned, saved, None, "float32")
    # a judge that is right now and then on a model that knows nothing
    judge = JsonlTask("numbers.jsonl", EXAMPLES[40:47])
    judge.is_correct = lambda item, text: sum(map(ord, text)) % 2 == 0  # type: ignore[method-assign]
    ranks = random_ranks(adapter_space(trained), 1)
    prepared = prepare(items, searched.tokenizer, 64, batch_size=3)
    found = searched.scores(ranks, AnswerAccuracy(judge, 3), prepared)
    score = accuracy(TransformersSession(searched.tuned, searched.tokenizer, 3), judge)
    assert sum(found) == score.correct
    assert found == [float(judge.is_correct(None, text)) for text in score.completions]


def test_training_records_the_ranks_of_every_step(trained) -> None:
    head, *rows = [json.loads(line) for line in (trained / "sqft_rank_history.jsonl").read_text().splitlines()]
    losses = json.loads((trained / "training.json").read_text())["losses"]
    assert sorted(head["modules"]) == sorted(adapter_space(trained).modules)
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert [row["loss"] for row in rows] == losses
    assert {rank for row in rows for rank in row["ranks"]} == {8, 6, 4}
    per_block = [{tuple(row["ranks"][i : i + 5]) for i in (0, 5)} for row in rows]  # 5 modules in each of 2 blocks
    assert all(len(set(ranks)) == 1 for blocks in per_block for ranks in blocks)


# --- what is written ---


def test_a_search_ends_with_a_configuration_that_every_verb_takes(pruned, adapter, tmp_path) -> None:
    result = search(pruned, adapter, tmp_path / "out", save="searched")
    out = tmp_path / "out"
    ranks = read_configuration(out / "configuration.json")
    assert ranks == result["chosen"]["ranks"] == saved_configuration(adapter, "searched")
    assert ranks == SavedAdapter(adapter).choose_rank("searched")  # `--rank searched` of every verb
    extracted = extract_adapter(adapter, tmp_path / "sub", ranks)
    assert extracted["ranks"] == ranks
    merge_folder(pruned, adapter, tmp_path / "merged", ranks)
    assert ModelFolder(tmp_path / "merged").stamp.ranks == ranks
    rows = list(csv.DictReader((out / "trials.csv").open()))
    assert [row["state"] for row in rows] == ["complete"] * 5
    assert rows[0]["origin"] == "heuristic"
    assert [rows[0][group] for group in ("model.layers.0", "model.layers.1")] == ["6", "6"]
    front = list(csv.DictReader((out / "pareto.csv").open()))
    assert [int(row["number"]) for row in front] == result["front"]
    assert all((out / row["file"]).is_file() for row in front)
    assert (out / "pareto.png").read_bytes()[:4] == b"\x89PNG"
    assert json.loads((out / "search.json").read_text())["verdict"] == result["verdict"]


def test_the_reported_score_is_of_questions_that_no_choice_was_made_by(pruned, adapter, tmp_path) -> None:
    result = search(pruned, adapter, tmp_path / "out")
    space = adapter_space(adapter)
    from sqft_plugins.search.data import split_items

    report = split_items(TASK.items(), 6, 8)["report"]
    searched = SearchedModel(pruned, SavedAdapter(adapter), None, "fast")
    prepared = prepare(report, searched.tokenizer, 64, 16)
    ours = searched.scores(result["chosen"]["ranks"], AnswerLikelihood(), prepared)
    theirs = searched.scores(space.expand(space.choice("heuristic")), AnswerLikelihood(), prepared)
    assert result["chosen"]["score"] == pytest.approx(sum(ours) / 4, abs=1e-6)
    assert result["heuristic"]["score"] == pytest.approx(sum(theirs) / 4, abs=1e-6)
    assert result["difference"]["score"] == pytest.approx((sum(ours) - sum(theirs)) / 4, abs=1e-6)
    assert result["chosen"]["questions"] == 4


def test_what_is_known_costs_no_model_run(pruned, adapter, tmp_path, monkeypatch) -> None:
    first = search(pruned, adapter, tmp_path / "out")
    monkeypatch.setattr("sqft_plugins.search.model.load_model", lambda *a, **k: pytest.fail("the model was loaded"))
    again = search(pruned, adapter, tmp_path / "out", overwrite=True)
    assert again["chosen"] == first["chosen"]
    assert again["evaluations_of_this_call"] == 0


def test_a_dense_adapter_is_searched_for_accuracy_against_latency(pruned, tmp_path) -> None:
    train(pruned, tmp_path / "dense", sparse=False)
    changes = {"method": "nsga2", "against": "latency", "objective": "accuracy", "evaluations": 6}
    result = search(pruned, tmp_path / "dense", tmp_path / "out", changes)
    rows = list(csv.DictReader((tmp_path / "out" / "trials.csv").open()))
    assert {row["origin"] for row in rows} >= {"heuristic", "max", "min"}
    assert all(float(row["latency"]) > 0 for row in rows)
    assert 0 <= result["chosen"]["score"] <= 1
    assert result["direction"] == "maximize"


def test_a_worker_evaluates_for_the_study_of_another(pruned, adapter, tmp_path, capsys) -> None:
    (tmp_path / "d.jsonl").write_text(
        "".join(json.dumps({"prompt": e.prompt, "completion": e.completion}) + "\n" for e in EXAMPLES[40:])
    )
    common = ["search", pruned, adapter, "--data", tmp_path / "d.jsonl", "--study", tmp_path / "s.db", "--subset", 6]
    common += ["--fresh", 8, "--evaluations", 4, "--json"]
    for more, evaluated in ((["--worker"], 4), (["--out", tmp_path / "out"], 0)):
        with pytest.raises(SystemExit) as done:
            main([str(part) for part in [*common, *more]])
        assert not done.value.code
        result = json.loads(capsys.readouterr().out)
        assert result["evaluations"] == 4
        if evaluated:
            assert result["evaluations_of_this_call"] == evaluated
            assert not (tmp_path / "out").exists()
    assert result["verdict"]


# --- what is refused before the model is loaded ---


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "hill-climb"}, r"--method 'hill-climb' is unknown: did you mean 'hill-climbing'\?"),
        ({"against": "parameters"}, "--method hill-climbing follows one objective: leave out --against"),
        ({"method": "nsga2", "against": "latency"}, "--against latency: .* is masked"),
        ({"subset": 39}, "39 for the search .* each needs 2"),
        ({"dtype": "int8"}, "--dtype 'int8' is no float type"),
        ({"evaluations": 0}, "evaluations=0: input should be greater than or equal to 1"),
        ({"objektive": "nll"}, r"SearchSettings has no key 'objektive': did you mean 'objective'\?"),
    ],
)
def test_impossible_settings_are_refused(pruned, trained, tmp_path, monkeypatch, changes, message) -> None:
    monkeypatch.setattr("sqft_plugins.search.model.load_model", lambda *a, **k: pytest.fail("the model was loaded"))
    with pytest.raises(SQFTError, match=message):
        search(pruned, trained, tmp_path / "out", changes)
    assert not (tmp_path / "out").exists()


def test_a_start_that_does_not_fit_is_refused(pruned, trained, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("sqft_plugins.search.model.load_model", lambda *a, **k: pytest.fail("the model was loaded"))
    file = tmp_path / "c.json"
    for ranks, message in (
        ({"model.layers.9.q_proj": 8, ".*": 4}, r"--start .*c.json: .* matches no adapted module"),
        ({".*": 5}, "rank=5 is outside the search space"),
        ({}, "is no configuration"),
    ):
        file.write_text(json.dumps(ranks))
        with pytest.raises(SQFTError, match=message):
            search(pruned, trained, tmp_path / "out", starts=[str(file)])


def test_a_study_or_an_output_of_something_else_is_refused(pruned, adapter, tiny_llama, tmp_path, monkeypatch) -> None:
    search(pruned, adapter, tmp_path / "out", {"evaluations": 1}, save="best")
    monkeypatch.setattr("sqft_plugins.search.model.load_model", lambda *a, **k: pytest.fail("the model was loaded"))
    again = {"study": tmp_path / "out.journal", "overwrite": True}
    with pytest.raises(MismatchError, match="another set of questions"):
        search(pruned, adapter, tmp_path / "out", {"subset": 7}, **again)
    with pytest.raises(MismatchError, match="another model: choose"):
        search(tiny_llama, adapter, tmp_path / "out", **again)
    with pytest.raises(MismatchError, match="another share_rank"):
        search(pruned, adapter, tmp_path / "out", {"share_rank": "module"}, **again)
    with pytest.raises(OutputExistsError, match="--out"):
        search(pruned, adapter, tmp_path / "out")
    with pytest.raises(OutputExistsError, match=r"--save .*best.json exists"):
        search(pruned, adapter, tmp_path / "other", save="best")
    with pytest.raises(SQFTError, match="is the name of a rank"):
        search(pruned, adapter, tmp_path / "other", save="max")
    with pytest.raises(SQFTError, match="is not usable"):
        search(pruned, adapter, tmp_path / "other", save="../best")


def test_a_score_that_is_no_number_ends_the_search(pruned, adapter, tmp_path, monkeypatch) -> None:
    """Optuna takes such a trial for a failed one, and a failed configuration may be proposed again: without end."""
    monkeypatch.setattr(AnswerLikelihood, "scores", lambda self, model, tokenizer, part: [math.nan] * len(part.items))
    with pytest.raises(
        SQFTError, match=r"the score of 'Question: what follows .* is nan with the ranks \[6\]: .*--dtype"
    ):
        search(pruned, adapter, tmp_path / "out")


def test_a_fixed_rank_leaves_nothing_to_search(pruned, tmp_path) -> None:
    train(pruned, tmp_path / "fixed", rank_choices=None)
    assert not (tmp_path / "fixed" / "sqft_rank_history.jsonl").exists()
    with pytest.raises(SQFTError, match="has the fixed rank 8: there is nothing to search"):
        search(pruned, tmp_path / "fixed", tmp_path / "out")


def test_without_optuna_the_extra_is_named(pruned, trained, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("sqft_plugins.search.methods.find_spec", lambda name: None)
    with pytest.raises(DependencyError, match=r"needs optuna: pip install 'sqft-plugins\[search\]'"):
        search(pruned, trained, tmp_path / "out")
