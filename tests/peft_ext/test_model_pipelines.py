"""The paper's pipelines, as the table in docs/reference/verbs.md lists them: each trains, is saved, loads again, and
merges or says why not."""

from __future__ import annotations

import pytest
import torch
from helpers_int4 import CHOICES, make_pair
from helpers_peft import TARGETS
from peft import PeftModel, get_peft_model

from peft_ext import SQFTConfig
from sqft_plugins.errors import SQFTError

pytestmark = pytest.mark.filterwarnings("ignore:.*put_rest_on_grid")
# base, flags of SQFTConfig, what a merge does with the zeros
PIPELINES = {
    "LoRA": ("float", {"sparse": False}, "fills"),
    "Shears": ("float", {"sparse": False, "rank_choices": CHOICES}, "fills"),
    "LoRA over INT4": ("int4", {"sparse": False}, "refused"),
    "SQFT": ("int4", {"sparse": False, "rank_choices": CHOICES}, "refused"),
    "SparsePEFT, fixed rank": ("float", {}, "keeps"),
    "SparsePEFT": ("float", {"rank_choices": CHOICES}, "keeps"),
    "QA-SparsePEFT, fixed rank": ("int4", {"quantization_aware": True}, "keeps"),
    "QA-SparsePEFT": ("int4", {"quantization_aware": True, "rank_choices": CHOICES}, "keeps"),
    "QA-SparsePEFT over the float base": ("float", {"quantization_aware": True, "rank_choices": CHOICES}, "keeps"),
}


@pytest.fixture(scope="module")
def pair(tiny_model, tmp_path_factory):
    return make_pair(tiny_model, tmp_path_factory.mktemp("pair"))


@pytest.mark.parametrize("name", PIPELINES)
def test_a_pipeline_of_the_paper(pair, tokens, tmp_path, name) -> None:
    kind, flags, merge = PIPELINES[name]
    if flags.get("quantization_aware") and kind == "float":
        flags = {**flags, "grid": str(pair.int4)}
    torch.manual_seed(0)
    config = SQFTConfig(r=8, lora_alpha=16, target_modules=TARGETS, task_type="CAUSAL_LM", **flags)
    model = get_peft_model(pair.load(kind), config).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(16):
        optimizer.zero_grad()
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.4  # random weights learn little

    model.eval()
    model.set_active_rank("min")
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = model(input_ids=tokens).logits
    again = PeftModel.from_pretrained(pair.load(kind), tmp_path).eval()
    again.set_active_rank("min")
    with torch.no_grad():
        assert torch.equal(again(input_ids=tokens).logits, expected)

    pruned = {name: p == 0 for name, p in pair.load("float").named_parameters() if "_proj" in name}
    if merge == "refused":
        with pytest.raises(SQFTError, match="its base is quantized: rounded to the grid"):
            again.merge_and_unload()
        return
    merged = again.merge_and_unload()
    with torch.no_grad():
        torch.testing.assert_close(merged(input_ids=tokens).logits, expected, rtol=1e-5, atol=1e-5)
    adapted = {n: p for n, p in merged.named_parameters() if n in pruned and n.split(".")[-2] in TARGETS}
    assert len(adapted) == 10
    filled = sum(int((p[pruned[n]] != 0).sum()) for n, p in adapted.items())
    total = sum(int(pruned[n].sum()) for n in adapted)
    assert filled == 0 if merge == "keeps" else filled > 0.9 * total
