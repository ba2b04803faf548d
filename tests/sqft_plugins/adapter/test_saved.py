"""`SavedAdapter`: the folder with the plug-in that reads its type, on the samples of tests/samples."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sqft_plugins.adapter.saved import SavedAdapter
from sqft_plugins.checkpoint import load_model
from sqft_plugins.errors import CheckpointError, SQFTError

pytest.importorskip("peft")


def test_a_name_of_a_rank_becomes_a_rank_of_every_module(samples: Path) -> None:
    saved = SavedAdapter("adapter-searched")
    modules, choices = saved.search_space
    assert (len(modules), list(choices)) == (6, [4, 3, 2])
    assert saved.choose_rank("heuristic") == dict.fromkeys(modules, 3)
    assert saved.choose_rank("searched") == json.loads(Path("search/configuration.json").read_text())
    assert (saved.choose_rank(2), saved.choose_rank({"q_proj": 4}), saved.choose_rank("r3")) == (2, {"q_proj": 4}, "r3")
    assert SavedAdapter("extracted-dense").choose_rank("max") == "max"  # of a fixed rank there is nothing to choose


def test_an_adapter_is_loaded_at_its_rank(samples: Path) -> None:
    saved, tokens = SavedAdapter("run/train"), torch.tensor([[2, 70, 80, 90]])
    tuned, ranks = saved.load(load_model("run/prune", dtype=torch.float32), "min")
    assert set(ranks.values()) == {2}
    with torch.no_grad():
        smallest = tuned(input_ids=tokens).logits
        for rank, same in (("max", False), ("min", True)):
            saved.tuner.set_rank(tuned, rank)
            assert torch.equal(tuned(input_ids=tokens).logits, smallest) == same


@pytest.mark.parametrize(
    ("adapter", "base", "grid"),
    [("run/train", "run/prune", None), ("adapter-qa", "run/prune", "int4"), ("adapter-qa-int4", "moved", "moved")],
)
def test_the_grid_is_that_of_the_configuration_or_the_base(samples: Path, adapter, base, grid) -> None:
    assert SavedAdapter(adapter).grid_over(Path(base)) == (Path(grid) if grid else None)


def test_a_type_that_no_tuner_reads_is_refused_by_name(samples: Path) -> None:
    file = samples / "run/train/adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "peft_type": "LOHA"}))
    with pytest.raises(SQFTError, match=r"adapter run/train of type 'loha' is unknown: .*known: lora, sqft"):
        SavedAdapter("run/train")
    with pytest.raises(CheckpointError, match=r"adapter run/merge has no adapter_config\.json"):
        SavedAdapter("run/merge")


def test_a_chat_template_goes_along(samples: Path, tmp_path: Path) -> None:
    saved = SavedAdapter("run/train")
    saved.copy_chat_template(tmp_path)
    assert not (tmp_path / "chat_template.jinja").exists()
    (saved.path / "chat_template.jinja").write_text("{{ messages }}")
    saved.copy_chat_template(tmp_path)
    assert (tmp_path / "chat_template.jinja").read_text() == "{{ messages }}"
