"""A layer that `sqft prune --exclude` left out has no mask: it is trained and merged with all its weights kept."""

from __future__ import annotations

import pytest
import torch
from helpers_int4 import Pair, without_masks
from helpers_peft import fill_adapter
from peft import PeftModel, get_peft_model

from sqft_plugins.checkpoint import ModelFolder
from sqft_plugins.compress.prune import prune_folder
from sqft_plugins.compress.quantize import quantize_folder
from sqft_plugins.errors import MismatchError
from sqft_plugins.tune.merge import merge_folder

pytestmark = pytest.mark.filterwarnings("ignore:.*put_rest_on_grid")


@pytest.fixture(scope="module")
def partly_pruned(tiny_model, tiny_tokenizer, tmp_path_factory):
    """As `sqft prune --exclude q_proj --exclude down_proj` and `sqft quantize` make it."""
    folder = tmp_path_factory.mktemp("partly")
    tiny_model("llama").save_pretrained(folder / "dense")
    tiny_tokenizer("byte-level").save_pretrained(folder / "dense")
    prune_folder(folder / "dense", folder / "pruned", "magnitude", exclude=["q_proj", "down_proj"])
    quantize_folder(folder / "pruned", folder / "int4")
    return Pair(folder / "pruned", folder / "int4")


@pytest.mark.parametrize("kind", ["int4", "float"])
def test_a_layer_that_pruning_left_out_keeps_all_its_weights(partly_pruned, tokens, tmp_path, kind) -> None:
    folder = partly_pruned.folder()
    left_out = {name for name in folder.int4.modules if name.endswith(("q_proj", "down_proj"))}
    assert not left_out & set(folder.masks)
    model = fill_adapter(get_peft_model(partly_pruned.load(kind), partly_pruned.config(kind)), 0.3).eval()
    masks = model.base_model.masks()
    for name in left_out & set(masks):
        assert masks[name].float().mean() > (0.99 if kind == "float" else 0.999)
    for name in set(masks) - left_out:
        assert masks[name].float().mean() == 0.5
    model.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(partly_pruned.load(kind), tmp_path / "adapter").eval()
    with torch.no_grad():
        unmerged = model(input_ids=tokens).logits
        assert torch.equal(again(input_ids=tokens).logits, unmerged)
        assert torch.equal(again.merge_and_unload()(input_ids=tokens).logits, unmerged)

    grid = None if kind == "int4" else str(partly_pruned.int4)
    base = partly_pruned.int4 if kind == "int4" else partly_pruned.pruned
    report = merge_folder(base, tmp_path / "adapter", tmp_path / "merged", rank="max", grid=grid)
    assert report["zeros_lost"] == 0
    merged = ModelFolder(tmp_path / "merged")
    assert set(merged.masks) == set(folder.masks)


def test_masks_that_are_all_missing_are_not_taken_for_kept_weights(partly_pruned, tmp_path) -> None:
    """As of a folder of AutoGPTQ: nothing says which codes were pruned."""
    without_masks(partly_pruned.int4, tmp_path / "int4")
    with pytest.raises(MismatchError, match=r"has no mask \(sqft/mask.safetensors\)"):
        ModelFolder(tmp_path / "int4").kept("model.layers.0.self_attn.q_proj")
    pair = Pair(partly_pruned.pruned, tmp_path / "int4")
    with pytest.raises(MismatchError, match=r"has no mask \(sqft/mask.safetensors\)"):
        get_peft_model(pair.load("int4"), pair.config("int4"))
