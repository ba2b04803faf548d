"""vLLM's names of our modules, without an engine; test_config_engine.py has the engines."""

from __future__ import annotations

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

from vllm.model_executor.models.utils import WeightsMapper

from sqft_plugins.checkpoint import GridStamp
from sqft_plugins.checkpoint.int4 import quantization_config
from vllm_ext.quantization.config import SQFTQuantizationConfig

pytestmark = pytest.mark.vllm


def test_modules_are_found_under_the_names_that_a_model_of_vllms_gives_them():
    """Gemma's text model within a model for pictures, say; what vLLM leaves out has no name."""
    config = SQFTQuantizationConfig.from_config(quantization_config(GridStamp(group_size=32, symmetric=True), []))
    config.sources = {name: name for name in ("model.text.layers.0.mlp.up_proj", "model.eyes.fc", "extra.fc")}
    config.apply_vllm_mapper(WeightsMapper(orig_to_new_prefix={"model.text.": "text.model.", "extra.": None}))
    assert config.sources == {
        "text.model.layers.0.mlp.up_proj": "model.text.layers.0.mlp.up_proj",
        "model.eyes.fc": "model.eyes.fc",
    }
