"""An adapter that settles: trained as a float one over the codes, rounded once, and the same model from then on."""

from __future__ import annotations

import pytest
import torch
from helpers_int4 import CHOICES, make_pair
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from sqft_plugins.adapter import AdapterFolder
from sqft_plugins.adapter.saved import SavedAdapter
from sqft_plugins.errors import GridError, SQFTError
from sqft_plugins.tune.merge import merge_folder

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def pair(tiny_model, tmp_path_factory):
    return make_pair(tiny_model, tmp_path_factory.mktemp("settle"), group_size=32)


def trained(pair, kind="int4", dtype=torch.float32, **changes):
    """A model with an adapter after some steps."""
    torch.manual_seed(1)
    model = get_peft_model(pair.load(kind, dtype), pair.config(kind, rounding="compensated", **changes))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    for _ in range(6):
        model(input_ids=batch(), labels=batch()).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def batch(seed=3):
    return torch.randint(4, 600, (8, 24), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def logits(model):
    return model(input_ids=batch(5)).logits


@pytest.mark.parametrize("kind", ["int4", "float"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_unmerged_merged_and_loaded_again_are_the_same_model(pair, tmp_path, kind, dtype) -> None:
    model = trained(pair, kind, dtype)
    before = {name: tensor.clone() for name, tensor in model.named_parameters()}
    model.base_model.settle(batch())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.named_parameters())

    by_rank = {}
    for rank in CHOICES:
        model.base_model.set_active_rank(rank)
        by_rank[rank] = logits(model)
        merged = model.base_model.quantized()
        folder = pair.folder()
        assert not any(weight.lost_zeros(folder.kept(name)) for name, weight in merged.items())
    assert not torch.equal(by_rank[8], by_rank[4])

    model.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(pair.load(kind, dtype), tmp_path / "adapter", config=None).eval()
    for rank in CHOICES:
        again.base_model.set_active_rank(rank)
        assert torch.equal(logits(again), by_rank[rank])
    assert torch.equal(logits(again.merge_and_unload()), by_rank[CHOICES[-1]])


def test_a_step_trains_a_float_adapter_over_the_codes(pair) -> None:
    """The logits are those of x Wᵀ + s · x ((B A) ⊙ M)ᵀ, by hand, as long as it has not settled."""
    model = trained(pair)
    base, folder = pair.load("int4"), pair.folder()
    for name, layer in ((n, m) for n, m in model.base_model.model.named_modules() if hasattr(m, "lora_codes")):
        A, B, scaling = layer.sub_adapter("default")
        delta = scaling * (B @ A).detach() * folder.kept(name)
        base.get_submodule(name).weight.data += delta
    torch.testing.assert_close(logits(model), logits(base), atol=1e-5, rtol=0)  # sums in another order


def test_codes_do_not_count_under_another_a_and_b(pair) -> None:
    model = trained(pair)
    model.base_model.settle(batch(), ranks=[8])
    settled = logits(model)
    layer = next(m for m in model.modules() if hasattr(m, "lora_codes"))

    factor = layer.factor("A", "default")
    before = factor.detach().clone()
    with torch.no_grad():
        factor[0, 0] += 1.0
    assert not torch.equal(logits(model), settled)  # a float adapter again
    with pytest.raises(SQFTError, match="no codes of rank 8 that belong to its A and B"):
        model.merge_adapter()

    with torch.no_grad():
        factor.copy_(before)
    assert torch.equal(logits(model), settled)
    factor.data[0, 0] += 1.0  # which no version counter shows
    with pytest.raises(SQFTError, match="no codes of rank 8 that belong to its A and B"):
        logits(model)


def test_a_rank_that_has_not_settled_is_not_merged(pair) -> None:
    model = trained(pair)
    model.base_model.settle(batch(), ranks=[8])
    model.base_model.set_active_rank(6)
    with pytest.raises(SQFTError, match="no codes of rank 6"):
        model.base_model.quantized()


def test_training_goes_on_after_it(pair) -> None:
    model = trained(pair)
    model.base_model.settle(batch())
    settled = logits(model)
    model.train()
    model(input_ids=batch(), labels=batch()).loss.backward()
    assert any(p.grad is not None and p.grad.any() for n, p in model.named_parameters() if "lora_A" in n)
    assert torch.equal(logits(model.eval()), settled)


def test_it_follows_what_was_learned_where_nearest_rounding_does_not(pair) -> None:
    model = trained(pair, rank_choices=None)
    base, wanted = logits(pair.load("int4")), logits(model)
    model.base_model.settle(batch())
    settled = logits(model)
    assert (settled - wanted).norm() < (base - wanted).norm()


def test_folder_merge_sub_adapter_and_value_plane_have_the_same_codes(pair, tmp_path, tiny_tokenizer) -> None:
    tiny_tokenizer("byte-level").save_pretrained(pair.int4)
    model = trained(pair)
    model.base_model.settle(batch())
    model.base_model.set_active_rank(6)
    codes = {name: weight.codes for name, weight in model.base_model.quantized().items()}
    model.save_pretrained(tmp_path / "adapter")
    adapter = AdapterFolder(tmp_path / "adapter")
    assert adapter.settles
    assert adapter.others == []

    merge_folder(pair.int4, tmp_path / "adapter", tmp_path / "merged", rank=6)
    merged = type(pair.folder())(tmp_path / "merged")
    assert all(torch.equal(merged.quantized(name).codes, own) for name, own in codes.items())

    (tmp_path / "cut").mkdir()
    saved = SavedAdapter(tmp_path / "adapter")
    saved.tuner.extract(tmp_path / "adapter", tmp_path / "cut", 6)
    cut = SavedAdapter(tmp_path / "cut")
    tuned, _ = cut.load(pair.load("int4"), "max")
    assert all(torch.equal(w.codes, codes[name]) for name, w in tuned.base_model.quantized().items())

    planes = pytest.importorskip("vllm_ext.planes.over_int4")
    source = planes.OverInt4(pair.folder(), adapter)
    made = source.merged(source.ranks(6))
    assert all(torch.equal(made.codes[name], own) for name, own in codes.items())


def test_an_adapter_that_has_not_settled_is_said_and_a_damaged_one_refused(pair, tmp_path) -> None:
    model = trained(pair)
    model.save_pretrained(tmp_path / "early")
    with pytest.warns(UserWarning, match="has not settled"):
        PeftModel.from_pretrained(pair.load("int4"), tmp_path / "early")

    model.base_model.settle(batch(), ranks=[8])
    model.save_pretrained(tmp_path / "cut-off")
    tensors = load_file(tmp_path / "cut-off" / WEIGHTS)
    name = next(name for name in tensors if ".lora_codes." in name)
    tensors[name] = tensors[name][:-4].clone()
    save_file(tensors, tmp_path / "cut-off" / WEIGHTS, metadata={"format": "pt"})
    again = PeftModel.from_pretrained(pair.load("int4"), tmp_path / "cut-off").eval()
    with pytest.raises(GridError, match="not one of a weight"):
        again.base_model.quantized()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quantization_aware": False, "grid": None}, "needs quantization_aware=True"),
        ({"rounding": "up"}, "'nearest' or 'compensated'"),
    ],
)
def test_what_cannot_work_is_refused(pair, changes, message) -> None:
    with pytest.raises(SQFTError, match=message):
        pair.config("int4", **{"rounding": "compensated", **changes})


