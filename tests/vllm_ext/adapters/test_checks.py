"""What is looked at in an adapter before it is computed with: its numbers, and whether file and configuration agree."""

from __future__ import annotations

import pytest
import torch
from helpers_adapters import DOWN, MODULES, Q0, Q1, change, write_adapter
from safetensors.torch import load_file

from sqft_plugins.adapter.lora_config import is_adapted
from sqft_plugins.errors import CheckpointError, MismatchError, SQFTError
from vllm_ext.adapters.checks import check_base, check_values
from vllm_ext.adapters.folder import open_adapter

NAN, INFINITY = float("nan"), float("inf")


def plain(folder, **config):
    return write_adapter(folder, choices=None, peft_type="LORA", **config)


KINDS = {
    "plain": {"choices": None, "peft_type": "LORA"},
    "elastic": {},
    "quantization-aware": {"sparse": True, "quantization_aware": True},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [NAN, INFINITY, -INFINITY], ids=str)
@pytest.mark.parametrize("part", ["A", "B"])
def test_a_number_that_is_none_is_refused_by_the_names_of_adapter_and_tensor(tmp_path, kind, value, part):
    def spoil(tensors):
        tensors[f"base_model.model.{DOWN}.lora_{part}.weight"][-1, -1] = value

    folder = open_adapter(change(write_adapter(tmp_path / "math", **KINDS[kind]), spoil))
    with pytest.raises(
        CheckpointError, match=rf"^adapter math: tensor .*{DOWN}.lora_{part}.weight holds NaN or infinity"
    ):
        check_values(folder)


@pytest.mark.parametrize(
    ("largest", "alpha", "dtype", "fits"),
    [
        (6e4, 8, torch.float16, True),
        (7e4, 8, torch.float16, False),
        (7e4, 8, torch.bfloat16, True),
        (6e4, 32, torch.float16, False),  # four times in B, by its scaling
        (6e4, 2, torch.float16, True),
        (3.4e38, 8, torch.float32, True),
        (3.4e38, 8, torch.bfloat16, False),  # rounds up to infinity
        (3.4e38, 8, "auto", True),
    ],
)
def test_what_the_serving_dtype_does_not_hold_is_refused(tmp_path, largest, alpha, dtype, fits):
    def enlarge(tensors):
        tensors[f"base_model.model.{Q1}.lora_B.weight"][0, 0] = -largest

    folder = open_adapter(change(plain(tmp_path / "math"), enlarge, lora_alpha=alpha))
    if fits:
        check_values(folder, dtype)
        return
    with pytest.raises(SQFTError, match=rf"^adapter math: tensor .*{Q1}.lora_B.weight reaches .* ends at"):
        check_values(folder, dtype)


def test_a_repaired_adapter_is_served_at_once(tmp_path):
    folder = change(plain(tmp_path / "math"), lambda tensors: next(iter(tensors.values())).fill_(NAN))
    with pytest.raises(CheckpointError):
        check_values(open_adapter(folder))
    check_values(open_adapter(plain(folder)))


# --- file and configuration ---

DISAGREEMENTS = {
    "another rank": ({"r": 16}, f"{DOWN} has rank 8 in its tensors and 16 in adapter_config.json"),
    "a rank of one module": ({"rank_pattern": {"down_proj": 4}}, f"{DOWN} has rank 8 in its tensors and 4"),
    "a rank by an expression": ({"rank_pattern": {r".*\.1\..*q_proj": 2}}, f"{Q1} has rank 8 in its tensors and 2"),
    "no r": ({"r": None}, "has no r"),
    "r no number": ({"r": "8"}, "r='8' in adapter_config.json is no rank"),
    "r a truth": ({"r": True}, "r=True in adapter_config.json is no rank"),
    "a pattern no number": ({"rank_pattern": {"q_proj": 8.0}}, r"rank_pattern\[q_proj\]=8.0 .* is no rank"),
    "patterns no object": ({"rank_pattern": ["q_proj"]}, "rank_pattern in adapter_config.json is no JSON object"),
    "a pattern no expression": ({"alpha_pattern": {"(": 2}}, "alpha_pattern in adapter_config.json is no pattern"),
    "alpha no number": ({"lora_alpha": "16"}, "lora_alpha=16 in adapter_config.json is no finite number"),
    "alpha infinite": ({"lora_alpha": INFINITY}, "lora_alpha=inf in adapter_config.json is no finite number"),
    "alpha endless": ({"lora_alpha": 10**400}, "is no finite number"),
    "alpha by a pattern": ({"alpha_pattern": {"q_proj": NAN}}, r"alpha_pattern\[q_proj\]=nan .* is no finite number"),
    "alpha zero": ({"lora_alpha": 0}, "lora_alpha=0 in adapter_config.json switches it off"),
    "other targets": ({"target_modules": ["q_proj"]}, f"holds tensors of {DOWN}, which target_modules"),
    "targets by an expression": ({"target_modules": r".*layers\.0\..*"}, f"holds tensors of {Q1}"),
    "layers": ({"layers_to_transform": [0]}, f"holds tensors of {Q1}"),
    "excluded": ({"exclude_modules": ["down_proj"]}, f"holds tensors of {DOWN}"),
    "targets no list": ({"target_modules": 5}, "target_modules cannot be read"),
}


