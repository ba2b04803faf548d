"""QA-SparsePEFT in PEFT: what is trained, evaluated, merged and saved are the same INT4 codes."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from accelerate.hooks import attach_execution_device_hook
from helpers_int4 import CHOICES, make_pair
from helpers_peft import TARGETS, by_transformers, fill_adapter
from peft import AutoPeftModelForCausalLM, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, CompressedTensorsConfig

from peft_ext.model import sqft_layers
from sqft_plugins.checkpoint import load_model
from sqft_plugins.tune.extract import extract_adapter

pytestmark = pytest.mark.filterwarnings("ignore:.*put_rest_on_grid", "ignore:You passed `quantization_config`")
KINDS = ["int4", "float"]
GRIDS = [(32, True), (32, False), (64, True), (-1, False)]
LAYER = "model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def pair(tiny_model, tmp_path_factory):
    return make_pair(tiny_model, tmp_path_factory.mktemp("pair"))


def tuned(pair, kind, dtype=torch.float32, **changes):
    """A model with an adapter that has learned something, in evaluation mode."""
    model = get_peft_model(pair.load(kind, dtype), pair.config(kind, **changes))
    model.base_model.put_rest_on_grid()
    return fill_adapter(model).eval()


def training_logits(model, tokens):
    """What training computes: with gradients on, the layers do not take the weight that evaluation keeps."""
    with torch.enable_grad():
        return model(input_ids=tokens).logits.detach()


def logits(model, tokens):
    with torch.no_grad():
        return model(input_ids=tokens).logits


# --- one set of codes ---


@pytest.mark.parametrize(("group_size", "symmetric"), GRIDS)
@pytest.mark.parametrize("kind", KINDS)
def test_training_evaluation_and_merge_are_the_same_codes(
    tiny_model, tokens, tmp_path, kind, group_size, symmetric
) -> None:
    pair = make_pair(tiny_model, tmp_path, group_size=group_size, symmetric=symmetric)
    model = tuned(pair, kind)
    model.set_active_rank("median")
    codes, plain = model.base_model.quantized(), model.base_model.quantized(merged=False)
    folder = pair.folder()
    for name, weight in codes.items():
        stored = folder.quantized(name)
        assert torch.equal(weight.scale, stored.scale)
        assert torch.equal(weight.zero_point, stored.zero_point)
        assert int(weight.codes.max()) <= 15
        assert not weight.steps()[~folder.mask(name)].any()
        assert not torch.equal(weight.codes, plain[name].codes)
        if kind == "int4":
            assert torch.equal(plain[name].codes, stored.codes)
    trained = training_logits(model, tokens)
    torch.testing.assert_close(logits(model, tokens), trained, rtol=1e-5, atol=1e-6)  # blocks: another order of sums
    merged = model.merge_and_unload(safe_merge=True)
    torch.testing.assert_close(logits(merged, tokens), trained, rtol=1e-5, atol=1e-6)
    for name, weight in codes.items():
        assert torch.equal(merged.get_submodule(name).weight, weight.dequantize())
    if kind == "int4":
        assert torch.equal(merged.get_submodule(LAYER).weight_scale, folder.tensor(f"{LAYER}.weight_scale"))


@pytest.mark.parametrize("kind", KINDS)
def test_unmerging_restores_every_bit(pair, tokens, kind) -> None:
    model = tuned(pair, kind)
    before = {name: p.clone() for name, p in model.named_parameters()}
    unmerged = logits(model, tokens)
    for safe in (False, True):
        model.merge_adapter(safe_merge=safe)
        assert not torch.equal(model.get_submodule(f"base_model.model.{LAYER}.base_layer").weight, before_of(before))
        assert torch.equal(logits(model, tokens), unmerged)
        codes = model.base_model.quantized()  # of the unmerged base, also now
        model.unmerge_adapter()
        assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
        assert torch.equal(codes[LAYER].codes, model.base_model.quantized()[LAYER].codes)
    with model.disable_adapter():
        plain = load_model(pair.int4, dtype=torch.float32)
        if kind == "int4":
            assert torch.equal(logits(model, tokens), logits(plain, tokens))


def before_of(parameters):
    return parameters[f"base_model.model.{LAYER}.base_layer.weight"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_narrow_base_trains_the_codes_that_float32_merges(pair, tokens, tmp_path, dtype) -> None:
    narrow = tuned(pair, "int4", dtype)
    codes = narrow.base_model.quantized()
    assert torch.equal(logits(narrow, tokens), training_logits(narrow, tokens))
    narrow.save_pretrained(tmp_path)
    exact = PeftModel.from_pretrained(pair.load("int4"), tmp_path).eval()
    assert all(torch.equal(w.codes, codes[name].codes) for name, w in exact.base_model.quantized().items())
    merged = narrow.merge_and_unload()
    assert torch.equal(merged.get_submodule(LAYER).weight, codes[LAYER].dequantize(dtype))


def test_a_bfloat16_float_base_is_as_exact_as_its_own_numbers(tiny_model, tokens, tmp_path) -> None:
    pair = make_pair(tiny_model, tmp_path, family="gemma3")  # stored in bf16
    trained = tuned(pair, "float", torch.bfloat16)
    codes = trained.base_model.quantized()
    trained.save_pretrained(tmp_path / "adapter")
    exact = PeftModel.from_pretrained(pair.load("float"), tmp_path / "adapter").eval()
    assert all(torch.equal(w.codes, codes[name].codes) for name, w in exact.base_model.quantized().items())


def test_conv1d_layers_with_bias(tiny_model, tokens, tmp_path) -> None:
    pair = make_pair(tiny_model, tmp_path, family="gpt2")
    for kind in KINDS:
        model = tuned(pair, kind, target_modules=["c_attn", "c_fc"])
        trained, codes = training_logits(model, tokens), model.base_model.quantized()
        merged = model.merge_and_unload()
        torch.testing.assert_close(logits(merged, tokens), trained, rtol=1e-5, atol=1e-5)
        name = "transformer.h.0.attn.c_attn"
        assert torch.equal(merged.get_submodule(name).weight, codes[name].dequantize().T)
        assert codes[name].codes.shape == (192, 64)


# --- elastic ranks ---


@pytest.mark.parametrize("rank", ["max", "median", "min", {".*layers.0.*": 4, ".*layers.1.*": 8}])
def test_an_extracted_sub_adapter_merges_to_the_codes_of_the_super_adapter(pair, tokens, tmp_path, rank) -> None:
    model = tuned(pair, "int4")
    model.save_pretrained(tmp_path / "super")
    model.set_active_rank(rank)
    codes = model.base_model.quantized()
    extract_adapter(tmp_path / "super", tmp_path / "sub", rank)
    saved = json.loads((tmp_path / "sub" / "adapter_config.json").read_text())
    assert saved["peft_type"] == "SQFT"
    assert saved["quantization_aware"] is True
    assert saved["grid_stamp"] == model.active_peft_config.grid_stamp
    sub = PeftModel.from_pretrained(pair.load("int4"), tmp_path / "sub").eval()
    assert all(torch.equal(w.codes, codes[name].codes) for name, w in sub.base_model.quantized().items())
    assert torch.equal(logits(sub, tokens), logits(model, tokens))


def test_training_samples_ranks_and_evaluation_does_not(pair, tokens) -> None:
    model = tuned(pair, "int4", share_rank="module").train()
    torch.manual_seed(1)
    model(input_ids=tokens)
    drawn = {layer.elastic["default"].ranks.drawn for _, layer in sqft_layers(model.base_model.model, "default")}
    assert drawn == set(CHOICES)
    model.eval()
    outputs = {rank: logits(model, tokens) for rank in CHOICES if model.set_active_rank(rank)}
    assert not torch.equal(outputs[8], outputs[4])
    model.set_active_rank(8)
    assert torch.equal(logits(model, tokens), outputs[8])


def test_codes_are_those_of_the_chosen_rank_also_after_a_training_step(pair, tokens) -> None:
    model = tuned(pair, "int4", share_rank="module")
    codes = model.base_model.quantized()
    model.train()(input_ids=tokens)
    drawn = {layer.elastic["default"].ranks.drawn for _, layer in sqft_layers(model.base_model.model, "default")}
    assert drawn - {max(CHOICES)}
    assert all(torch.equal(w.codes, codes[name].codes) for name, w in model.base_model.quantized().items())


def test_a_base_placed_on_devices_by_accelerate_is_trained_and_evaluated(pair, tokens) -> None:
    """device_map over several GPUs: every layer has a hook that would move its input."""
    expected = tuned(pair, "int4")
    base = pair.load("int4")
    attach_execution_device_hook(base, "cpu")
    model = fill_adapter(get_peft_model(base, pair.config("int4"))).eval()
    assert torch.equal(logits(model, tokens), logits(expected, tokens))
    assert torch.equal(training_logits(model, tokens), training_logits(expected, tokens))


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_gives_the_same_gradients(pair, tokens, reentrant) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = tuned(pair, "int4").train()
        if checkpointing:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        torch.manual_seed(11)
        model(input_ids=tokens, labels=tokens).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-5, atol=1e-7)


# --- saving and loading ---


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_holds_lora_weights_only_and_remembers_its_base(pair, tokens, tmp_path, kind) -> None:
    model = tuned(pair, kind)
    expected = logits(model, tokens)
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "adapter_model.safetensors")
    assert stored
    assert all("lora_A" in name or "lora_B" in name for name in stored)
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert saved["grid"] == (None if kind == "int4" else str(pair.int4))
    assert saved["grid_stamp"]["base"] == kind
    assert saved["grid_stamp"]["group_size"] == 32
    assert saved["mask_hash"] == model.active_peft_config.mask_hash
    again = PeftModel.from_pretrained(pair.load(kind), tmp_path).eval()
    again.base_model.put_rest_on_grid()
    assert torch.equal(logits(again, tokens), expected)
    low = PeftModel.from_pretrained(pair.load(kind), tmp_path, low_cpu_mem_usage=True).eval()
    low.base_model.put_rest_on_grid()
    assert torch.equal(logits(low, tokens), expected)


def test_stock_transformers_and_auto_classes_load_the_base(pair, tokens, tmp_path) -> None:
    dequantize = {"quantization_config": CompressedTensorsConfig(dequantize=True), "dtype": torch.float32}
    base = AutoModelForCausalLM.from_pretrained(pair.int4, **dequantize)
    model = fill_adapter(get_peft_model(base, pair.config("int4"))).eval()
    model.save_pretrained(tmp_path)
    auto = AutoPeftModelForCausalLM.from_pretrained(tmp_path, **dequantize).eval()
    assert torch.equal(logits(auto, tokens), logits(model, tokens))


@by_transformers
def test_transformers_own_add_adapter_finds_the_grid(pair, tokens) -> None:
    model = pair.load("int4")
    model.add_adapter(pair.config("int4"))
    model.train()
    model(input_ids=tokens, labels=tokens).loss.backward()
    assert all(layer.elastic["default"].grid is not None for _, layer in sqft_layers(model, "default"))


def test_a_base_from_the_hub_finds_its_mask_in_the_cache(pair, tmp_path, monkeypatch) -> None:
    commit = "a" * 40
    cache = tmp_path / "models--someone--sparse-int4"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text(commit)
    (cache / "snapshots").mkdir()
    (cache / "snapshots" / commit).symlink_to(pair.int4)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    model = pair.load("int4")
    model.name_or_path = model.config._name_or_path = "someone/sparse-int4"
    adapted = get_peft_model(model, pair.config("int4"))
    assert adapted.active_peft_config.grid_stamp["base"] == "int4"


def test_weights_that_come_later_are_taken_on_trust(pair, tokens) -> None:
    # FSDP's cpu_ram_efficient_loading: all processes but the first attach the adapter to a base of zeros
    expected = logits(tuned(pair, "int4"), tokens)
    base = pair.load("int4")
    state = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    for parameter in base.parameters():
        parameter.data.zero_()
    model = fill_adapter(get_peft_model(base, pair.config("int4"))).eval()
    assert model.active_peft_config.grid_stamp is None
    names = {name.replace(".base_layer", ""): name for name in model.base_model.model.state_dict()}
    model.base_model.model.load_state_dict({names[name]: tensor for name, tensor in state.items()}, strict=False)
    assert torch.equal(logits(model, tokens), expected)


def test_the_rest_of_the_model_can_be_put_on_the_grid(pair, tokens) -> None:
    with pytest.warns(UserWarning, match=r"mlp.gate_proj and 3 more modules are INT4 in .* not adapted: float here"):
        model = get_peft_model(pair.load("float"), pair.config("float"))
    rest = model.base_model.put_rest_on_grid()
    assert sorted({name.split(".")[-1] for name in rest}) == ["gate_proj", "o_proj"]
    folder = pair.folder()
    assert all(
        torch.equal(model.base_model.model.get_submodule(n).weight, folder.quantized(n).dequantize()) for n in rest
    )
    assert model.base_model.put_rest_on_grid() == []
    assert get_peft_model(pair.load("int4"), pair.config("int4")).base_model.put_rest_on_grid() == []


def test_a_model_with_a_fixed_rank_can_be_copied(pair, tokens) -> None:
    model = tuned(pair, "int4", rank_choices=None, r=4, target_modules=[TARGETS[0]])
    assert torch.equal(logits(copy.deepcopy(model), tokens), logits(model, tokens))
