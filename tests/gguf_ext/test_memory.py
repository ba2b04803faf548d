"""A model in memory gives the file of the folder that it was, or would be, saved as: byte for byte."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from gguf_ext import GGUFError, export_gguf, export_model, verify_gguf
from gguf_ext.errors import MissingTokenizerError, ModelInMemoryError
from gguf_ext.reader import GGUFFile
from sqft_plugins.checkpoint import ModelFolder, load_model
from sqft_plugins.compress.prune import prune_folder
from sqft_plugins.compress.quantize import quantize_folder

FAMILIES = ("llama", "mistral", "phi3", "qwen2", "qwen3", "gemma3", "bloom", "gpt2")


@pytest.fixture(scope="module")
def saved(tiny_model, tiny_tokenizer, tmp_path_factory):
    """`saved(family, int4)`: the folder of a tiny model, float or pruned and quantized; made once."""
    made = {}

    def make(family, int4=False, symmetric=True):
        if (family, int4, symmetric) not in made:
            place = tmp_path_factory.mktemp(family)
            tiny_model(family).save_pretrained(place / "float")
            tiny_tokenizer("byte-level").save_pretrained(place / "float")
            if int4:
                prune_folder(place / "float", place / "pruned", method="magnitude")
                quantize_folder(place / "pruned", place / "int4", symmetric=symmetric)
            made[family, int4, symmetric] = place / ("int4" if int4 else "float")
        return made[family, int4, symmetric]

    return make


@pytest.mark.parametrize("family", FAMILIES)
def test_a_float_model_gives_the_file_of_its_folder(family, saved, tmp_path):
    folder = saved(family)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    export_gguf(folder, tmp_path / "a.gguf")
    report = export_model(model, AutoTokenizer.from_pretrained(folder), tmp_path / "b.gguf", name=folder.name)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    assert report.exact


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2", "bloom"])
def test_a_model_with_the_grid_on_its_layers_gives_the_file_of_its_int4_folder(family, symmetric, saved, tmp_path):
    """gemma3 is bfloat16: its float weights are rounded, the codes are not."""
    folder = saved(family, True, symmetric)
    model = load_model(folder)
    assert any(hasattr(layer, "weight_scale") and hasattr(layer, "weight") for layer in model.modules())
    export_gguf(folder, tmp_path / "a.gguf")
    report = export_model(
        model, AutoTokenizer.from_pretrained(folder), tmp_path / "b.gguf", like=folder, name=folder.name
    )
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    assert report.pruned > 0
    assert verify_gguf(folder, tmp_path / "b.gguf").exact


@pytest.mark.parametrize("exclude", [(), ("down_proj",)])
def test_a_group_as_wide_as_a_row_is_not_per_channel(exclude, saved, tmp_path):
    """hidden_size is 64: of groups of 64 the rows of every layer but down_proj have one."""
    folder = tmp_path / "int4"
    quantize_folder(saved("llama"), folder, group_size=64, exclude=exclude)
    export_gguf(folder, tmp_path / "a.gguf")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    export_model(load_model(folder), tokenizer, tmp_path / "b.gguf", like=folder, name=folder.name)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    assert GGUFFile(tmp_path / "b.gguf").metadata["sqft.group_size"] == 64


def test_a_packed_model_gives_the_file_of_its_folder(saved, tmp_path):
    folder = saved("llama", True)
    model = AutoModelForCausalLM.from_pretrained(folder)  # weight_packed until the first forward
    assert any(name.endswith("weight_packed") for name in model.state_dict())
    export_gguf(folder, tmp_path / "a.gguf")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    export_model(model, tokenizer, tmp_path / "b.gguf", like=folder, name=folder.name)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_a_merged_model_is_exported_without_saving(saved, tmp_path):
    """A SparsePEFT merge: sparse float weights, the mask that of its base."""
    from peft import get_peft_model

    from peft_ext import SQFTConfig

    folder = saved("llama", True).parent / "pruned"
    model = get_peft_model(
        load_model(folder), SQFTConfig(r=4, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM")
    )
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn_like(parameter) * 0.1
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with pytest.raises(ModelInMemoryError, match="holds an adapter: give what its merge_and_unload"):
        export_model(model, tokenizer, tmp_path / "m.gguf")
    merged = model.merge_and_unload()
    report = export_model(merged, tokenizer, tmp_path / "m.gguf", like=folder, name="merged")
    assert report.pruned == sum(int((~ModelFolder(folder).mask(m)).sum()) for m in ModelFolder(folder).masks)
    assert not verify_gguf(folder, tmp_path / "m.gguf").ok  # the base is another model


def test_a_quantization_aware_merge_is_exported_without_saving(saved, tmp_path):
    """It leaves float weights on the base's grid: the file holds them exactly, as Q4_0."""
    from peft import get_peft_model

    from peft_ext import SQFTConfig

    folder = saved("llama", True)
    names = ["q_proj", "up_proj"]
    config = SQFTConfig(r=4, target_modules=names, task_type="CAUSAL_LM", quantization_aware=True, lora_dropout=0.0)
    model = get_peft_model(load_model(folder), config)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn_like(parameter) * 0.3
    merged = model.merge_and_unload()
    report = export_model(merged, AutoTokenizer.from_pretrained(folder), tmp_path / "m.gguf", like=folder)
    assert report.exact
    assert report.types["Q4_0"] == len(ModelFolder(folder).int4.modules)
    found = GGUFFile(tmp_path / "m.gguf").dequantize("blk.1.ffn_up.weight")
    np.testing.assert_array_equal(found, merged.model.layers[1].mlp.up_proj.weight.detach().numpy())
    changed = {difference.name for difference in verify_gguf(folder, tmp_path / "m.gguf").differences}
    assert changed == {f"blk.{layer}.{name}.weight" for layer in range(2) for name in ("attn_q", "ffn_up")}


def test_options_hold_for_models_too(saved, tmp_path):
    folder = saved("llama")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    options = {"float_type": "f16", "split_max_size": 100_000}
    one = export_gguf(folder, tmp_path / "a" / "m.gguf", **options)
    other = export_model(model, tokenizer, tmp_path / "b" / "m.gguf", name=folder.name, **options)
    assert len(one.parts) == len(other.parts) > 1
    for a, b in zip(sorted((tmp_path / "a").iterdir()), sorted((tmp_path / "b").iterdir()), strict=True):
        assert a.read_bytes() == b.read_bytes()


# --- what is refused ---


def test_weights_off_the_grid_are_refused(saved, tmp_path):
    folder = saved("llama", True)
    model = load_model(folder)
    model.model.layers[1].mlp.up_proj.weight.data[0, :3] += 0.01
    with pytest.raises(ModelInMemoryError, match=r"^3 weights of model\.layers\.1\.mlp\.up_proj are not on the grid"):
        export_model(model, AutoTokenizer.from_pretrained(folder), tmp_path / "m.gguf")
    assert list(tmp_path.iterdir()) == []


def test_a_model_without_weights_or_tokenizer_is_refused(saved, tiny_model, tmp_path):
    folder = saved("llama")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(tiny_model("llama").config)
    with pytest.raises(ModelInMemoryError, match="is not in memory: load it without offloading"):
        export_model(empty, tokenizer, tmp_path / "m.gguf")
    with pytest.raises(MissingTokenizerError, match="tokenizer=None: give the tokenizer"):
        export_model(tiny_model("llama"), None, tmp_path / "m.gguf")
    with pytest.raises(GGUFError, match=r"llama\.cpp has no OPT"):
        export_model(tiny_model("opt"), tokenizer, tmp_path / "m.gguf")
