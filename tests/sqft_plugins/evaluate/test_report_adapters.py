"""Every artefact is evaluated as what it is: an adapter at a rank as its merge, INT4 as its own weights."""

from __future__ import annotations

import pytest
from helpers_eval import write_data

from sqft_plugins.checkpoint import load_model, load_tokenizer
from sqft_plugins.compress.quantize import quantize_folder
from sqft_plugins.errors import SQFTError
from sqft_plugins.evaluate.report import evaluate_model, open_candidate
from sqft_plugins.tune import AdapterSettings, TrainSettings
from sqft_plugins.tune.examples import Example
from sqft_plugins.tune.merge import merge_folder
from sqft_plugins.tune.train import train_adapter

pytest.importorskip("lm_eval")
pytest.importorskip("peft")
pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(scope="module")
def adapter(pruned, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter") / "adapter"
    examples = [Example(f"Question: what follows {n}?\nAnswer:", f" {n + 1}") for n in range(16)]
    settings = AdapterSettings.make({"rank": 8, "alpha": 16, "rank_choices": [8, 4]})
    steps = TrainSettings.make({"steps": 4, "batch_size": 4, "learning_rate": 2e-2})
    train_adapter(pruned, folder, examples, settings, steps)
    return folder


def scores(candidate, data) -> list[float]:
    report = evaluate_model(candidate, ["arc-easy"], data_dir=data, samples=True)
    items = sorted(report["samples"]["arc-easy"], key=lambda item: item["doc_id"])
    return [score for item in items for score, _ in item["filtered_resps"]]


def test_an_adapter_at_a_rank_scores_as_its_merge_and_no_rank_answers_for_another(pruned, adapter, tmp_path) -> None:
    data, found = write_data(tmp_path / "data", 6), {}
    for rank in (8, 4):
        candidate = open_candidate(pruned, adapter, rank, dtype="float32")
        found[rank] = scores(candidate, data)
        assert candidate.asked == len(found[rank])  # nothing came from the other rank's answers
        merge_folder(pruned, adapter, tmp_path / f"merged-{rank}", rank=rank)
        merged = scores(open_candidate(tmp_path / f"merged-{rank}", dtype="float32"), data)
        assert found[rank] == pytest.approx(merged, abs=1e-3)
    assert found[8] != pytest.approx(found[4], abs=1e-3)
    again = open_candidate(pruned, adapter, "max", dtype="float32")
    assert scores(again, data) == found[8]


def test_the_order_of_patterns_is_part_of_the_rank(pruned, adapter, tmp_path) -> None:
    """Later patterns win, so the same ones in another order are another model, with answers of its own."""
    data, one, all_of_them = write_data(tmp_path / "data", 3), ("layers.0.mlp.up_proj", 8), (".*", 4)
    mixed, small, four = (
        scores(open_candidate(pruned, adapter, rank, dtype="float32"), data)
        for rank in (dict([all_of_them, one]), dict([one, all_of_them]), 4)
    )
    assert small == four
    assert mixed != pytest.approx(small, abs=1e-6)


@pytest.mark.parametrize(
    ("rank", "message"),
    [
        ({"layers.9.q_proj": 8, ".*": 4}, "'layers.9.q_proj' matches no adapted module"),
        ({".*": 5}, "rank=5 is outside the search space"),
        ("serched", "rank='serched' is not a rank"),
    ],
)
def test_a_rank_that_the_adapter_lacks_is_told_before_a_model_is_loaded(rank, message, pruned, adapter) -> None:
    for cache in (True, False):
        with pytest.raises(SQFTError, match=message):
            open_candidate(pruned, adapter, rank, cache=cache)


def test_an_int4_folder_scores_as_its_dequantized_weights(pruned, tmp_path) -> None:
    data = write_data(tmp_path / "data", 6)
    quantize_folder(pruned, tmp_path / "int4", group_size=32)
    load_model(tmp_path / "int4").save_pretrained(tmp_path / "float")
    load_tokenizer(pruned).save_pretrained(tmp_path / "float")
    int4, plain = (scores(open_candidate(tmp_path / name, dtype="float32"), data) for name in ("int4", "float"))
    assert int4 == plain
    assert int4 != pytest.approx(scores(open_candidate(pruned, dtype="float32"), data), abs=1e-3)
