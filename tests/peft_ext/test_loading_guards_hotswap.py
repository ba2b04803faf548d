"""PEFT's hotswap: another adapter takes the place of the first one, also in a compiled model."""

from __future__ import annotations

import pytest
import torch
from helpers_peft import fill_adapter, sparsify
from helpers_training import make_config
from peft import PeftModel, get_peft_model
from peft.utils.hotswap import hotswap_adapter, prepare_model_for_compiled_hotswap
from torch._dynamo.testing import CompileCounterWithBackend


@pytest.fixture
def save(sparse_llama, tmp_path):
    """`save(name, scale, base=None, **config)` → the folder of a filled adapter."""

    def save(name: str, scale: float, base=None, **changes):
        model = fill_adapter(get_peft_model(base or sparse_llama(), make_config(**changes)), scale)
        model.save_pretrained(tmp_path / name)
        return tmp_path / name

    return save


@pytest.fixture
def logits(tokens):
    def logits(model):
        with torch.no_grad():
            return model(tokens).logits

    return logits


def load(sparse_llama, folder):
    return PeftModel.from_pretrained(sparse_llama(), folder).eval()


def test_a_swapped_adapter_gives_its_own_logits(sparse_llama, save, logits) -> None:
    """In evaluation mode, where the merged weight of the first adapter has been kept."""
    first, second = save("first", 0.05), save("second", 0.1)
    model = load(sparse_llama, first)
    before = logits(model)
    hotswap_adapter(model, second, adapter_name="default", torch_device="cpu")
    for rank in (8, 4):
        expected = load(sparse_llama, second)
        expected.set_active_rank(rank)
        model.set_active_rank(rank)
        assert torch.equal(logits(model), logits(expected))
    assert not torch.equal(before, logits(model))


@pytest.mark.parametrize("ranks", [(8, 4), (4, 8)])
def test_adapters_of_different_fixed_ranks_swap(sparse_llama, save, logits, ranks) -> None:
    folders = [save(f"r{rank}", 0.1, rank_choices=None, r=rank, lora_alpha=12) for rank in ranks]
    model = load(sparse_llama, folders[0])
    prepare_model_for_compiled_hotswap(model, target_rank=8)
    torch.testing.assert_close(logits(model), logits(load(sparse_llama, folders[0])), rtol=1e-5, atol=1e-5)
    hotswap_adapter(model, folders[1], adapter_name="default", torch_device="cpu")
    torch.testing.assert_close(logits(model), logits(load(sparse_llama, folders[1])), rtol=1e-5, atol=1e-5)
    merged = model.merge_and_unload()
    torch.testing.assert_close(logits(merged), logits(load(sparse_llama, folders[1])), rtol=1e-5, atol=1e-5)


def test_a_compiled_model_swaps_without_compiling_again(sparse_llama, save, logits) -> None:
    def base():
        return sparse_llama(num_hidden_layers=1)

    first, second = (save(f"r{rank}", 0.1, base(), rank_choices=None, r=rank, lora_alpha=12) for rank in (4, 8))
    model = load(base, first)
    prepare_model_for_compiled_hotswap(model, target_rank=8)
    torch._dynamo.reset()
    backend = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    torch.testing.assert_close(logits(compiled), logits(load(base, first)), rtol=1e-5, atol=1e-5)
    hotswap_adapter(compiled, second, adapter_name="default", torch_device="cpu")
    torch.testing.assert_close(logits(compiled), logits(load(base, second)), rtol=1e-5, atol=1e-5)
    assert backend.frame_count == 1
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"sparse": False}, "sparse"),
        ({"rank_choices": [8, 4]}, "rank_choices"),
        ({"rank_choices": None}, "rank_choices"),
    ],
)
def test_an_adapter_of_another_kind_is_refused_by_field(sparse_llama, save, changes, key) -> None:
    first, second = save("first", 0.05), save("second", 0.1, **changes)
    with pytest.raises(ValueError, match=f"Configs are incompatible: for {key}, "):
        hotswap_adapter(load(sparse_llama, first), second, adapter_name="default", torch_device="cpu")


def test_an_adapter_of_another_base_is_refused(sparse_llama, save, tiny_model, logits) -> None:
    first, second = save("first", 0.05), save("second", 0.1, base=sparsify(tiny_model("llama"), 0.6))
    model = load(sparse_llama, first)
    before = logits(model)
    with pytest.raises(ValueError, match="Configs are incompatible: for mask_hash, "):
        hotswap_adapter(model, second, adapter_name="default", torch_device="cpu")
    assert torch.equal(logits(model), before)