def test_settling_is_for_adapters_that_settle(pair) -> None:
    model = get_peft_model(pair.load("int4"), pair.config("int4"))
    with pytest.raises(SQFTError, match="rounding='compensated'"):
        model.base_model.settle(batch())


def test_an_error_in_it_leaves_base_and_codes_as_they_were(pair, monkeypatch) -> None:
    from peft_ext import settle

    model = trained(pair, rank_choices=None)
    before = {name: tensor.clone() for name, tensor in model.named_parameters()}
    calls = []

    def fails_in_the_second_block(*args):
        calls.append(args)
        if len(calls) == 5:
            raise RuntimeError("out of memory")
        return real(*args)

    real = settle.compensated
    monkeypatch.setattr(settle, "compensated", fails_in_the_second_block)
    with pytest.raises(RuntimeError, match="out of memory"):
        model.base_model.settle(batch())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.named_parameters())
    with pytest.raises(SQFTError, match="no codes"):
        model.base_model.quantized()


def test_merged_weights_and_unknown_ranks_are_refused(pair) -> None:
    model = trained(pair)
    with pytest.raises(SQFTError, match=r"ranks=\[5\]: no layer has the rank 5"):
        model.base_model.settle(batch(), ranks=[5])
    model.base_model.settle(batch())
    model.merge_adapter()
    with pytest.raises(SQFTError, match="merged or sharded"):
        model.base_model.settle(batch())


def test_codes_of_another_rounding_are_not_loaded_into_a_name_in_use(pair, tmp_path) -> None:
    model = trained(pair)
    model.base_model.settle(batch())
    model.save_pretrained(tmp_path / "adapter")
    other = get_peft_model(pair.load("int4"), pair.config("int4"))
    with pytest.raises(SQFTError, match="rounding"):
        other.load_adapter(tmp_path / "adapter", "default")


def test_stale_codes_do_not_count_in_compiled_code_either(pair) -> None:
    model = trained(pair, rank_choices=None)
    model.base_model.settle(batch())
    layer = next(m for m in model.modules() if hasattr(m, "lora_codes"))
    with torch.no_grad():
        layer.factor("B", "default").add_(0.2)
        x = torch.randn(2, layer.base().weight.shape[1])
        wanted = layer(x)
        compiled = torch.compile(layer, backend="eager")
        torch.testing.assert_close(compiled(x), wanted)
