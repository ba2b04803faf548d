"""What is written of an adapter is what loads again."""

from __future__ import annotations

import pytest
import torch
from helpers_peft import fill_adapter, sparsify
from peft import PeftModel, get_peft_model

from peft_ext import SQFTConfig
from sqft_plugins.errors import MismatchError


def logits(model, tokens):
    with torch.no_grad():
        return model(input_ids=tokens).logits


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.filterwarnings("ignore:.*ensure_weight_tying")
def test_a_merged_head_is_saved_as_it_was(sparse_llama, tokens, tmp_path, tied) -> None:
    config = SQFTConfig(target_modules=["q_proj", "lm_head"])
    model = fill_adapter(get_peft_model(sparse_llama(tie_word_embeddings=tied), config)).eval()
    before = logits(model, tokens)
    model.merge_adapter()
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(model, tokens), before)
    loaded = PeftModel.from_pretrained(sparse_llama(tie_word_embeddings=tied), tmp_path).eval()
    assert torch.equal(logits(loaded, tokens), before)


@pytest.mark.parametrize("assign", [True, False])
def test_the_hash_is_that_of_the_base_at_hand(sparse_llama, tiny_model, tokens, tmp_path, assign) -> None:
    def other():
        return sparsify(tiny_model("llama"), 0.3)

    config = SQFTConfig(target_modules=["q_proj"])
    source = fill_adapter(get_peft_model(other(), config)).eval()
    model = get_peft_model(sparse_llama(), SQFTConfig(target_modules=["q_proj"])).eval()
    model.load_state_dict(source.state_dict(), assign=assign)
    source.save_pretrained(tmp_path / "source")
    model.load_adapter(tmp_path / "source", "default")  # it belongs there now
    with pytest.warns(UserWarning, match="has other zeros than when it was added"):
        model.save_pretrained(tmp_path / "new")
    loaded = PeftModel.from_pretrained(other(), tmp_path / "new").eval()
    assert torch.equal(logits(loaded, tokens), logits(source, tokens))
    with pytest.raises(MismatchError, match="other zeros"):
        PeftModel.from_pretrained(sparse_llama(), tmp_path / "new")
