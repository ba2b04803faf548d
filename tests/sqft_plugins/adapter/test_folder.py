"""`AdapterFolder`: what PEFT saved, read without PEFT.

python -m pytest tests/sqft_plugins/adapter/test_folder.py
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sqft_plugins.adapter import AdapterFolder
from sqft_plugins.checkpoint import ModelFolder
from sqft_plugins.errors import CheckpointError

Q, HEAD = "model.layers.0.self_attn.q_proj", "lm_head"
PREFIX = "base_model.model."


def write(folder: Path, tensors: dict | None = None, pickled: bool = False, **config) -> Path:
    """An adapter of q_proj and lm_head as PEFT saves it. config: changes to its fields, None leaves one out."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    made = {
        f"{PREFIX}{Q}.lora_A.weight": torch.randn(8, 16, generator=generator),
        f"{PREFIX}{Q}.lora_B.weight": torch.randn(12, 8, generator=generator),
        f"{PREFIX}{HEAD}.lora_A.weight": torch.randn(8, 16, generator=generator),
        f"{PREFIX}{HEAD}.lora_B.weight": torch.randn(20, 8, generator=generator),
        f"{PREFIX}{HEAD}.base_layer.weight": torch.randn(20, 16, generator=generator),
    }
    if pickled:
        torch.save(made if tensors is None else tensors, folder / "adapter_model.bin")
    else:
        save_file(made if tensors is None else tensors, folder / "adapter_model.safetensors")
    settings = {
        "peft_type": "SQFT", "r": 8, "lora_alpha": 16, "rank_choices": [6, 8, 4],
        "target_modules": ["q_proj", "lm_head"], "base_model_name_or_path": "base", **config,
    }  # fmt: skip
    text = json.dumps({name: value for name, value in settings.items() if value is not None})
    (folder / "adapter_config.json").write_text(text)
    return folder


@pytest.mark.parametrize("pickled", [False, True])
def test_what_the_table_promises(tmp_path, pickled):
    folder = AdapterFolder(write(tmp_path / "a", pickled=pickled))
    assert (folder.method, folder.kind, folder.is_masked, folder.base) == ("SQFT", "masked", True, "base")
    assert (folder.rank_choices, folder.is_elastic, folder.scaling(Q)) == ([8, 6, 4], True, 2)
    assert {m: (pair.rank, pair.inputs, pair.outputs) for m, pair in folder.pairs.items()} == {
        HEAD: (8, 16, 20),
        Q: (8, 16, 12),
    }
    assert folder.base_weights == {HEAD: f"{PREFIX}{HEAD}.base_layer.weight"}
    assert folder.others == []
    assert [file.name for file in folder.files][1] == ("adapter_model.bin" if pickled else "adapter_model.safetensors")
    tensors = dict(folder.read())
    for pair, A, B in folder.read_pairs({Q: 4, HEAD: 6}):
        rank = {Q: 4, HEAD: 6}[pair.module]
        assert torch.equal(A, tensors[pair.a][:rank])
        assert torch.equal(B, tensors[pair.b][:, :rank])
    assert [pair.module for pair, _, _ in folder.read_pairs({Q: 4})] == [Q]
    folder.check_config()
    for pair in folder.pairs.values():
        folder.check_pair(pair)


@pytest.mark.parametrize(
    ("config", "kind", "grid"),
    [
        ({}, "masked", None),
        ({"sparse": False}, "dense", None),
        ({"quantization_aware": True}, "quantization-aware", "base"),
        ({"quantization_aware": True, "grid": "int4"}, "quantization-aware", "int4"),
        ({"peft_type": "LORA", "sparse": True}, "dense", None),
        ({"peft_type": None}, "dense", None),
    ],
    ids=range(6),
)
def test_the_kind_and_the_grid(tmp_path, config, kind, grid):
    folder = AdapterFolder(write(tmp_path / "a", **config))
    assert folder.kind == kind
    assert folder.grid_over("base") == (Path(grid) if grid else None)


def test_a_fixed_rank_is_a_search_space_of_one(tmp_path):
    folder = AdapterFolder(write(tmp_path / "a", rank_choices=None))
    assert (folder.rank_choices, folder.is_elastic) == ([8], False)


def test_embeddings_biases_and_trained_layers_are_others(tmp_path):
    tensors = dict(AdapterFolder(write(tmp_path / "a")).read())
    more = {
        f"{PREFIX}model.embed_tokens.lora_embedding_A": torch.ones(8, 20),
        f"{PREFIX}model.embed_tokens.lora_embedding_B": torch.ones(16, 8),
        f"{PREFIX}{Q}.lora_B.bias": torch.ones(12),
        f"{PREFIX}model.norm.weight": torch.ones(16),
    }
    folder = AdapterFolder(write(tmp_path / "b", {**tensors, **more}))
    assert folder.others == sorted(more)
    assert folder.linears == [HEAD, Q]
    embedding = folder.pairs["model.embed_tokens"]
    assert (embedding.is_embedding, embedding.rank, embedding.inputs, embedding.outputs) == (True, 8, 20, 16)


