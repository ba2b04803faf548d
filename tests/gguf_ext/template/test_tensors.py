"""`--template-gguf`: models without a table, their tensors placed and ordered as in a file of the same base."""

from __future__ import annotations

import shutil

import gguf
import numpy as np
import pytest
import torch
from gguf import GGUFReader, quants
from helpers_template import FAMILIES, as_converted, write_base
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from gguf_ext import GGUFError, LlamaSession, export_gguf, verify_gguf
from gguf_ext.errors import DamagedFileError, TemplateError, UnmappedTensorError, UnsupportedArchitectureError
from gguf_ext.reader import GGUFFile
from sqft_plugins.checkpoint import ModelFolder


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_transformers(family, made, tmp_path):
    _, folder, _, base = made(family)
    with pytest.raises(UnsupportedArchitectureError, match="has no table here"):
        export_gguf(folder, tmp_path / "m.gguf")
    report = export_gguf(folder, tmp_path / "m.gguf", template_gguf=base, float_type="f32")
    assert report.architecture == family
    tokens = torch.randint(4, 640, (60,), generator=torch.Generator().manual_seed(1)).tolist()
    with torch.no_grad():
        loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
        reference = loaded(torch.tensor([tokens])).logits[0]
    with LlamaSession(tmp_path / "m.gguf", threads=1, kv_type="f32", flash_attention=False) as session:
        logits = torch.cat([chunk.clone() for chunk in session.logits(tokens)])
    p, q = reference.double().log_softmax(-1), logits.double().log_softmax(-1)
    assert float((reference - logits).abs().max()) < 0.1
    assert float((p.exp() * (p - q)).sum(-1).mean()) < 1e-5
    assert verify_gguf(folder, tmp_path / "m.gguf").exact


@pytest.mark.parametrize("kind", ["F32", "Q8_0", "Q4_0"])
@pytest.mark.parametrize("family", FAMILIES)
def test_int4_is_exact_whatever_the_type_of_the_template(family, kind, made, tiny_tokenizer, tmp_path):
    model, _, folder, _ = made(family)
    kind = gguf.GGMLQuantizationType[kind]
    base = write_base(model, tiny_tokenizer("byte-level"), family, tmp_path / "base.gguf", kind)
    report = export_gguf(folder, tmp_path / "m.gguf", template_gguf=base)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[family.upper()], 2)
    tensors = {tensor.name: tensor for tensor in GGUFReader(tmp_path / "m.gguf").tensors}
    read = ModelFolder(folder)
    for module in read.int4.modules:
        tensor = tensors[f"{names.get_name(module)}.weight"]
        weight, mask = read.quantized(module).dequantize(), read.mask(module)
        wanted, mask = (as_converted(family, f"{module}.weight", part) for part in (weight, mask))
        found = quants.dequantize(tensor.data, tensor.tensor_type)
        np.testing.assert_array_equal(found.view(np.uint32), wanted.numpy().view(np.uint32))
        assert not found[~mask.numpy()].any()
    assert report.types["Q4_0"] == len(read.int4.modules)
    assert report.exact
    assert report.pruned > 0


def test_metadata_is_the_templates_but_for_what_is_about_the_weights(made, tmp_path):
    _, _, folder, base = made("olmo2")
    export_gguf(folder, tmp_path / "m.gguf", template_gguf=base)
    ours, theirs = GGUFFile(tmp_path / "m.gguf"), GGUFFile(base)
    changed = {key for key in theirs.metadata if ours.metadata.get(key) != theirs.metadata[key]}
    assert changed == {"general.name", "general.file_type"}
    assert ours.metadata["general.license"] == "apache-2.0"
    assert ours.metadata["general.file_type"] == 2
    assert ours.metadata["sqft.pipeline"] == ["magnitude", "round-to-nearest"]
    assert all(ours.kinds[key] == kind for key, kind in theirs.kinds.items())


