"""The lists of left_out.py do not rot: what they name exists, every refusal is what the tuner says today."""

from __future__ import annotations

import re
from pathlib import Path

import aim
import left_out
import peft
import pytest
from peft import get_peft_model
from peft.tuners.lora.config import BdLoraConfig, KasaConfig, MontecloraConfig, VeloraConfig
from torch import nn
from transformers import MambaConfig, MambaForCausalLM

from peft_ext import SQFTConfig

SETTINGS = {
    "alora_invocation_tokens": {"alora_invocation_tokens": [1], "task_type": "CAUSAL_LM"},
    "use_dora": {"use_dora": True},
    "use_bdlora": {"use_bdlora": BdLoraConfig(target_modules_bd_a=["linear"], nblocks=2)},
    "velora_config": {"velora_config": VeloraConfig(num_groups=2, init_type="random")},
    "kasa_config": {"kasa_config": KasaConfig()},
    "monteclora_config": {"monteclora_config": MontecloraConfig(num_samples=2)},
    "mica": {"init_lora_weights": "mica"},
    "SQFT adapts linear layers only": {"target_modules": ["embedding"]},
    "changes the base weight": {"init_lora_weights": "OLoRA"},
    "target_parameters": {"target_modules": [], "target_parameters": ["linear.weight"]},
    "custom modules": {},
    "PeftMixedModel": {},
    "bias='invalid'": {"bias": "invalid"},
    "mamba": {"target_modules": ["out_proj"]},
}
"""What meets each refusal: the words of its pattern → fields of SQFTConfig."""


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.linear = nn.Embedding(8, 16), nn.Linear(16, 16)

    def forward(self, x):
        return self.linear(self.embedding(x))


def refuse(words: str) -> None:
    """Does what is refused."""
    config = SQFTConfig(**{"r": 4, "target_modules": ["linear"], **SETTINGS[words]})
    if words == "custom modules":
        config._register_custom_module({nn.Linear: nn.Linear})
    if words == "mamba":
        size = {"vocab_size": 8, "hidden_size": 8, "num_hidden_layers": 1, "state_size": 4}
        get_peft_model(MambaForCausalLM(MambaConfig(**size)), config)
    get_peft_model(Model(), config, mixed=words == "PeftMixedModel")


@pytest.mark.parametrize("words", SETTINGS)
def test_the_tuner_refuses_in_these_words(words) -> None:
    pattern = next(pattern for pattern in left_out.REFUSALS if words in pattern.replace("\\", ""))
    with pytest.raises(ValueError, match=pattern):
        refuse(words)


def test_every_refusal_is_met_by_a_test() -> None:
    assert len(SETTINGS) == len(left_out.REFUSALS)


@pytest.mark.skipif(not aim.SOURCES.is_dir(), reason="PEFT's tests were not fetched")
def test_every_listed_test_exists(request) -> None:
    collected = request.config.stash[aim.COLLECTED]
    if any("::" in argument for argument in request.config.args):
        pytest.skip("only a part of PEFT's tests was collected")
    names = {*collected, *(name.partition("[")[0] for name in collected)}
    files = {name.partition("::")[0] for name in names}
    listed = [*left_out.LEFT_OUT, *left_out.TOLERANCES, *left_out.FAIL_FOR_LORA, *left_out.SLOW]
    assert [name for name in listed if name.partition("::")[0] in files and name not in names] == []


@pytest.mark.skipif(not aim.SOURCES.is_dir(), reason="PEFT's tests were not fetched")
def test_every_file_about_lora_is_run_or_listed() -> None:
    about = {f.name for f in aim.SOURCES.glob("test_*.py") if re.search(r"\bLoraConfig\b", f.read_text())}
    here = {f.name for f in Path(__file__).parent.glob("test_*.py")} - {Path(__file__).name}
    assert set(left_out.FILES) == about - here
    assert here <= about


def test_what_was_fetched_is_what_is_installed() -> None:
    assert aim.SOURCES.name == peft.__version__
