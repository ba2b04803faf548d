"""Every way to load tensors under an adapter's name: what was trained over other zeros, through another grid, or with
other settings is refused, and a warning says what was not checked."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from helpers_int4 import make_pair
from helpers_peft import fill_adapter, sparsify
from helpers_training import make_config, train
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.utils.hotswap import hotswap_adapter, hotswap_adapter_from_state_dict, prepare_model_for_compiled_hotswap
from safetensors.torch import load_file
from transformers import Trainer, TrainingArguments

from peft_ext import SQFTConfig
from peft_ext.loading_guards import newer_peft_wanted
from sqft_plugins.errors import DependencyError, MismatchError, SQFTError

FILE = "adapter_model.safetensors"


@pytest.fixture
def other_base(tiny_model):
    return lambda: sparsify(tiny_model("llama"), 0.3)


@pytest.fixture
def save(sparse_llama, tmp_path):
    """`save(name, base=None, **config)` → the folder of a filled adapter."""

    def save(name: str, base=None, **changes):
        fill_adapter(get_peft_model(base or sparse_llama(), make_config(**changes))).save_pretrained(tmp_path / name)
        return tmp_path / name

    return save


def logits(model, tokens):
    with torch.no_grad():
        return model(input_ids=tokens).logits


def tensors(model) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if "lora_" in name}


def assert_untouched(model, before) -> None:
    assert all(torch.equal(tensor, before[name]) for name, tensor in tensors(model).items())


# --- the base ---


def test_no_way_to_load_takes_an_adapter_of_another_base(sparse_llama, other_base, save) -> None:
    folder = save("other", other_base())
    model = get_peft_model(sparse_llama(), make_config())
    before, refused = tensors(model), "was trained over a base with other zeros"
    own = model.peft_config["default"]
    ways = {
        "a name in use": lambda: model.load_adapter(folder, "default"),
        "in use, to be trained": lambda: model.load_adapter(folder, "default", is_trainable=True),
        "a new name": lambda: model.load_adapter(folder, "second"),
        "from_pretrained": lambda: PeftModel.from_pretrained(sparse_llama(), folder),
        "its settings given": lambda: PeftModel.from_pretrained(sparse_llama(), folder, config=make_config()),
        "those of a model": lambda: PeftModel.from_pretrained(sparse_llama(), folder, config=own),
        "low_cpu_mem_usage": lambda: PeftModel.from_pretrained(sparse_llama(), folder, low_cpu_mem_usage=True),
    }  # fmt: skip
    if newer_peft_wanted() is None:
        ways["transformers"] = lambda: sparse_llama().load_adapter(str(folder))
    for load_it in ways.values():
        with pytest.raises(MismatchError, match=refused):
            load_it()
        assert list(model.peft_config) == ["default"]
        assert_untouched(model, before)


def test_a_base_that_was_changed_after_attaching_is_looked_at_anew(sparse_llama, other_base, save) -> None:
    folder, model = save("own"), get_peft_model(sparse_llama(), make_config())
    model.load_adapter(folder, "default")
    changed = {n.replace("_proj.weight", "_proj.base_layer.weight"): p for n, p in other_base().state_dict().items()}
    model.base_model.model.load_state_dict(changed, strict=False)
    with pytest.raises(MismatchError, match="other zeros"):
        model.load_adapter(folder, "default")


def test_an_adapter_comes_back_under_its_name(sparse_llama, save, tokens) -> None:
    folder = save("own")
    model = get_peft_model(sparse_llama(), make_config())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            model.load_adapter(folder, "default")
    expected = PeftModel.from_pretrained(sparse_llama(), folder).eval()
    assert torch.equal(logits(model.eval(), tokens), logits(expected, tokens))


def test_a_run_is_not_resumed_over_another_base(sparse_llama, other_base, tmp_path) -> None:
    train(sparse_llama(), tmp_path, steps=4)
    with pytest.raises(MismatchError, match="other zeros"):
        train(other_base(), tmp_path, steps=8, resume=True)
    train(sparse_llama(), tmp_path, steps=8, resume=True)


def test_the_best_checkpoint_is_loaded_over_the_base_that_was_trained(sparse_llama, tmp_path) -> None:
    model = get_peft_model(sparse_llama(), make_config())
    data = [{"input_ids": torch.arange(4, 14), "labels": torch.arange(4, 14)}] * 4
    arguments = TrainingArguments(
        str(tmp_path), max_steps=2, eval_strategy="steps", eval_steps=1, save_steps=1, load_best_model_at_end=True,
        report_to="none", use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*was not checked")
        Trainer(model, arguments, train_dataset=data, eval_dataset=data).train()


# --- what the tensors mean ---


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"sparse": False}, "sparse"),
        ({"lora_alpha": 8}, "lora_alpha"),
        ({"use_rslora": True}, "use_rslora"),
        ({"r": 4, "rank_choices": None}, "r"),
        ({"rank_choices": [8, 4]}, "rank_choices"),
        ({"rank_choices": None}, "rank_choices"),
        ({"alpha_pattern": {"q_proj": 2}}, "alpha_pattern"),
        ({"lora_bias": True}, "lora_bias"),
    ],
)
def test_an_adapter_of_other_settings_does_not_take_a_name(sparse_llama, save, changes, field) -> None:
    folder = save("other", **changes)
    model = get_peft_model(sparse_llama(), make_config())
    before = tensors(model)
    with pytest.raises(MismatchError, match=rf"has {field}=.* its tensors would mean something else. Load it under"):
        model.load_adapter(folder, "default")
    assert_untouched(model, before)


@pytest.mark.parametrize("changes", [{"share_rank": "layer"}, {"lora_dropout": 0.1}, {"rank_choices": [8, 7, 6, 4]}])
def test_settings_of_training_alone_may_differ(sparse_llama, save, changes) -> None:
    folder = save("other", **changes)
    model = get_peft_model(sparse_llama(), make_config())
    model.load_adapter(folder, "default")
    saved = load_file(folder / "adapter_model.safetensors")
    loaded = get_peft_model_state_dict(model)
    assert saved.keys() == loaded.keys()
    assert all(torch.equal(saved[name], loaded[name]) for name in saved)


def test_types_are_not_taken_for_each_other(sparse_llama, save, tmp_path) -> None:
    lora = LoraConfig(r=8, lora_alpha=16, target_modules=make_config().target_modules, task_type="CAUSAL_LM")
    plain = get_peft_model(sparse_llama(), lora)
    plain.save_pretrained(tmp_path / "lora")
    with pytest.raises(MismatchError, match="is a SQFT adapter, and 'default' here a LORA one"):
        plain.load_adapter(save("own"), "default")
    with pytest.raises(MismatchError, match="is a LORA adapter, and 'default' here a SQFT one"):
        get_peft_model(sparse_llama(), make_config()).load_adapter(tmp_path / "lora", "default")
    plain.load_adapter(tmp_path / "lora", "default")  # LoRA's own loading is as it was
    plain.load_adapter(tmp_path / "lora", "second")


# --- grids ---


@pytest.fixture(scope="module")
def pairs(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    return [make_pair(tiny_model, folder / str(size), group_size=size) for size in (32, 64)]


def test_a_quantization_aware_name_takes_only_its_own_grid(pairs, tmp_path) -> None:
    for number, pair in enumerate(pairs):
        model = fill_adapter(get_peft_model(pair.load("float"), pair.config("float")))
        model.save_pretrained(tmp_path / f"qa{number}")
    masked = pairs[0].config("float", quantization_aware=False, grid=None)
    get_peft_model(pairs[0].load("float"), masked).save_pretrained(tmp_path / "masked")

    model = get_peft_model(pairs[0].load("float"), pairs[0].config("float"))
    before = tensors(model)
    with pytest.raises(MismatchError, match="was trained through other groups"):
        model.load_adapter(tmp_path / "qa1", "default")
    with pytest.raises(MismatchError, match="has quantization_aware=False"):
        model.load_adapter(tmp_path / "masked", "default")
    assert_untouched(model, before)
    model.load_adapter(tmp_path / "qa0", "default")

    model = get_peft_model(pairs[0].load("int4"), pairs[0].config("int4"))
    with pytest.raises(MismatchError, match="was trained over the float base"):
        model.load_adapter(tmp_path / "qa0", "default")


# --- tensors without a configuration ---


def test_a_warning_says_what_was_not_checked(sparse_llama, save) -> None:
    folder = save("own")
    model, plain = get_peft_model(sparse_llama(), make_config()), load_file(folder / FILE)
    with pytest.warns(UserWarning, match="came without its adapter_config.json: .* was not checked") as warned:
        set_peft_model_state_dict(model, plain)
    assert len([each for each in warned if "was not checked" in str(each.message)]) == 1
    with pytest.warns(UserWarning, match="was not checked"):
        model.load_state_dict(tensors(model), strict=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.load_state_dict(model.state_dict())  # the base's own weights with it


@pytest.mark.parametrize("change", ["mask_hash", "whole"])
def test_a_warning_names_a_folder_that_does_not_say_over_what(sparse_llama, save, change) -> None:
    folder = save("own")
    file = folder / "adapter_config.json"
    if change == "whole":
        file.unlink()
    else:
        file.write_text(json.dumps(json.loads(file.read_text()) | {"mask_hash": None}))
    model = get_peft_model(sparse_llama(), make_config())
    with pytest.warns(UserWarning, match="was not checked"):
        model.load_adapter(folder, "default")


def test_a_warning_counts_the_tensors_that_have_no_place(sparse_llama, save) -> None:
    folder = save("more", sparse=False, target_modules=["q_proj", "o_proj"])
    model = get_peft_model(sparse_llama(), make_config(sparse=False, target_modules=["q_proj"]))
    with pytest.warns(UserWarning, match=r"4 tensors of .* have no place in adapter 'default'"):
        model.load_adapter(folder, "default")


def test_loading_through_the_api_in_memory_still_works(sparse_llama, save, tokens) -> None:
    source = PeftModel.from_pretrained(sparse_llama(), save("own")).eval()
    model = get_peft_model(sparse_llama(), make_config()).eval()
    with pytest.warns(UserWarning, match="was not checked"):
        set_peft_model_state_dict(model, get_peft_model_state_dict(source))
    assert torch.equal(logits(model, tokens), logits(source, tokens))


# --- hotswap ---


def test_a_hotswap_is_checked_against_the_adapter_that_goes(sparse_llama, save) -> None:
    """PEFT compares with the active one."""
    model = PeftModel.from_pretrained(sparse_llama(), save("first"))
    model.load_adapter(save("dense", sparse=False), "second")
    before = tensors(model)
    with pytest.raises(MismatchError, match="has sparse=True, and adapter 'second' here sparse=False"):
        hotswap_adapter(model, save("third"), adapter_name="second", torch_device="cpu")
    assert_untouched(model, before)


def test_the_low_level_hotswap_is_checked_too(sparse_llama, other_base, save) -> None:
    folder = save("other", other_base())
    model = PeftModel.from_pretrained(sparse_llama(), save("first"))
    state = {k.replace(".weight", ".default.weight"): v for k, v in load_file(folder / FILE).items()}
    with pytest.raises(MismatchError, match="mask_hash differs"):
        hotswap_adapter_from_state_dict(model, state, "default", SQFTConfig.from_pretrained(folder))


@pytest.mark.parametrize("prepared", [False, True, "config"])
@pytest.mark.parametrize("ranks", [(8, 4), (4, 8), (4, 4)])
def test_a_swapped_adapter_is_saved_and_scaled_as_itself(sparse_llama, save, tokens, tmp_path, ranks, prepared) -> None:
    """PEFT leaves the alpha and the rank of the adapter that went: its copy would be loaded at another scale."""
    folders = [save(str(place), rank_choices=None, r=rank, lora_alpha=12 + place) for place, rank in enumerate(ranks)]
    model = PeftModel.from_pretrained(sparse_llama(), folders[0]).eval()
    if prepared:
        settings = {"config": model.peft_config} if prepared == "config" else {}
        prepare_model_for_compiled_hotswap(model, target_rank=8, **settings)
    hotswap_adapter(model, folders[1], adapter_name="default", torch_device="cpu")
    expected = logits(PeftModel.from_pretrained(sparse_llama(), folders[1]).eval(), tokens)
    torch.testing.assert_close(logits(model, tokens), expected, rtol=1e-5, atol=1e-5)

    model.save_pretrained(tmp_path / "again")
    again = PeftModel.from_pretrained(sparse_llama(), tmp_path / "again").eval()
    assert (again.active_peft_config.r, again.active_peft_config.lora_alpha) == (ranks[1], 13)
    torch.testing.assert_close(logits(again, tokens), expected, rtol=1e-5, atol=1e-5)
    for layer in model.modules():
        if hasattr(layer, "elastic"):
            layer.unscale_layer()
    torch.testing.assert_close(logits(model, tokens), expected, rtol=1e-5, atol=1e-5)


def test_a_padded_adapter_is_saved_as_it_was(sparse_llama, save, tokens, tmp_path) -> None:
    model = PeftModel.from_pretrained(sparse_llama(), save("small", rank_choices=[4, 2], r=4)).eval()
    expected = logits(model, tokens)
    prepare_model_for_compiled_hotswap(model, target_rank=8, config=model.peft_config)
    model.save_pretrained(tmp_path / "again")
    again = PeftModel.from_pretrained(sparse_llama(), tmp_path / "again").eval()
    assert torch.equal(logits(again, tokens), expected)


# --- combinations ---


def test_a_combination_does_not_take_a_name_that_is_in_use(sparse_llama) -> None:
    model = get_peft_model(sparse_llama(), make_config())
    model.add_adapter("second", make_config())
    with pytest.raises(SQFTError, match="adapter_name='second' is in use"):
        model.add_weighted_adapter(["default"], [1.0], "second")


@pytest.mark.parametrize("kind", ["linear", "ties", "dare_linear", "magnitude_prune", "svd", "cat"])
def test_a_combination_of_patterned_ranks_can_be_loaded_again(sparse_llama, tokens, tmp_path, kind) -> None:
    settings = {"rank_choices": None, "r": 8, "rank_pattern": {"q_proj": 4, "up_proj": 2}}
    model = get_peft_model(sparse_llama(), make_config(**settings))
    model.add_adapter("second", make_config(**settings))
    fill_adapter(model).eval()
    model.add_weighted_adapter(["default", "second"], [0.7, 0.3], "sum", combination_type=kind, density=0.5)
    model.set_adapter("sum")
    expected = logits(model, tokens)
    model.save_pretrained(tmp_path, selected_adapters=["sum"])
    again = PeftModel.from_pretrained(sparse_llama(), tmp_path / "sum").eval()
    torch.testing.assert_close(logits(again, tokens), expected, rtol=1e-5, atol=1e-5)


def test_factors_of_other_ranks_are_not_added(sparse_llama) -> None:
    model = get_peft_model(sparse_llama(), make_config(rank_choices=None, rank_pattern={"q_proj": 4}))
    model.add_adapter("second", make_config(rank_choices=None))
    with pytest.raises(SQFTError, match=r"adds A to A .* ranks \{.*4, .*8\} in .*q_proj: use 'cat'"):
        model.add_weighted_adapter(["default", "second"], [0.5, 0.5], "sum", combination_type="linear")
    model.add_weighted_adapter(["default", "second"], [0.5, 0.5], "sum", combination_type="cat")


def test_nothing_is_loaded_under_a_merged_adapter(sparse_llama, save) -> None:
    folder = save("own")
    model = get_peft_model(sparse_llama(), make_config())
    model.merge_adapter()
    before = tensors(model)
    with pytest.raises(SQFTError, match="is merged, and the model would go on"):
        model.load_adapter(folder, "default")
    assert_untouched(model, before)
    model.unmerge_adapter()
    model.load_adapter(folder, "default")


# --- transformers' own calls ---


def test_a_peft_too_old_for_transformers_own_calls_is_said_with_what_works(sparse_llama, save, monkeypatch) -> None:
    monkeypatch.setattr("transformers.integrations.peft.MIN_PEFT_VERSION", "99.1")
    folder, model = save("own"), sparse_llama()
    before = {name: type(module) for name, module in model.named_modules()}
    with pytest.raises(DependencyError, match=r"model\.add_adapter .*PEFT 99\.1 or newer.* call peft\.inject_adapter"):
        model.add_adapter(make_config())
    for call in (lambda: model.load_adapter(folder), lambda: model.load_adapter(peft_model_id=str(folder))):
        with pytest.raises(DependencyError, match=r"model\.load_adapter .* call PeftModel\.from_pretrained\(model, '"):
            call()
    assert {name: type(module) for name, module in model.named_modules()} == before
    assert not model._hf_peft_config_loaded

    with pytest.raises(ValueError, match="version of PEFT") as theirs:
        model.add_adapter(LoraConfig(target_modules=["q_proj"]))
    assert not isinstance(theirs.value, SQFTError)  # LoRA's own refusal is as it was


def test_a_peft_that_is_new_enough_is_not_refused(sparse_llama, save, monkeypatch) -> None:
    monkeypatch.setattr("transformers.integrations.peft.MIN_PEFT_VERSION", "0.1")
    model, loaded = sparse_llama(), sparse_llama()
    model.add_adapter(make_config())
    loaded.load_adapter(str(save("own")))
    assert model.active_adapters() == loaded.active_adapters() == ["default"]