def test_a_model_with_a_table_takes_only_the_tokenizer(llama_int4, tmp_path):
    export_gguf(llama_int4, tmp_path / "base.gguf")
    bare = tmp_path / "bare"
    shutil.copytree(llama_int4, bare, ignore=shutil.ignore_patterns("token*", "chat*", "special*"))
    report = export_gguf(bare, tmp_path / "m.gguf", template_gguf=tmp_path / "base.gguf")
    assert report.tokenizer == "gpt2/llama-bpe"
    assert verify_gguf(bare, tmp_path / "m.gguf").exact
    one, other = (GGUFFile(tmp_path / name).metadata for name in ("base.gguf", "m.gguf"))
    assert {key: one[key] for key in one if key.startswith("tokenizer.")} == {
        key: other[key] for key in other if key.startswith("tokenizer.")
    }


def test_tensors_that_only_one_of_both_has_are_refused(made, tiny_tokenizer, tmp_path):
    model, _, folder, _ = made("olmo2")
    tokenizer = tiny_tokenizer("byte-level")
    base = write_base(model, tokenizer, "olmo2", tmp_path / "a.gguf", without=["blk.1.ffn_up.weight"])
    with pytest.raises(UnmappedTensorError, match=r"has blk\.1\.ffn_up\.weight, which the template has not"):
        export_gguf(folder, tmp_path / "m.gguf", template_gguf=base)
    more = [("blk.0.ffn_gate_inp.weight", np.ones((4, 64), np.float32))]
    base = write_base(model, tokenizer, "olmo2", tmp_path / "b.gguf", more=more)
    with pytest.raises(TemplateError, match=r"has blk\.0\.ffn_gate_inp\.weight, for which the model has no tensor"):
        export_gguf(folder, tmp_path / "m.gguf", template_gguf=base)


def test_a_foreign_tensor_of_the_model_is_named(made, tmp_path):
    _, _, folder, base = made("olmo2")
    shutil.copytree(folder, tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    save_file({**load_file(file), "model.vision.weight": torch.ones(2, 2)}, file, metadata={"format": "pt"})
    with pytest.raises(UnmappedTensorError, match=r"tensor model\.vision\.weight of model .* has no place"):
        export_gguf(tmp_path / "model", tmp_path / "m.gguf", template_gguf=base)


def test_a_template_of_another_architecture_or_size_is_refused(made, llama, gemma3, tmp_path):
    _, _, folder, base = made("olmo2")
    export_gguf(gemma3, tmp_path / "gemma3.gguf")
    with pytest.raises(GGUFError, match=r"which the template has not|does not look like|is .* in template"):
        export_gguf(folder, tmp_path / "m.gguf", template_gguf=tmp_path / "gemma3.gguf")
    with pytest.raises(TemplateError, match=r"has 640 tokens, the model \d+ rows in its embedding"):
        export_gguf(llama, tmp_path / "m.gguf", template_gguf=base)
    with pytest.raises(GGUFError, match="--pre gpt-2: the template has a tokenizer"):
        export_gguf(llama, tmp_path / "m.gguf", template_gguf=base, pre="gpt-2")
    with pytest.raises(GGUFError, match="is not a file"):
        export_gguf(llama, tmp_path / "m.gguf", template_gguf=tmp_path / "none.gguf")
    (tmp_path / "bad.gguf").write_bytes(base.read_bytes()[:5000])
    with pytest.raises(DamagedFileError):
        export_gguf(folder, tmp_path / "m.gguf", template_gguf=tmp_path / "bad.gguf")


def test_a_head_that_is_but_a_copy_of_the_embedding_is_left_out(made, tiny_tokenizer, tmp_path):
    """Its name comes before that of the embedding."""
    model, folder, _, _ = made("olmo2")
    base = write_base(model, tiny_tokenizer("byte-level"), "olmo2", tmp_path / "base.gguf", without=["output.weight"])
    shutil.copytree(folder, tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    with pytest.raises(
        UnmappedTensorError, match=r"tensor lm_head\.weight of .* has output\.weight, which the template"
    ):
        export_gguf(tmp_path / "model", tmp_path / "m.gguf", template_gguf=base)
    tensors = load_file(file)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, file, metadata={"format": "pt"})
    export_gguf(tmp_path / "model", tmp_path / "m.gguf", template_gguf=base)
    assert "output.weight" not in GGUFFile(tmp_path / "m.gguf").tensors
