"""Ranks and merging where there is no PeftModel, and what a pickled or copied model carries."""

import copy
import io

import pytest
import torch
from helpers_peft import by_transformers, fill_adapter
from helpers_training import make_config
from peft import LoraConfig, get_peft_model, inject_adapter_in_model
from transformers import AutoModelForCausalLM

import peft_ext
from peft_ext.layer import Linear
from sqft_plugins.errors import SQFTError


def logits(model, tokens) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=tokens).logits


def added_by_transformers(base):
    base.add_adapter(make_config())
    return base


def by_injection(base):
    return inject_adapter_in_model(make_config(), base)


def by_peft(base):
    return get_peft_model(base, make_config())


WAYS = [pytest.param(added_by_transformers, marks=by_transformers), by_injection, by_peft]


@pytest.mark.parametrize("add", WAYS)
def test_a_rank_is_set_and_merged_however_the_adapter_was_added(sparse_llama, tokens, add) -> None:
    base = sparse_llama()
    before = {name: parameter.clone() for name, parameter in base.named_parameters()}
    model = fill_adapter(add(base)).eval()
    outputs = []
    for rank in ("max", 4):
        assert set(peft_ext.set_active_rank(model, rank).values()) == {8 if rank == "max" else 4}
        outputs.append(logits(model, tokens))
    assert not torch.allclose(*outputs, atol=1e-4)

    peft_ext.merge_adapter(model)
    torch.testing.assert_close(logits(model, tokens), outputs[1], rtol=1e-5, atol=1e-5)
    peft_ext.unmerge_adapter(model)
    assert torch.equal(logits(model, tokens), outputs[1])

    merged = peft_ext.merge_and_unload(model)
    torch.testing.assert_close(logits(merged, tokens), outputs[1], rtol=1e-5, atol=1e-5)
    assert not any(isinstance(module, Linear) for module in merged.modules())
    for name, parameter in merged.named_parameters():
        assert not parameter[before[name] == 0].any()


@pytest.mark.parametrize("add", WAYS)
def test_a_merged_model_is_saved_whole(sparse_llama, tokens, tmp_path, add) -> None:
    merged = peft_ext.merge_and_unload(fill_adapter(add(sparse_llama())).eval())
    merged.save_pretrained(tmp_path)
    assert not (tmp_path / "adapter_config.json").exists()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(logits(loaded, tokens), logits(merged, tokens))


def test_a_wrong_rank_and_a_model_without_adapter_are_refused(sparse_llama) -> None:
    with pytest.raises(SQFTError, match="rank=5 is outside the search space"):
        peft_ext.set_active_rank(by_injection(sparse_llama()), 5)
    for model in (sparse_llama(), get_peft_model(sparse_llama(), LoraConfig(target_modules=["q_proj"]))):
        with pytest.raises(SQFTError, match="carries no SQFT adapter"):
            peft_ext.set_active_rank(model, 4)


@pytest.mark.parametrize("add", WAYS)
def test_a_file_does_not_carry_the_kept_weights(sparse_llama, tokens, add) -> None:
    model = fill_adapter(add(sparse_llama())).eval()

    def size() -> int:
        file = io.BytesIO()
        torch.save(model, file)
        return len(file.getvalue())

    before = size()
    expected = logits(model, tokens)
    assert any(module._cached_weight is not None for module in model.modules() if isinstance(module, Linear))
    assert size() < before * 1.01
    assert torch.equal(logits(copy.deepcopy(model), tokens), expected)
    assert any(module._cached_weight is not None for module in model.modules() if isinstance(module, Linear))


def test_a_merged_copy_can_still_be_unmerged(sparse_llama, tokens) -> None:
    model = fill_adapter(by_peft(sparse_llama())).eval()
    expected = logits(model, tokens)
    model.merge_adapter()
    other = copy.deepcopy(model)
    other.unmerge_adapter()
    assert torch.equal(logits(other, tokens), expected)


@pytest.mark.parametrize(
    "add",
    [
        pytest.param(lambda base, config: base.add_adapter(config), marks=by_transformers),
        lambda base, config: inject_adapter_in_model(config, base),
    ],
)
@pytest.mark.filterwarnings("ignore:.*ensure_weight_tying")
def test_an_adapter_of_a_tied_head_is_merged_and_saved(sparse_llama, tokens, tmp_path, add) -> None:
    base = sparse_llama(tie_word_embeddings=True)
    add(base, make_config(target_modules=["q_proj", "lm_head"]))
    before = logits(fill_adapter(base).eval(), tokens)
    merged = peft_ext.merge_and_unload(base)
    assert torch.equal(logits(merged, tokens), before)
    merged.save_pretrained(tmp_path)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path).eval(), tokens), before)
