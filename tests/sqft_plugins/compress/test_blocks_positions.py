"""A calibration that is longer than the model has positions is refused before the work, where positions are learned."""

import pytest
import torch
from transformers import GPTJConfig, GPTJForCausalLM, MptConfig, MptForCausalLM

from sqft_plugins.cli import main
from sqft_plugins.compress.blocks import learned_positions
from sqft_plugins.compress.prune import prune_model
from sqft_plugins.compress.wanda import Wanda
from sqft_plugins.errors import SQFTError

LEARNED = {"gpt2": True, "opt": True}


def test_which_families_look_positions_up(tiny_model, family) -> None:
    model = tiny_model(family)
    found = learned_positions(model)
    assert (found is not None) == LEARNED.get(family, False)
    if found is not None:
        assert found == model.config.max_position_embeddings


@pytest.mark.parametrize("name", ["gpt2", "opt"])
@pytest.mark.parametrize(
    "verb", [["prune", "--sparsity", "0.5"], ["quantize", "--method", "gptq"], ["prune", "--sparsity", "2:4"]], ids=str
)
def test_a_longer_calibration_is_one_line_and_leaves_nothing(
    capfd, tiny_model, tiny_tokenizer, tmp_path, name, verb
) -> None:
    folder = tmp_path / "model"
    model = tiny_model(name)
    longest = model.config.max_position_embeddings
    model.save_pretrained(folder)
    tiny_tokenizer("byte-level").save_pretrained(folder)
    options = ["--sequences", "2", "--length", str(longest + 1), "--out", str(tmp_path / "out")]
    capfd.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main([verb[0], str(folder), *verb[1:], *options])
    assert stopped.value.code == 2
    last = capfd.readouterr().err.strip().splitlines()[-1]
    assert f"length={longest + 1} is more than the {longest} positions that the model has" in last
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("name", ["gpt2", "opt"])
def test_the_longest_calibration_works(tiny_model, name) -> None:
    model = tiny_model(name)
    tokens = torch.randint(4, 600, (1, model.config.max_position_embeddings))
    masks, _ = prune_model(model, tokens, Wanda(), 0.5)
    assert masks


def test_computed_positions_go_on(tiny_model) -> None:
    model = tiny_model("llama", max_position_embeddings=16)
    masks, _ = prune_model(model, torch.randint(4, 600, (1, 40)), Wanda(), 0.5)
    assert masks


def gptj():
    ids = {"bos_token_id": 0, "eos_token_id": 0}
    return GPTJForCausalLM(
        GPTJConfig(vocab_size=64, n_embd=32, n_layer=1, n_head=2, n_positions=16, rotary_dim=8, **ids)
    )


def mpt():
    return MptForCausalLM(MptConfig(vocab_size=64, d_model=32, n_layers=1, n_heads=2, max_seq_len=16))


@pytest.mark.parametrize("make", [gptj, mpt])
def test_computed_positions_that_end_are_told_likewise(make) -> None:
    with pytest.raises(SQFTError, match="length=40 is more than the 16 positions that the model has"):
        prune_model(make(), torch.arange(40)[None], Wanda(), 0.5)
