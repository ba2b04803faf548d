"""Quantization `sqft` in a real engine: what is loaded, and the log-probabilities that come out.

Tolerances. In float32 vLLM and transformers add the same products in another order: 1e-4 in a log-probability. The
sparse kernel reads activations as 16-bit fixed point, relative error 3e-5 a layer: 2e-3. In bfloat16 our `vllm`
operator calls the very kernel that stock vLLM calls, on the same bits: equal. Without AVX-512 vLLM has no such kernel:
stock vLLM cannot run, and transformers is the peer.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from helpers_quantization import unpack

from sqft_plugins.checkpoint import ModelFolder, load_model
from sqft_plugins.checkpoint.compact_convert import compact_folder

pytestmark = pytest.mark.vllm
PROMPTS = [[2, 300, 310, 320], [2, 410, 33], [2, 500, 501, 502, 503, 504, 77, 18], [2, *range(100, 140)]]
BIAS = {"attention_bias": True, "mlp_bias": True}
FOLDERS = {
    "llama": ("llama", 32, True, {}),
    "llama, asymmetric, group 64, tied": ("llama", 64, False, {"tie_word_embeddings": True}),
    "llama, group 128, bias": ("llama", 128, True, BIAS),
    "llama, per channel": ("llama", -1, True, {}),
    "llama, per channel, asymmetric": ("llama", -1, False, {}),
    "mistral, asymmetric": ("mistral", 32, False, {}),
    "phi3, fused on disk": ("phi3", 32, True, {}),
    "phi3, fused on disk, asymmetric, group 64": ("phi3", 64, False, {}),
    "gemma3, tied": ("gemma3", 32, True, {}),
    "qwen2, bias in qkv, asymmetric": ("qwen2", 32, False, {}),
    "qwen3": ("qwen3", 64, True, {}),
}


BF16 = 0.1
"""Of a log-probability: both engines round each of two layers' activations to 8 significant bits, at other places."""


def vllm_operator():
    """The module, which imports vLLM."""
    from vllm_ext.quantization import vllm_operator

    return vllm_operator


def make(tiny_int4, name: str) -> Path:
    family, group_size, symmetric, changes = FOLDERS[name]
    return tiny_int4(family, group_size, symmetric, **changes)


def layers(llm) -> dict[str, torch.nn.Module]:
    """vLLM's name → each layer that quantization `sqft` holds."""

    def find(model):
        return {name: module for name, module in model.named_modules() if hasattr(module, "sqft")}

    return llm.apply_model(find)[0]


def use(llm, name: str) -> None:
    """Puts another operator in place of each layer's own."""
    from vllm_ext.quantization.choice import operators

    for layer in layers(llm).values():
        weight, mask = unpack(layer.sqft.state)
        operator = operators()[name]
        state = operator.prepare(weight, mask, layer.params_dtype)
        layer.sqft = dataclasses.replace(layer.sqft, operator=operator, state=state)


def check_loaded(llm, folder: ModelFolder) -> None:
    """Codes, scales, zero points and masks of every layer equal the folder's, and every module is somewhere."""
    seen = []
    for name, layer in layers(llm).items():
        modules = [module for module, _ in layer.sqft.parts]
        seen += modules
        weights = [folder.quantized(module) for module in modules]
        masks = [folder.mask(module) for module in modules]
        loaded, mask = unpack(layer.sqft.state)
        for field in ("codes", "scale", "zero_point"):
            assert torch.equal(getattr(loaded, field), torch.cat([getattr(weight, field) for weight in weights])), name
        assert torch.equal(mask, torch.cat(masks)), name
        assert not mask.all()
        assert layer.weight_packed.numel() == 0
    assert sorted(seen) == folder.int4.modules


def reference(folder: Path) -> torch.nn.Module:
    """The same folder in transformers, in float32."""
    return load_model(folder, dtype=torch.float32)