@pytest.mark.parametrize("case", DISAGREEMENTS)
def test_a_configuration_that_is_another_files_is_refused(tmp_path, case):
    config, message = DISAGREEMENTS[case]
    with pytest.raises(CheckpointError, match=f"adapter math.*{message}") as caught:
        open_adapter(change(plain(tmp_path / "math"), **config))
    assert "\n" not in str(caught.value)


AGREEMENTS = {
    "as it was": {},
    "patterns that say the same": {"r": 4, "rank_pattern": {"q_proj": 8, "mlp.down_proj": 8}},
    "patterns of nothing": {"rank_pattern": {"k_proj": 2}, "alpha_pattern": {}},
    "whole names": {"target_modules": list(MODULES)},
    "an expression": {"target_modules": r"model\.layers\.\d\.(self_attn\.q_proj|mlp\.down_proj)"},
    "all linear": {"target_modules": "all-linear"},
    "by default": {"target_modules": None},
    "layers": {"layers_to_transform": [0, 1], "layers_pattern": "layers"},
    "targets the model lacks": {"target_modules": ["q_proj", "down_proj", "c_attn"]},
    "negative": {"lora_alpha": -8},
    "one switched off": {"alpha_pattern": {"q_proj": 0}},
}


@pytest.mark.parametrize("case", AGREEMENTS)
def test_a_configuration_of_the_same_file_is_read(tmp_path, case):
    assert set(open_adapter(change(plain(tmp_path / "math"), **AGREEMENTS[case])).pairs) == set(MODULES)


def test_half_a_pair_and_a_module_twice_are_refused(tmp_path):
    key = f"base_model.model.{Q0}.lora_"
    with pytest.raises(CheckpointError, match=r"has lora_A of .* but no lora_B"):
        open_adapter(change(plain(tmp_path / "a"), lambda tensors: tensors.pop(f"{key}B.weight")))
    with pytest.raises(CheckpointError, match=r"has lora_B of .* but no lora_A"):
        open_adapter(change(plain(tmp_path / "b"), lambda tensors: tensors.pop(f"{key}A.weight")))

    def twice(tensors):
        tensors |= {name.removeprefix("base_model.model."): tensors[name] * 2 for name in list(tensors)}

    with pytest.raises(CheckpointError, match=f"holds {DOWN} twice"):
        open_adapter(change(plain(tmp_path / "c"), twice))


