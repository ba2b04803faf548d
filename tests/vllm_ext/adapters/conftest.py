"""vLLM's own object for names, made as its API server makes it, with an engine that only notes requests."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import pytest
import torch
from helpers_adapters import write_adapter, write_configuration


@pytest.fixture
def root(tmp_path):
    """A folder of two adapters: the elastic `math`, and `plain`, a LoRA of PEFT's."""
    root = tmp_path / "adapters"
    write_adapter(root / "math")
    write_adapter(root / "plain", r=4, choices=None, peft_type="LORA")
    return root


@pytest.fixture
def models(root, monkeypatch):
    """vLLM's object, made as its server makes it, after the plug-in was registered for `root`."""
    from vllm.entrypoints.openai.models.protocol import BaseModelPath
    from vllm.entrypoints.openai.models.serving import OpenAIServingModels
    from vllm.lora.resolver import LoRAResolverRegistry

    from vllm_ext.adapters import patch
    from vllm_ext.adapters.resolver import NAME

    write_configuration(root / "math", "searched", {".*": 4})
    monkeypatch.setenv("SQFT_ADAPTERS_DIR", str(root))
    monkeypatch.setattr(LoRAResolverRegistry, "resolvers", {})
    patch()
    loaded: list[object] = []

    async def add_lora(request):
        if "refuses" in request.lora_name:
            raise Exception("Call to add_lora method failed: adapter refuses: it is an adapter for another base")
        loaded.append(request)
        return True

    lora_config = SimpleNamespace(max_lora_rank=8, lora_dtype=torch.float16)
    engine = SimpleNamespace(
        model_config=SimpleNamespace(model="/nowhere", max_model_len=128), renderer=None, input_processor=None,
        add_lora=add_lora, vllm_config=SimpleNamespace(lora_config=lora_config), loaded=loaded,
    )  # fmt: skip
    made = OpenAIServingModels(engine, [BaseModelPath(name="base", model_path="/nowhere")])
    made._sqft_resolver.copies.quiet_seconds = 0.0
    made._sqft_resolver.copies.gone_seconds = 0.3
    yield made
    shutil.rmtree(LoRAResolverRegistry.resolvers[NAME].copies.root, ignore_errors=True)
