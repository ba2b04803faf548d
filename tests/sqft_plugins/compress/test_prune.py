"""Pruning tiny models, in memory and in folders."""

from __future__ import annotations

import json

import pytest
import torch
from helpers_compress import tokens
from torch import nn

from sqft_plugins.checkpoint import ModelFolder, load_model
from sqft_plugins.compress.magnitude import Magnitude
from sqft_plugins.compress.prune import prune_folder, prune_model
from sqft_plugins.compress.wanda import Wanda
from sqft_plugins.errors import GridError, OutputExistsError, SQFTError
from sqft_plugins.mask import Pattern, mask_hash, nonzero_mask, unpack_mask
from sqft_plugins.structure import find_linears, structure_of_folder


def naive_wanda(model: nn.Module, batch: torch.Tensor, sparsity: float) -> dict[str, torch.Tensor]:
    """Layer after layer, each with a forward pass of its own over the model as pruned so far."""
    masks = {}
    for name, linear in find_linears(model).items():
        seen = []
        handle = linear.register_forward_pre_hook(lambda module, inputs, seen=seen: seen.append(inputs[0]))
        with torch.no_grad():
            model(batch)
        handle.remove()
        X = seen[0].reshape(-1, linear.in_features).float()  # [tokens, in]
        score = linear.weight.detach().abs().float() * (X**2).sum(0).sqrt()
        mask = torch.ones_like(score, dtype=torch.bool)
        count = round(sparsity * linear.in_features)
        for row in range(score.shape[0]):
            mask[row, score[row].sort(stable=True).indices[:count]] = False
        linear.weight.data[~mask] = 0
        masks[name] = mask
    return masks


@pytest.mark.parametrize(("family", "sparsity"), [("llama", 0.5), ("gemma3", 0.3), ("qwen2", 0.7)])
def test_wanda_equals_the_naive_sequential_formula(tiny_model, family, sparsity):
    model, other = tiny_model(family), tiny_model(family)
    masks, report = prune_model(model, tokens(), Wanda(), sparsity)
    expected = naive_wanda(other, tokens(), sparsity)
    assert list(masks) == list(find_linears(model))
    for name, linear in find_linears(model).items():
        mask = unpack_mask(masks[name], linear.in_features)
        assert torch.equal(mask, expected[name]), name
        assert torch.equal(mask, nonzero_mask(linear.weight))
        assert torch.equal(linear.weight, dict(other.named_parameters())[f"{name}.weight"])
        assert bool(((~mask).sum(1) == round(sparsity * linear.in_features)).all())
        assert not linear._forward_pre_hooks
    assert [row["name"] for row in sorted(report, key=lambda row: list(masks).index(row["name"]))] == list(masks)
    assert all(abs(row["sparsity"] - sparsity) < 0.01 for row in report)


def test_later_layers_see_pruned_predecessors(tiny_model):
    """Scored on the dense model, the last layer's mask is another: the test above would not notice a copy of it."""
    dense, model = tiny_model("llama"), tiny_model("llama")
    masks, _ = prune_model(model, tokens(), Wanda(), 0.7)
    last = list(masks)[-1]
    seen = []
    find_linears(dense)[last].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        dense(tokens())
    norm = seen[0].flatten(0, 1).norm(dim=0)
    _, at_once = Wanda().prune(find_linears(dense)[last].weight.data, norm, Pattern(0.7))
    assert not torch.equal(unpack_mask(masks[last], 128), at_once)


def test_zeros_of_the_base_count_as_pruned(tiny_model):
    model = tiny_model("llama")
    weight = find_linears(model)["model.layers.0.self_attn.q_proj"].weight.data
    weight[3] = 0.0
    weight[4, ::2] = -0.0
    masks, _ = prune_model(model, tokens(), Wanda(), 0.25)
    mask = unpack_mask(masks["model.layers.0.self_attn.q_proj"], 64)
    assert torch.equal(mask, weight != 0)
    assert not bool(mask[3].any())
    assert int(mask[4].sum()) == 32
    assert int(mask[5].sum()) == 48


@pytest.mark.parametrize("sparsity", [0.0, 1.0])
def test_the_ends_of_the_range(tiny_model, sparsity):
    model = tiny_model("llama")
    masks, _ = prune_model(model, tokens(), Wanda(), sparsity)
    assert all(bool(unpack_mask(m, 64).all()) == (sparsity == 0) for n, m in masks.items() if "down" not in n)


def test_magnitude_needs_no_tokens(tiny_model):
    model = tiny_model("llama")
    masks, report = prune_model(model, None, Magnitude(), 0.5)
    assert len(masks) == len(report) == 14
    with pytest.raises(SQFTError, match="needs calibration tokens"):
        prune_model(model, None, Wanda(), 0.5)


class Broken:
    name = "broken"
    statistic = "none"

    def __init__(self, prune):
        self.prune = prune


@pytest.mark.parametrize(
    ("prune", "message"),
    [
        (lambda w, s, r: (w, torch.zeros_like(w, dtype=torch.bool)), "nonzero that its mask prunes"),
        (lambda w, s, r: (w[:1], torch.ones_like(w[:1], dtype=torch.bool)), "another shape or no bool mask"),
        (lambda w, s, r: (w, torch.ones_like(w)), "another shape or no bool mask"),
    ],
)
def test_a_pruner_that_breaks_its_promise_is_named(tiny_model, prune, message):
    with pytest.raises(SQFTError, match=f"'broken' .*{message}"):
        prune_model(tiny_model("llama"), None, Broken(prune), 0.5)


