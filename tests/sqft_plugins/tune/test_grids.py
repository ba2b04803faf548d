"""What works on an INT4 folder works on other grids, or is refused in a line: elastic ranks, a search, a killed run, a
further round, several adapters. (Two processes: tests/peft_ext/test_model_distributed.py.)

    pytest tests/sqft_plugins/tune/test_grids.py
"""

from __future__ import annotations

import json

import pytest
import torch
from helpers_train import killed, train

from sqft_plugins.adapter.saved import SavedAdapter
from sqft_plugins.checkpoint import load_model, open_model
from sqft_plugins.compress.prune import prune_folder
from sqft_plugins.compress.quantize import quantize_folder
from sqft_plugins.errors import SQFTError
from sqft_plugins.evaluate.tasks import JsonlTask
from sqft_plugins.search.run import search_adapter
from sqft_plugins.search.settings import SearchSettings
from sqft_plugins.tune.merge import merge_folder

GRIDS = ["INT3", pytest.param("INT8", marks=pytest.mark.slow), pytest.param("Q5_0", marks=pytest.mark.slow), "Q4_1"]
"""Folders of other widths, rounded to nearest in each step, and llama.cpp's types, settled at the end: with an exact 0
and without."""


@pytest.fixture(scope="module", params=GRIDS)
def base(request, tiny_llama, tmp_path_factory):
    """A model on the grid."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param.startswith("INT"):
        prune_folder(tiny_llama, folder / "pruned", method="magnitude")
        quantize_folder(folder / "pruned", folder / "base", bits=int(request.param[3]), symmetric=False)
        return folder / "base"
    pytest.importorskip("llama_cpp")
    from gguf_ext.quantize.run import quantize_gguf

    quantize_gguf(tiny_llama, folder / "base.gguf", type=request.param, importance=False)
    return folder / "base.gguf"


@pytest.fixture(scope="module")
def adapter(base, tmp_path_factory):
    return tuned(base, tmp_path_factory.mktemp("adapter") / "adapter", rank_choices=[8, 4])


def tuned(base, out, seed=0, rank_choices=None, **options):
    aware = {} if base.suffix == ".gguf" else {"quantization_aware": True}
    settings = {"steps": 3, "learning_rate": 5e-2, "seed": seed, **options}
    train(base, out, adapter={"rank_choices": rank_choices, **aware}, **settings)
    return out


def merged(base, adapter, out, rank="max"):
    """The model with the adapter in it."""
    merge_folder(base, adapter, out if base.is_dir() else out.with_suffix(".gguf"), rank)
    return out if base.is_dir() else out.with_suffix(".gguf")


def changed(one, other) -> dict[str, bool]:
    """Module → whether its codes differ."""
    first, second = open_model(one), open_model(other)
    return {m: not torch.equal(first.quantized(m).codes, second.quantized(m).codes) for m in first.int4.modules}


def test_each_rank_has_codes_of_its_own_also_what_a_search_finds(base, adapter, tmp_path) -> None:
    whole, small = (merged(base, adapter, tmp_path / rank, rank) for rank in ("max", "min"))
    assert any(changed(base, whole).values())
    assert any(changed(whole, small).values())

    rows = [{"prompt": f"Question: what follows {n}?\nAnswer:", "completion": f" {n + 1}"} for n in range(50, 62)]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task, settings = JsonlTask(tmp_path / "data.jsonl"), SearchSettings.model_validate({"evaluations": 3, "fresh": 4})
    search_adapter(base, adapter, task, settings, out=tmp_path / "found")
    ranks = {module: 4 if ".0." in module else 8 for module in SavedAdapter(adapter).folder.pairs}
    mixed = merged(base, adapter, tmp_path / "mixed", ranks)
    of_small, of_whole = changed(mixed, small), changed(mixed, whole)
    assert not any(of_small[module] for module, rank in ranks.items() if rank == 4)
    assert not any(of_whole[module] for module, rank in ranks.items() if rank == 8)


def test_several_adapters_are_refused_together(base, adapter, tmp_path) -> None:
    model, _ = SavedAdapter(adapter).load(load_model(base, torch.float32), "max")
    model.load_adapter(adapter, "other")
    with pytest.raises(SQFTError, match=r"rounds the whole weight, so it works alone: merge one adapter"):
        model.merge_adapter(["default", "other"])
    with pytest.raises(
        SQFTError, match=r"cannot be combined\. Merge it, or combine adapters trained over the float base"
    ):
        model.add_weighted_adapter(["default", "other"], [1.0, 1.0], "both")


def test_a_killed_run_ends_bit_for_bit_as_the_undisturbed_one(base, tmp_path, monkeypatch) -> None:
    whole = tuned(base, tmp_path / "whole")
    aware = {} if base.suffix == ".gguf" else {"quantization_aware": True}
    options = {"adapter": {"rank_choices": None, **aware}, "steps": 3, "learning_rate": 5e-2, "checkpoint_every": 1}
    killed(monkeypatch, 3, base, tmp_path / "parts", **options)
    assert train(base, tmp_path / "parts", **options)["resumed_from_step"] == 2
    found = [(folder / "adapter_model.safetensors").read_bytes() for folder in (whole, tmp_path / "parts")]
    assert found[0] == found[1]


def test_a_further_round_is_over_the_codes_of_the_last(base, tmp_path) -> None:
    first = merged(base, tuned(base, tmp_path / "one"), tmp_path / "first")
    again = tuned(first, tmp_path / "two", seed=1)
    second = merged(first, again, tmp_path / "second")
    assert any(changed(base, first).values())
    assert any(changed(first, second).values())
    for model, one in ((base, again), (first, tmp_path / "one")):
        with pytest.raises(SQFTError):
            merged(model, one, tmp_path / "wrong")
