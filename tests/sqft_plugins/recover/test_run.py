"""`sqft recover`: the kept weights learn the dense model's predictions, and nothing else changes.

pytest tests/sqft_plugins/recover/test_run.py
"""

from __future__ import annotations

import json
import math

import pytest
import torch
from click.testing import CliRunner
from transformers import AutoModelForCausalLM, MixtralConfig

from sqft_plugins.checkpoint import ModelFolder, load_model
from sqft_plugins.cli import cli
from sqft_plugins.compress.prune import prune_folder
from sqft_plugins.errors import SQFTError
from sqft_plugins.mask import lost_zeros
from sqft_plugins.recover import run as recovery
from sqft_plugins.recover.divergence import cut_head, divergence, vocabulary_of
from sqft_plugins.recover.learn import Learner, rate_at
from sqft_plugins.recover.run import recover_folder
from sqft_plugins.recover.settings import RecoverSettings

HOW = RecoverSettings(sequences=72, length=16, batch_size=4, learning_rate=1e-3)


@pytest.fixture(scope="module")
def pruned(tiny_llama, tmp_path_factory):
    path = tmp_path_factory.mktemp("recover") / "pruned"
    prune_folder(tiny_llama, path, method="magnitude", sparsity=0.6)
    return path


@pytest.fixture(scope="module")
def recovered(pruned, tiny_llama):
    out = pruned.with_name("recovered")
    return out, recover_folder(pruned, tiny_llama, out, HOW)


def test_it_comes_nearer_to_the_dense_model_on_text_that_it_has_not_learned(recovered):
    _, report = recovered
    assert report["divergence_after"] < 0.9 * report["divergence_before"]
    assert report["steps"] == len(report["divergences"]) == 18
    assert report["tokens"] == 72 * 16


def test_masks_and_everything_beside_the_kept_weights_stay(recovered, pruned):
    before, after = ModelFolder(pruned), ModelFolder(recovered[0])
    assert after.stamp.pipeline == [*before.stamp.pipeline, "recover"]
    assert after.stamp.mask_hash == before.stamp.mask_hash
    changed = {before.weight_name(name) for name in before.masks}
    assert before.files.keys() == after.files.keys()
    for name in before.files:
        assert torch.equal(before.tensor(name), after.tensor(name)) == (name not in changed), name
    for name in before.masks:
        mask = before.mask(name)
        assert torch.equal(mask, after.mask(name))
        assert lost_zeros(after.weight(name), mask) == 0


def test_a_killed_run_goes_on_to_the_same_bytes(recovered, pruned, tiny_llama, monkeypatch, tmp_path):
    step = Learner.step
    taken = []

    def killed(self, tokens, learning_rate):
        if len(taken) == 17:
            raise KeyboardInterrupt
        taken.append(learning_rate)
        return step(self, tokens, learning_rate)

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(Learner, "step", killed)
        with pytest.raises(KeyboardInterrupt):
            recover_folder(pruned, tiny_llama, out, HOW)
    assert not out.exists()

    begun = []
    monkeypatch.setattr(Learner, "step", lambda *arguments: begun.append(1) or step(*arguments))
    report = recover_folder(pruned, tiny_llama, out, HOW)
    assert len(begun) == 2  # of 18: the state after 16 was saved
    assert report["divergences"] == recovered[1]["divergences"]
    assert (out / "model.safetensors").read_bytes() == (recovered[0] / "model.safetensors").read_bytes()


def test_a_step_is_adams_on_the_masked_gradient(pruned, tiny_llama):
    """Against a naive formula: all logits, all weights, a gradient that is masked by hand."""
    tokens = torch.randint(4, 200, (2, 8), generator=torch.Generator().manual_seed(0))
    folder = ModelFolder(pruned)
    masks = {name: folder.mask(name) for name in folder.masks}
    dense = load_model(tiny_llama, torch.float32)
    learner = Learner(load_model(pruned, torch.float32), dense, masks, torch.float32)
    naive = load_model(pruned, torch.float32)

    p = dense(tokens).logits[:, 1:].softmax(-1)
    q = naive(tokens).logits[:, 1:].softmax(-1)
    loss = (p * (p.log() - q.log())).sum(-1).mean()
    weights = {name: naive.get_submodule(name).weight for name in masks}
    gradients = dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))
    gradients = {name: gradient * masks[name] for name, gradient in gradients.items()}
    norm = math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients.values()))

    assert learner.step(tokens, 1e-3) == pytest.approx(float(loss), rel=1e-5)
    for name, weight in weights.items():
        gradient = gradients[name] * min(1, 1 / (norm + 1e-6))
        expected = weight.detach() - 1e-3 * gradient / (gradient.abs() + 1e-8)  # Adam's first step
        clear = gradient.abs() > 1e-6  # below, the sign and Adam's epsilon are a matter of rounding
        assert clear.any()
        torch.testing.assert_close(learner.weight(name)[clear], expected[clear], rtol=0, atol=1e-6)
        assert not learner.weight(name)[~masks[name]].any()