def test_broken_weights_inputs_and_tokens_are_named(tiny_model):
    name = "model.layers.1.mlp.up_proj"
    for value in (float("nan"), float("inf")):
        model = tiny_model("llama")
        find_linears(model)[name].weight.data[2, 3] = value
        with pytest.raises(GridError, match=rf"tensor {name}\.weight holds NaN or infinity"):
            prune_model(model, tokens(), Wanda(), 0.5)
    model = tiny_model("llama")
    model.model.layers[1].input_layernorm.weight.data[0] = float("inf")
    with pytest.raises(GridError, match=r"inputs of layer model\.layers\.1\.self_attn\.q_proj are not finite"):
        prune_model(model, tokens(), Wanda(), 0.5)
    assert not any(linear._forward_pre_hooks for linear in find_linears(model).values())
    with pytest.raises(SQFTError, match=r"token 640 is outside the model's vocabulary of 640"):
        prune_model(tiny_model("llama"), torch.full((1, 4), 640), Wanda(), 0.5)


def test_a_layer_that_is_never_called_is_named(tiny_model):
    model = tiny_model("llama")
    model.model.layers[0].mlp.spare = nn.Linear(64, 64)
    with pytest.raises(SQFTError, match=r"layer model\.layers\.0\.mlp\.spare \(and 0 more\) is never called"):
        prune_model(model, tokens(), Wanda(), 0.5)


def test_a_layer_that_is_called_twice_is_pruned_once(tiny_model):
    model = tiny_model("llama")
    block = model.model.layers[0]
    block.register_forward_hook(lambda module, inputs, output: (block.mlp.up_proj(output), output)[1])
    masks, report = prune_model(model, tokens(), Wanda(), 0.5)
    assert len(masks) == len(report) == 14


@pytest.fixture(scope="module")
def pruned(tiny_llama, tmp_path_factory):
    out = tmp_path_factory.mktemp("pruned") / "out"
    report = prune_folder(tiny_llama, out, sparsity=0.5, sequences=4, length=32)
    return out, report


def test_prune_folder_writes_model_tokenizer_mask_and_stamp(tiny_llama, pruned):
    out, report = pruned
    source, folder = ModelFolder(tiny_llama), ModelFolder(out)
    assert report["sparsity_reached"] == 0.5
    assert report["modules"] == len(report["layers"]) == 14
    assert folder.stamp is not None
    assert folder.stamp.pipeline == ["wanda"]
    assert folder.stamp.base == str(tiny_llama)
    assert folder.stamp.mask_hash == mask_hash(folder.masks)
    assert folder.config["sqft"]["mask_hash"] == folder.stamp.mask_hash
    assert set(folder.masks) == set(structure_of_folder(out).shapes)
    assert set(folder.files) == set(source.files)
    for name in folder.files:
        mask = folder.mask(name.removesuffix(".weight"))
        tensor, original = folder.tensor(name), source.tensor(name)
        assert tensor.dtype == original.dtype
        assert torch.equal(tensor, original if mask is None else original.masked_fill(~mask, 0))
    assert (out / "tokenizer.json").read_bytes() == (tiny_llama / "tokenizer.json").read_bytes()
    json.dumps(report)


def test_pruning_twice_gives_the_same_bytes(tiny_llama, pruned, tmp_path):
    prune_folder(tiny_llama, tmp_path / "again", sparsity=0.5, sequences=4, length=32)
    for name in ("model.safetensors", "sqft/mask.safetensors", "sqft/stamp.json"):
        assert (tmp_path / "again" / name).read_bytes() == (pruned[0] / name).read_bytes()


def test_pruning_again_goes_further_and_remembers(pruned, tmp_path):
    prune_folder(pruned[0], tmp_path / "more", method="magnitude", sparsity=0.75)
    folder, before = ModelFolder(tmp_path / "more"), ModelFolder(pruned[0])
    assert folder.stamp is not None
    assert folder.stamp.pipeline == ["wanda", "magnitude"]
    assert folder.stamp.sparsity == 0.75
    for name in folder.masks:
        assert not bool((folder.mask(name) & ~before.mask(name)).any())


def test_bfloat16_and_tied_embeddings_survive(tiny_gemma, tmp_path):
    out = tmp_path / "out"
    prune_folder(tiny_gemma, out, sparsity=0.5, sequences=4, length=32)
    model = load_model(out)
    assert model.dtype == torch.bfloat16
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert torch.equal(model.get_input_embeddings().weight, load_model(tiny_gemma).get_input_embeddings().weight)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sparsity": 1.5}, "sparsity=1.5 is outside"),
        ({"method": "wand"}, r"--method 'wand' is unknown: did you mean 'wanda'\?"),
        ({"calibration": "/no/such/file"}, "--calibration /no/such/file is not a file"),
        ({"length": 10_000}, r"need 319968: give more text"),
    ],
)
def test_prune_folder_refuses_before_the_weights_are_read(tiny_llama, tmp_path, monkeypatch, arguments, message):
    monkeypatch.setattr(ModelFolder, "tensor", lambda *_: pytest.fail("a weight was read"))
    with pytest.raises(SQFTError, match=message):
        prune_folder(tiny_llama, tmp_path / "out", **arguments)
    (tmp_path / "there").mkdir()
    with pytest.raises(OutputExistsError):
        prune_folder(tiny_llama, tmp_path / "there")
    assert [p.name for p in tmp_path.iterdir()] == ["there"]
