"""A file that stays packed while an adapter is trained over it: the adapter and its codes are, byte for byte, those of
training over its floats.

    pytest tests/gguf_ext/model/test_packed.py
"""

import pytest
import torch
from helpers_quantize import quantized

from sqft_plugins.checkpoint import load_model
from sqft_plugins.checkpoint.load_packed import load_packed
from sqft_plugins.errors import SQFTError
from sqft_plugins.tune import AdapterSettings, TrainSettings
from sqft_plugins.tune.examples import Example
from sqft_plugins.tune.train import train_adapter

EXAMPLES = [Example(f"Question: what follows {n}?\nAnswer:", f" {n + 1}") for n in range(24)]
WIDE = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "vocab_size": 640}
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def file_of(make_folder, tmp_path_factory):
    """`file_of(family, kind)`: the file that llama.cpp makes of a tiny model."""
    place = tmp_path_factory.mktemp("packed")

    def file(family, kind):
        folder = place / family / "model"
        if not folder.exists():
            make_folder(family, folder, **WIDE)
        target = folder.parent / f"{kind}.gguf"
        return target if target.exists() else quantized(folder, target, kind)

    return file


@pytest.mark.parametrize("kind", ["Q4_K_M", "Q3_K_M", "Q2_K", "Q5_1", "IQ4_XS", "Q8_0"])
def test_the_packed_model_is_the_float_one(file_of, kind):
    file, tokens = file_of("llama", kind), torch.arange(40).view(2, 20)
    floats, packed = load_model(file, torch.float32), load_packed(file, torch.float32)
    for name, layer in floats.named_modules():
        if isinstance(layer, torch.nn.Linear | torch.nn.Embedding):
            assert torch.equal(packed.get_submodule(name).weight, layer.weight), name
    with torch.no_grad():
        assert torch.equal(packed(tokens).logits, floats(tokens).logits)
    held = sum(parameter.numel() for parameter in packed.parameters())
    assert held < 0.01 * sum(parameter.numel() for parameter in floats.parameters())  # norms


@pytest.mark.parametrize("family", ["llama", "gemma3", "qwen2"])
@pytest.mark.parametrize("tuner", ["sqft", "lora"])
def test_an_adapter_is_the_same_byte_for_byte(file_of, tmp_path, family, tuner):
    file = file_of(family, "Q4_0")
    ours = {"rank_choices": [8, 4]} if tuner == "sqft" else {}
    adapter = AdapterSettings.make({"rank": 8, "alpha": 16.0, **ours})
    made = []
    for held in ("float", "packed"):
        run = {"steps": 3, "batch_size": 4, "learning_rate": 1e-2, "dtype": "float32", "base_weights": held}
        train_adapter(file, tmp_path / held, EXAMPLES, adapter, TrainSettings.make(run), tuner=tuner)
        made.append((tmp_path / held / WEIGHTS).read_bytes())
    assert made[0] == made[1]


def test_packed_where_it_cannot_be(file_of, tmp_path):
    packed = TrainSettings.make({"steps": 1, "base_weights": "packed"})
    nearest = AdapterSettings.make({"rounding": "nearest"})
    with pytest.raises(SQFTError, match=r"base_weights=packed: codes are rounded in each step.*leave it out"):
        train_adapter(file_of("llama", "Q4_0"), tmp_path / "out", EXAMPLES, nearest, packed)
    with pytest.raises(SQFTError, match=r"base_weights=packed: .* is float"):
        train_adapter(file_of("llama", "Q4_0").parent / "model", tmp_path / "out", EXAMPLES, AdapterSettings(), packed)
