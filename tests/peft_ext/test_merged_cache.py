"""The kept weight of evaluation is never that of another base or another adapter, however they were changed."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers_peft import fill_adapter, logits
from helpers_training import make_config
from peft import get_peft_model
from torch import nn

from peft_ext import Linear, SQFTConfig
from peft_ext import merged_cache as module
from peft_ext.merged_cache import fingerprint

SIZE = 64


def net() -> nn.Module:
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(SIZE, SIZE), nn.ReLU(), nn.Linear(SIZE, SIZE))
    for layer in (base[0], base[2]):
        layer.weight.data[torch.rand(SIZE, SIZE) < 0.5] = 0
    settings = SQFTConfig(r=8, rank_choices=[8, 4], target_modules=["0", "2"], init_lora_weights=False)
    return get_peft_model(base, settings).eval()


def wanted(model, x):
    """The output with the weight made anew."""
    for layer in model.modules():
        if isinstance(layer, Linear):
            layer._cached_weight = None
    with torch.no_grad():
        return model(x)


def first(model) -> Linear:
    return model.base_model.model[0]


def new_weight(seed: int = 7) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(SIZE, SIZE, generator=generator)
    return weight * (torch.rand(SIZE, SIZE, generator=generator) < 0.5)


def replace(layer):
    layer.base().weight = nn.Parameter(new_weight(), requires_grad=False)


def assign_data(layer):
    layer.base().weight.data = new_weight()


def copy_into_data(layer):
    layer.base().weight.data.copy_(new_weight())


def scale_data(layer):
    layer.base().weight.data.mul_(2)


def negate_every_second_column(layer):
    layer.base().weight.data[:, 1::2] *= -1


def change_one_weight(layer):
    layer.base().weight.data[3, 5] += 1


def swap_two_rows(layer):
    layer.base().weight.data[[0, 1]] = layer.base().weight.data[[1, 0]]


def swap_two_columns(layer):
    layer.base().weight.data[:, [0, 2]] = layer.base().weight.data[:, [2, 0]]


def in_place(layer):
    with torch.no_grad():
        layer.base().weight.add_(new_weight())


def through_numpy(layer):
    layer.base().weight.detach().numpy()[0] = 1


def load(layer):
    layer.base().load_state_dict({"weight": new_weight(), "bias": layer.base().bias.clone()})


def load_assigned(layer):
    layer.base().load_state_dict({"weight": new_weight(), "bias": layer.base().bias.clone()}, assign=True)


def another_base_layer(layer):
    layer.base_layer = copy.deepcopy(layer.base_layer)
    layer.base_layer.weight.data = new_weight()


def factor_replaced(layer):
    layer.lora_A["default"].weight = nn.Parameter(torch.randn(8, SIZE))


def factor_data(layer):
    layer.lora_B["default"].weight.data.neg_()


def factor_module(layer):
    layer.lora_B["default"] = nn.Linear(8, SIZE, bias=False)


def other_scaling(layer):
    layer.set_scale("default", 3.0)


def other_rank(layer):
    layer.elastic["default"].ranks.chosen = 4


def dense_now(layer):
    layer.elastic["default"].sparse = False


CHANGES = [
    replace, assign_data, copy_into_data, scale_data, negate_every_second_column, change_one_weight, swap_two_rows,
    swap_two_columns, in_place, through_numpy, load, load_assigned, another_base_layer, factor_replaced, factor_data,
    factor_module, other_scaling, other_rank, dense_now,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_evaluation_follows(change) -> None:
    model, x = net(), torch.randn(4, SIZE)
    with torch.no_grad():
        before = model(x)
        change(first(model))
        after = model(x)
    assert torch.equal(after, wanted(model, x))
    assert not torch.equal(after, before)


def test_a_new_weight_at_the_old_address_is_seen() -> None:
    model, x = net(), torch.randn(4, SIZE)
    for seed in range(50):
        for weight in (torch.randn(SIZE, SIZE), new_weight(seed)):
            first(model).base().weight = nn.Parameter(weight, requires_grad=False)
        with torch.no_grad():
            found = model(x)
        assert torch.equal(found, wanted(model, x))


def test_an_adapter_deleted_and_added_under_its_name_is_another_one() -> None:
    model, x = net(), torch.randn(4, SIZE)
    with torch.no_grad():
        model(x)
        factors = {n: p.clone() for n, p in model.named_parameters() if "lora_" in n}
        model.base_model.delete_adapter("default")
        model.base_model.peft_config["default"] = SQFTConfig(r=8, target_modules=["0", "2"], sparse=False)
        model.base_model.inject_adapter(model.base_model.model, "default")
        model.base_model.set_adapter("default")
        model.load_state_dict(factors, strict=False)
        assert torch.equal(model.eval()(x), wanted(model, x))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_evaluation_follows_a_cast(dtype) -> None:
    model, x = net(), torch.randn(4, SIZE)
    with torch.no_grad():
        model(x)
        model.to(dtype)
        assert torch.equal(model(x.to(dtype)), wanted(model, x.to(dtype)))


def test_a_kept_weight_is_kept(monkeypatch) -> None:
    model, x, made = net(), torch.randn(4, SIZE), []
    merged_weight = Linear.merged_weight
    monkeypatch.setattr(Linear, "merged_weight", lambda *a: made.append(a[1]) or merged_weight(*a))
    with torch.no_grad():
        for _ in range(5):
            model(x)
    assert len(made) == 2  # one for each layer


def test_generate_looks_at_the_base_once(sparse_llama, tokens, monkeypatch) -> None:
    """A token that continues the cache trusts the forward before it; the next whole forward does not."""
    settings = SQFTConfig(r=8, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM")
    model = fill_adapter(get_peft_model(sparse_llama(), settings)).eval()
    looked = []
    monkeypatch.setattr(module, "fingerprint", lambda weight: looked.append(1) or fingerprint(weight))
    model(input_ids=tokens)
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    first_text = model.generate(input_ids=tokens, **options)
    layers = 4
    assert len(looked) == layers  # made once; each further token would be one more
    assert torch.equal(model.generate(input_ids=tokens, **options), first_text)
    assert len(looked) == 2 * layers
    for layer in model.modules():
        if isinstance(layer, Linear):
            layer.base().weight.data.mul_(3)
    with torch.no_grad():
        after = model(input_ids=tokens).logits
        assert torch.equal(after, wanted_logits(model, tokens))


def wanted_logits(model, tokens):
    for layer in model.modules():
        if isinstance(layer, Linear):
            layer._cached_weight = None
    return model(input_ids=tokens).logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width", [1, 2, 3, 7, 64, 129])
def test_a_fingerprint_is_of_every_bit(dtype, width) -> None:
    weight = torch.randn(5, width, generator=torch.Generator().manual_seed(2)).to(dtype)
    same = fingerprint(weight)
    assert same.shape == (5,)
    assert torch.equal(fingerprint(weight.clone()), same)
    for row, column in ((0, 0), (4, width - 1)):
        changed = weight.clone()
        changed[row, column] = torch.nextafter(changed[row, column].double(), torch.tensor(9.0).double()).to(dtype)
        if torch.equal(changed, weight):  # the next double is the same number in this dtype
            changed[row, column] = -changed[row, column]
        assert bool((fingerprint(changed) != same)[row])
    assert not torch.equal(fingerprint(-weight), same)


def test_a_fingerprint_takes_views_and_transposed_weights() -> None:
    storage = torch.randn(130)
    for start in range(3):
        view = storage[start : start + 128].view(8, 16)
        assert fingerprint(view).shape == (8,)
    assert torch.equal(fingerprint(storage[:128].view(8, 16).t()), fingerprint(storage[:128].view(8, 16).t().clone()))


@pytest.mark.parametrize("how", ["copied", "cropped", "filled without the adapter"])
def test_a_cache_that_this_weight_did_not_leave_is_not_trusted(sparse_llama, tokens, how) -> None:
    model = fill_adapter(get_peft_model(sparse_llama(), SQFTConfig(target_modules=["q_proj"]))).eval()
    layer = next(module for module in model.modules() if isinstance(module, Linear))
    with torch.no_grad():
        cache = model(input_ids=tokens[:1, :6], use_cache=True).past_key_values
        model(input_ids=tokens[:1, 6:], past_key_values=copy.deepcopy(cache))
        layer.base().weight.data.mul_(2)  # no version, id or address shows it
        if how == "copied":
            cache = copy.deepcopy(cache)
        elif how == "cropped":
            model(input_ids=tokens[:1, 6:8], past_key_values=cache)
            layer.base().weight.data.mul_(2)
            cache.crop(-2)
        else:
            with model.disable_adapter():
                model(input_ids=tokens[:1, 6:8], past_key_values=cache)
        again = copy.deepcopy(cache)
        found = model(input_ids=tokens[:1, 8:], past_key_values=cache).logits
        layer._cached_weight = None
        assert torch.equal(found, model(input_ids=tokens[:1, 8:], past_key_values=again).logits)


def test_generating_looks_at_the_base_once(sparse_llama, tokens, monkeypatch) -> None:
    model = fill_adapter(get_peft_model(sparse_llama(), SQFTConfig(target_modules=["q_proj"]))).eval()
    layers = sum(isinstance(module, Linear) for module in model.modules())
    looks: list[int] = []
    monkeypatch.setattr(module, "fingerprint", lambda weight: looks.append(1) or fingerprint(weight))
    for _ in range(2):
        model.generate(input_ids=tokens, max_new_tokens=8, min_new_tokens=8, do_sample=False)
    assert len(looks) == 2 * layers


def test_a_base_made_in_inference_mode_is_evaluated(sparse_llama, tokens) -> None:
    with torch.inference_mode():
        base = sparse_llama()
    model = fill_adapter(get_peft_model(base, make_config())).eval()
    expected = fill_adapter(get_peft_model(sparse_llama(), make_config())).eval()
    assert torch.equal(logits(model, tokens), logits(expected, tokens))
