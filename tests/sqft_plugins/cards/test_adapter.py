"""The card that `sqft train` leaves: the method by the paper's name, the loss of the adapter that is kept."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import save_file

from sqft_plugins.cards.adapter import write_training_card


def report_of(tuner: str = "sqft", base_is_int4: bool = False, **adapter: Any) -> dict[str, Any]:
    return {
        "base": "google/gemma-3-270m",
        "tuner": tuner,
        "base_is_int4": base_is_int4,
        "adapter": {
            "rank": 8,
            "rank_choices": [8, 6, 4],
            "alpha": 16.0,
            "target_modules": ["q_proj", "k_proj"],
            "sparse": True,
            "quantization_aware": False,
            "grid": None,
            **adapter,
        },
        "training": {"steps": 10, "batch_size": 4, "learning_rate": 3e-4, "keep": "best"},
        "losses": [3.0, 2.0, 1.0],
        "evaluations": [{"step": 5, "loss": 1.5}, {"step": 10, "loss": 1.75}],
        "held_out": 6,
        "kept_step": 5,
        "seconds": 12.3,
    }


def card_of(folder, report) -> ModelCard:
    """The card of an adapter whose folder PEFT has written."""
    adapter, sqft = report["adapter"], {"rank_choices", "sparse", "quantization_aware", "grid"}
    config = {"peft_type": report["tuner"].upper(), "task_type": "CAUSAL_LM", "r": adapter["rank"]}
    config |= {"base_model_name_or_path": report["base"], "lora_alpha": adapter["alpha"]}
    config |= {"target_modules": adapter["target_modules"], "use_rslora": False, "alpha_pattern": {}}
    config |= {key: adapter[key] for key in sqft} if report["tuner"] == "sqft" else {}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file({"a": torch.zeros(3, 4), "b": torch.zeros(5)}, folder / "adapter_model.safetensors")
    write_training_card(folder, report)
    return ModelCard.load(folder / "README.md")


def test_it_says_what_was_trained_and_how_it_went(tmp_path) -> None:
    card = card_of(tmp_path, report_of())
    assert card.data.to_dict() == {
        "library_name": "peft",
        "base_model": "google/gemma-3-270m",
        "tags": ["sqft", "lora", "sparse"],
    }
    for row in (
        "| pipeline | SparsePEFT |",
        "| ranks | 8, 6, 4 |",
        "| alpha | 16.0 (the scaling is alpha / 8 at every rank) |",
        "| target modules | k_proj, q_proj |",
        "| parameters | 17 in 2 tensors |",
        "| steps × batch, learning rate | 10 × 4, 0.0003 |",
        "| loss, first → last | 3.000 → 1.000 |",
        "| loss of 6 held-out examples | 1.500 (best, step 5) |",
        "| seconds | 12 |",
    ):
        assert f"\n{row}\n" in card.text


def test_a_path_is_no_name_of_a_base(tmp_path) -> None:
    assert "base_model" not in card_of(tmp_path, {**report_of(), "base": "/models/gemma"}).data.to_dict()


@pytest.mark.parametrize(
    ("tuner", "int4", "adapter", "pipeline", "merge"),
    [
        ("sqft", True, {"quantization_aware": True}, "QA-SparsePEFT", "`sqft merge` writes codes on this grid again"),
        ("sqft", False, {"quantization_aware": True, "grid": "int4"}, "QA-SparsePEFT, through the grid of int4",
         "`sqft merge` writes codes on this grid again"),
        ("sqft", False, {}, "SparsePEFT", "keeps every zero of the base"),
        ("sqft", False, {"sparse": False}, "Shears (dense adapter, elastic ranks)", "fills the zeros"),
        ("sqft", True, {"sparse": False}, "SQFT", "none: the adapter stays beside the quantized base"),
        ("lora", True, {"rank_choices": None}, "LoRA over codes", "none: the adapter stays beside the quantized base"),
        ("lora", False, {"rank_choices": None}, "LoRA (dense adapter)", "fills the zeros"),
    ],
)  # fmt: skip
def test_the_method_has_the_papers_name(tuner, int4, adapter, pipeline, merge, tmp_path) -> None:
    text = card_of(tmp_path, report_of(tuner, int4, **adapter)).text
    assert f"| pipeline | {pipeline} |" in text
    assert f"| merge | {merge}" in text


def test_the_code_is_that_of_the_adapters_type(tmp_path) -> None:
    def code(**changes: Any) -> list[str]:
        text = card_of(tmp_path, report_of(**changes)).text
        return [line for line in re.search(r"```python\n(.*?)```", text, re.DOTALL)[1].splitlines() if line]

    load = 'model = AutoPeftModelForCausalLM.from_pretrained("PATH OF THIS FOLDER"'
    assert code(tuner="lora", rank_choices=None) == ["from peft import AutoPeftModelForCausalLM", f"{load})"]
    elastic = code(base_is_int4=True)
    assert elastic[0].startswith("import peft_ext")
    assert "from transformers import CompressedTensorsConfig" in elastic
    assert f"{load}, quantization_config=CompressedTensorsConfig(dequantize=True))" in elastic
    assert elastic[-1].startswith('model.set_active_rank("median")')