@pytest.mark.parametrize(
    "fields",
    [
        {"target_modules": ["q_proj"]},
        {"target_modules": ["q_proj", "lm_head", "model.layers.0.mlp.down_proj"]},
        {"target_modules": r".*layers\.0\..*"},
        {"target_modules": r"model\.layers\.\d\.(self_attn\.q_proj|mlp\.down_proj)"},
        {"target_modules": ["q_proj", "down_proj"], "exclude_modules": ["down_proj"]},
        {"target_modules": ["q_proj", "down_proj"], "exclude_modules": r".*mlp.*"},
        {"target_modules": ["q_proj", "down_proj"], "layers_to_transform": [0]},
        {"target_modules": ["q_proj", "down_proj"], "layers_to_transform": 1, "layers_pattern": "layers"},
        {"target_modules": ["q_proj", "down_proj"], "layers_to_transform": [0], "layers_pattern": ["h", "layers"]},
        {"target_modules": ["q_proj", "down_proj"], "layers_to_transform": [0, 1], "layers_pattern": ["experts"]},
        {"target_modules": ["q_proj", "lm_head"], "modules_to_save": ["lm_head"]},
    ],
    ids=range(11),
)
def test_targets_are_read_as_peft_reads_them(fields):
    peft = pytest.importorskip("peft")
    from peft.tuners.tuners_utils import check_target_module_exists

    for module in (*MODULES, "lm_head", "model.layers.1.mlp.experts.0.down_proj", "model.q_proj", "my_q_proj"):
        there = check_target_module_exists(peft.LoraConfig(**fields), module)
        assert is_adapted(fields, module) == (bool(there) and "Excluded" not in type(there).__name__), module


# --- the weight of the base that PEFT saves along ---


@pytest.fixture
def head(tiny_float, tmp_path):
    """(base, adapter of its output head as PEFT saves it, with the head's own weight)."""
    base = tiny_float("llama")
    weight = load_file(base / "model.safetensors")["lm_head.weight"]
    folder = write_adapter(tmp_path / "head", {"lm_head": (128, 640), Q0: (128, 128)})
    return base, change(folder, lambda tensors: tensors.update({"base_model.model.lm_head.base_layer.weight": weight}))


def test_an_adapter_of_the_output_head_is_served_at_every_rank(head):
    base, path = head
    folder = open_adapter(path)
    assert folder.base_weights == {"lm_head": "base_model.model.lm_head.base_layer.weight"}
    assert {"lm_head", Q0} == set(folder.pairs)
    assert folder.ranks("r4") == {"lm_head": 4, Q0: 4}
    check_base(folder, base)
    check_values(folder)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_head_may_be_saved_in_the_dtype_it_was_loaded_in(head, dtype):
    base, path = head
    name = "base_model.model.lm_head.base_layer.weight"
    check_base(open_adapter(change(path, lambda tensors: tensors.update({name: tensors[name].to(dtype)}))), base)


@pytest.mark.parametrize("how", ["trained", "larger"])
def test_an_adapter_with_a_head_of_its_own_is_refused(head, how):
    base, path = head

    def other(tensors):
        weight = tensors["base_model.model.lm_head.base_layer.weight"]
        own = torch.cat([weight, weight[:8]]) if how == "larger" else weight + 1e-3
        tensors["base_model.model.lm_head.base_layer.weight"] = own

    with pytest.raises(MismatchError, match=r"adapter head carries a lm_head of its own"):
        check_base(open_adapter(change(path, other)), base)


def test_what_sqft_train_saves_of_an_output_head_is_served(tiny_float, tmp_path):
    """Through PEFT itself, over a tied and an untied base."""
    pytest.importorskip("peft")
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    from peft_ext import SQFTConfig

    for tied in (False, True):
        base = tiny_float("llama", tie_word_embeddings=tied)
        config = SQFTConfig(
            r=8, rank_choices=[8, 4], target_modules=["q_proj", "lm_head"], sparse=False, task_type="CAUSAL_LM"
        )
        tuned = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
        tuned.save_pretrained(str(tmp_path / f"head-{tied}"))
        folder = open_adapter(tmp_path / f"head-{tied}")
        assert list(folder.base_weights) == ["lm_head"]
        check_base(folder, base)


@pytest.mark.parametrize(
    "fields",
    [{"base_model_name_or_path": "x" * 5000}, {"base_model_name_or_path": "a\0b"}, {"mask_hash": 5}],
    ids=["long", "null", "hash"],
)
def test_fields_of_the_base_that_make_no_sense_are_no_raw_error(tiny_int4, tmp_path, fields):
    base = tiny_int4("llama")
    folder = open_adapter(change(plain(tmp_path / "math"), **fields))
    if "mask_hash" in fields:
        with pytest.raises(MismatchError, match=r"^adapter math was trained over a base with other zeros \(mask 5"):
            check_base(folder, base)
    else:
        check_base(folder, base)