def test_heads_cut_to_the_whole_vocabulary_change_nothing(tiny_gemma):
    model, dense = (load_model(tiny_gemma, torch.float32) for _ in range(2))
    with torch.no_grad():
        model.get_input_embeddings().weight.add_(0.05)
    tokens = torch.randint(4, 200, (2, 8), generator=torch.Generator().manual_seed(0))
    whole = divergence(model, dense, tokens)
    size = len(model.get_input_embeddings().weight)
    for one in (model, dense):
        cut_head(one, torch.arange(size))
    assert torch.equal(divergence(model, dense, tokens), whole)
    vocabulary = vocabulary_of(tokens, 1 << 18, 0)
    assert set(tokens.flatten().tolist()) <= set(vocabulary.tolist())
    assert 4000 < len(vocabulary) <= 4096 + 16


def test_conv1d_learns_in_its_own_layout(tiny_model, tiny_tokenizer, tmp_path):
    tiny_model("gpt2").save_pretrained(tmp_path / "dense")
    tiny_tokenizer("byte-level").save_pretrained(tmp_path / "dense")
    prune_folder(tmp_path / "dense", tmp_path / "pruned", method="magnitude")
    recover_folder(tmp_path / "pruned", tmp_path / "dense", tmp_path / "out", HOW)
    before, after = ModelFolder(tmp_path / "pruned"), ModelFolder(tmp_path / "out")
    for name in before.masks:
        assert lost_zeros(after.weight(name), before.mask(name)) == 0
        assert not torch.equal(before.weight(name), after.weight(name))


def test_the_experts_of_a_mixture_are_refused_by_name(tiny_tokenizer, tmp_path):
    config = MixtralConfig(
        vocab_size=640, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=2,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "dense")
    tiny_tokenizer("byte-level").save_pretrained(tmp_path / "dense")
    prune_folder(tmp_path / "dense", tmp_path / "pruned", method="magnitude")
    with pytest.raises(SQFTError, match="is an expert"):
        recover_folder(tmp_path / "pruned", tmp_path / "dense", tmp_path / "out", HOW)


def test_several_texts_give_sequences_alike(pruned, tmp_path):
    (tmp_path / "a.txt").write_text("aaaa " * 4000)
    source = recovery.FloatModel(pruned)
    how = RecoverSettings(calibration=["builtin", str(tmp_path / "a.txt")], sequences=8, length=16, batch_size=4)
    tokens = recovery._tokens(source, how)
    own = recovery.load_tokenizer(pruned)
    repeated = sum("aaaa aaaa" in own.decode(row) for row in tokens)
    assert tokens.shape == (12, 16)
    assert repeated == 6


def test_the_rate_rises_and_falls():
    rates = [rate_at(step, 40, 1.0) for step in range(40)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) < 1
    assert rates.index(max(rates)) == 9
    assert rates[-1] < 0.01


@pytest.mark.parametrize(
    ("model", "dense", "how", "said"),
    [
        ("dense", "dense", {}, "is not pruned"),
        ("pruned", "pruned", {}, "has the zeros of"),
        ("pruned", "other", {}, "has other layers"),
        ("int4", "dense", {}, "is INT4 already"),
        ("pruned", "dense", {"sequences": 10**6}, "calibration text has"),
        ("pruned", "dense", {"learning_rate": 1e4}, "nothing is gained|divergence is nan"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(folders, tiny_llama, tmp_path, model, dense, how, said):
    paths = {**folders, "other": tiny_llama}
    out = tmp_path / "out"
    with pytest.raises(SQFTError, match=said) as error:
        recover_folder(paths[model], paths[dense], out, RecoverSettings(**{**HOW.model_dump(), **how}))
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_the_command(pruned, tiny_llama, tmp_path):
    words = ["recover", str(pruned), "--dense", str(tiny_llama), "--out", str(tmp_path / "out"), "--json"]
    done = CliRunner().invoke(
        cli, [*words, "--sequences", "72", "--length", "16", "--batch-size", "4", "--learning-rate", "1e-3"]
    )
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["steps"] == 18