def test_names_without_peftss_prefix_are_the_same_modules(tmp_path):
    tensors = {name.removeprefix(PREFIX): tensor for name, tensor in AdapterFolder(write(tmp_path / "a")).read()}
    folder = AdapterFolder(write(tmp_path / "b", tensors))
    assert set(folder.pairs) == {Q, HEAD}
    assert folder.base_weights == {HEAD: f"{HEAD}.base_layer.weight"}


@pytest.mark.parametrize("own", [False, True])
def test_a_weight_that_is_not_the_bases_is_found(tmp_path, tiny_llama, own):
    weight = load_file(tiny_llama / "model.safetensors")["lm_head.weight"].clone()
    tensors = {
        f"{PREFIX}{HEAD}.lora_A.weight": torch.ones(8, 64),
        f"{PREFIX}{HEAD}.lora_B.weight": torch.ones(len(weight), 8),
        f"{PREFIX}{HEAD}.base_layer.weight": weight + own,
    }
    assert list(AdapterFolder(write(tmp_path / "a", tensors)).foreign_weights(ModelFolder(tiny_llama))) == [HEAD] * own


def test_what_is_damaged_is_named(tmp_path):
    folder = write(tmp_path / "a")
    whole = dict(AdapterFolder(folder).read())
    a, b = (f"{PREFIX}{Q}.lora_{side}.weight" for side in "AB")
    for number, (tensors, message) in enumerate(
        (
            ({name: t for name, t in whole.items() if name != b}, f"has lora_A of {Q} but no lora_B"),
            ({name: t for name, t in whole.items() if name != a}, f"has lora_B of {Q} but no lora_A"),
            ({**whole, a: torch.ones(4, 16)}, f"of {Q}, which do not belong together"),
            (
                {**whole, a.removeprefix(PREFIX): whole[a].clone(), b.removeprefix(PREFIX): whole[b].clone()},
                f"holds {Q} twice",
            ),
        )
    ):
        with pytest.raises(CheckpointError, match=rf"^adapter math .*{message}.*: copy the adapter again$"):
            _ = AdapterFolder(write(tmp_path / str(number), tensors), name="math").pairs
    (folder / "adapter_model.safetensors").write_bytes(b"\x08")
    with pytest.raises(CheckpointError, match=r"^adapter math: adapter_model.safetensors is damaged or cut off"):
        _ = AdapterFolder(folder, name="math").shapes
    for text, message in (
        ("{", r"adapter_config.json is not JSON"),
        ("[]", "adapter_config.json holds no JSON object"),
        ('{"a": "' + "x" * (4 << 20) + '"}', "has more than 4 MiB"),
    ):
        (folder / "adapter_config.json").write_text(text)
        with pytest.raises(CheckpointError, match=message):
            AdapterFolder(folder)
    (folder / "adapter_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no adapter_config\.json: give a folder that `sqft train`"):
        AdapterFolder(folder)


def test_a_rank_or_a_module_that_the_configuration_does_not_have_is_refused(tmp_path):
    for number, (config, message) in enumerate(
        (
            ({"r": 16, "rank_choices": None}, "has rank 8 in its tensors and 16 in adapter_config.json"),
            ({"target_modules": ["lm_head"]}, f"holds tensors of {Q}, which target_modules"),
        )
    ):
        folder = AdapterFolder(write(tmp_path / str(number), **config))
        with pytest.raises(CheckpointError, match=message):
            folder.check_pair(folder.pairs[Q])
    with pytest.raises(CheckpointError, match="maximum 8 but r=16"):
        _ = AdapterFolder(write(tmp_path / "choices", r=16)).rank_choices


@pytest.mark.once
def test_ranks_and_headers_are_read_without_transformers_and_peft(tmp_path):
    write(tmp_path / "a")
    code = (
        "import sys; from sqft_plugins.adapter import AdapterFolder; "
        f"f = AdapterFolder({str(tmp_path / 'a')!r}); f.pairs, f.rank_choices, f.scaling('x'); "
        "print([name for name in ('transformers', 'peft', 'compressed_tensors') if name in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


@pytest.mark.parametrize("adapter", ["adapter-dense", "extracted", "extracted-dense", "extracted-mixed"])
def test_every_sub_adapter_scales_as_its_super_adapter(samples, adapter):
    folder = AdapterFolder(adapter)
    folder.check_config()
    for module, pair in folder.pairs.items():
        folder.check_pair(pair)
        assert folder.scaling(module) == 2, module
    ranks = {pair.rank for pair in folder.pairs.values()}
    assert ranks == ({4, 2} if adapter == "extracted-mixed" else {4} if folder.is_elastic else {3})