def furthest(model, answers) -> float:
    """The largest difference of a log-probability from that of transformers at the same place."""
    worst = 0.0
    for prompt, steps in zip(PROMPTS, answers, strict=True):
        chosen = [next(iter(step)) for step in steps]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + chosen])).logits[0, len(prompt) - 1 : -1].double()
        expected = logits.log_softmax(-1)
        assert float(expected.std(1).min()) > 0.5  # sharp enough for a wrong weight to show
        for row, step in zip(expected, steps, strict=True):
            worst = max(worst, *(abs(float(row[token]) - value) for token, value in step.items()))
    return worst


@pytest.mark.parametrize("name", FOLDERS)
def test_the_folder_is_loaded_bit_for_bit_and_answers_as_transformers_does(name, tiny_int4, engine, ask):
    folder = make(tiny_int4, name)
    llm = engine(folder)
    check_loaded(llm, ModelFolder(folder))
    assert {layer.sqft.operator.name for layer in layers(llm).values()} <= {"sparse", "torch"}
    model = reference(folder)
    for operator, tolerance in (("torch", 1e-4), ("sparse", 2e-3)):
        use(llm, operator)
        check_loaded(llm, ModelFolder(folder))
        assert furthest(model, ask(llm, PROMPTS)) < tolerance, operator


@pytest.mark.parametrize("name", ["llama", "llama, per channel, asymmetric", "phi3, fused on disk", "gemma3, tied"])
def test_it_answers_as_stock_vllm_does(name, tiny_int4, engine, ask, monkeypatch):
    if vllm_operator().why_no_cpu_kernel() is not None:
        pytest.skip("stock vLLM has no INT4 kernel for this processor; the next test compares with transformers")
    folder = make(tiny_int4, name)
    monkeypatch.setenv("SQFT_VLLM_OPERATOR", "vllm")
    llm = engine(folder, dtype="bfloat16")
    check_loaded(llm, ModelFolder(folder))
    assert {layer.sqft.operator.name for layer in layers(llm).values()} == {"vllm"}
    ours = ask(llm, PROMPTS)
    stock = engine(folder, dtype="bfloat16", quantization="compressed-tensors")
    assert layers(stock) == {}
    assert ask(stock, PROMPTS) == ours


@pytest.mark.parametrize("name", ["llama", "phi3, fused on disk, asymmetric, group 64"])
def test_the_compact_form_loads_to_the_same_layers(name, tiny_int4, engine, tmp_path):
    folder = make(tiny_int4, name)
    compact_folder(folder, tmp_path / "compact")
    llm = engine(tmp_path / "compact")
    check_loaded(llm, ModelFolder(folder))
    check_loaded(llm, ModelFolder(tmp_path / "compact"))


@pytest.mark.parametrize("sparsity", [0.5, 0.2])
def test_in_bfloat16_it_answers_as_transformers_does_within_its_rounding(sparsity, tiny_int4, engine, ask, monkeypatch):
    """On every processor, whichever operator it has: the dense INT4 layers of `sparsity=0.2` too."""
    monkeypatch.delenv("SQFT_VLLM_OPERATOR", raising=False)
    folder = tiny_int4("llama", sparsity=sparsity)
    assert furthest(reference(folder), ask(engine(folder, dtype="bfloat16"), PROMPTS)) < BF16


def test_a_layer_that_keeps_most_of_its_weights_stays_dense(tiny_int4, engine):
    llm = engine(tiny_int4("llama", sparsity=0.2), dtype="bfloat16")
    dense = "vllm" if vllm_operator().why_no_cpu_kernel() is None else "sparse"
    for layer in layers(llm).values():
        assert layer.sqft.operator.name == dense
        assert layer.sqft.density == pytest.approx(0.8, abs=0.01)
    sparse = engine(tiny_int4("llama"), dtype="bfloat16")
    assert {layer.sqft.operator.name for layer in layers(sparse).values()} == {"sparse"}


@pytest.mark.slow  # 33 s
def test_it_compiles(tiny_int4, engine, ask):
    folder = tiny_int4("llama")
    eager = ask(engine(folder), PROMPTS)
    compiled = ask(engine(folder, enforce_eager=False), PROMPTS)
    for one, other in zip(eager, compiled, strict=True):
        for step, again in zip(one, other, strict=True):
            assert again == pytest.approx(step, abs=1e-3)
