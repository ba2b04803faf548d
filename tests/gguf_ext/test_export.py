"""The file against the model: logits, bits, zeros, and what happens when writing fails."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from gguf import GGUFReader, quants
from transformers import AutoModelForCausalLM

from gguf_ext import LlamaSession, export_gguf, verify_gguf
from gguf_ext.errors import VerificationError
from gguf_ext.reader import GGUFFile
from sqft_plugins.checkpoint import ModelFolder
from sqft_plugins.errors import CheckpointError, DiskFullError, OutputExistsError

ROPE3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
    "rope_theta": 10000.0,
}
GEMMA_LINEAR = {
    "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}
PATTERN = ["sliding_attention", "full_attention", "sliding_attention"]
VARIANTS = {
    "llama": ("llama", {}),
    "llama-tied-mha": ("llama", {"tie_word_embeddings": True, "num_key_value_heads": 4}),
    "llama-bias": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama3-rope": ("llama", {"rope_parameters": ROPE3}),
    "llama-linear-rope": ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}}),
    "gemma3": ("gemma3", {}),
    "gemma3-layers": ("gemma3", {"layer_types": PATTERN, "num_hidden_layers": 3, "rope_parameters": GEMMA_LINEAR}),
    "gemma3-capped": ("gemma3", {"final_logit_softcapping": 5.0, "num_hidden_layers": 1}),
}


def _compare(model, file, tokens):
    """(max |dlogit|, mean KL) of llama.cpp against transformers, both in fp32."""
    with torch.no_grad():
        reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)(torch.tensor([tokens])).logits[0]
    with LlamaSession(file, threads=1, kv_type="f32", flash_attention=False) as session:
        logits = torch.cat([chunk.clone() for chunk in session.logits(tokens)])
    p, q = reference.double().log_softmax(-1), logits.double().log_softmax(-1)
    return float((reference - logits).abs().max()), float((p.exp() * (p - q)).sum(-1).mean())


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_of_an_f32_file_are_those_of_transformers(variant, request, make, tmp_path):
    kind, options = VARIANTS[variant]
    tokenizer = request.getfixturevalue({"llama": "byte_level", "gemma3": "fallback"}[kind])
    model = make[kind](tokenizer, tmp_path / "model", **options)
    report = export_gguf(model, tmp_path / "m.gguf", float_type="f32")
    assert set(report.types) == {"F32"}
    assert report.architecture == kind
    tokens = torch.randint(0, len(tokenizer), (150,), generator=torch.Generator().manual_seed(1)).tolist()
    largest, divergence = _compare(model, tmp_path / "m.gguf", tokens)
    assert largest < 0.1
    assert divergence < 1e-5


def test_the_logits_do_tell_a_wrong_row_order(llama, tmp_path, monkeypatch):
    monkeypatch.setattr("gguf_ext.arch.spec.rotary_order", lambda rows, heads: torch.arange(rows))
    export_gguf(llama, tmp_path / "m.gguf", float_type="f32")
    largest, divergence = _compare(llama, tmp_path / "m.gguf", list(range(4, 120)))
    assert largest > 1
    assert divergence > 1e-3


# --- INT4, to the bit ---


def _naive_rows(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """The rotary order of llama.cpp, written out: within a head, row 2 i + j is row i of half j."""
    out = torch.empty_like(weight)
    head = weight.shape[0] // heads
    for start in range(0, weight.shape[0], head):
        for i in range(head // 2):
            for j in range(2):
                out[start + 2 * i + j] = weight[start + j * head // 2 + i]
    return out


NAMES = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v"}
NAMES |= {"self_attn.o_proj": "attn_output"}
NAMES |= {"mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}


def _assert_bits(model, file, types):
    """INT4 modules, dequantized by the gguf package, equal fp32 scale * (code - zero_point); what is pruned is 0."""
    folder = ModelFolder(model)
    tensors = {tensor.name: tensor for tensor in GGUFReader(file).tensors}
    assert folder.int4.modules
    seen = set()
    for module in folder.int4.modules:
        _, _, layer, inner = module.split(".", 3)
        tensor = tensors[f"blk.{layer}.{NAMES[inner]}.weight"]
        wanted, mask = folder.quantized(module).dequantize(), folder.mask(module)
        if folder.config["model_type"] == "llama" and inner in ("self_attn.q_proj", "self_attn.k_proj"):
            heads = folder.config["num_attention_heads" if inner.endswith("q_proj") else "num_key_value_heads"]
            wanted, mask = _naive_rows(wanted, heads), _naive_rows(mask, heads)
        found = quants.dequantize(tensor.data, tensor.tensor_type)
        np.testing.assert_array_equal(found.view(np.uint32), wanted.numpy().view(np.uint32))
        assert not found[~mask.numpy()].any()
        seen.add(tensor.tensor_type.name)
    assert seen == types


@pytest.mark.parametrize("name", ["llama_int4", "gemma3_int4"])
def test_int4_is_exact(name, request, tmp_path):
    model = request.getfixturevalue(name)
    report = export_gguf(model, tmp_path / "m.gguf")
    _assert_bits(model, tmp_path / "m.gguf", {"Q4_0"})
    assert report.types["Q4_0"] == len(ModelFolder(model).int4.modules)
    verified = verify_gguf(model, tmp_path / "m.gguf")
    assert verified.ok
    assert verified.equal == verified.tensors == report.verified
    assert verified.pruned == report.pruned > 0
    assert verified.rounded == 0


@pytest.mark.parametrize(
    ("group", "symmetric"), [(64, True), (128, True), (128, False), (-1, True), (32, False), (-1, False)]
)
def test_other_grids_are_exact(group, symmetric, llama, make, byte_level, tmp_path):
    source = llama
    if group > 32:  # which does not divide the 96 of the fixture
        source = make["llama"](byte_level, tmp_path / "float", hidden_size=128, intermediate_size=128)
    model = make["int4"](source, tmp_path / "int4", group, symmetric)
    export_gguf(model, tmp_path / "m.gguf")
    _assert_bits(model, tmp_path / "m.gguf", {"Q4_0"} if symmetric else {"Q5_0"})
    metadata = GGUFFile(tmp_path / "m.gguf").metadata
    assert metadata["sqft.group_size"] == group
    assert metadata["general.file_type"] == (2 if symmetric else 8)


def test_metadata_says_what_was_done(llama_int4, tmp_path):
    export_gguf(llama_int4, tmp_path / "m.gguf")
    metadata, stamp = GGUFFile(tmp_path / "m.gguf").metadata, ModelFolder(llama_int4).stamp
    assert stamp is not None
    assert metadata["general.architecture"] == "llama"
    assert metadata["general.type"] == "model"
    assert metadata["general.file_type"] == 2
    assert metadata["general.quantization_version"] == 2
    assert metadata["general.base_model.0.name"] == "tiny"
    assert metadata["sqft.pipeline"] == ["magnitude", "round-to-nearest"]
    assert metadata["sqft.sparsity"] == 0.5
    assert metadata["sqft.mask_hash"] == stamp.mask_hash
    assert metadata["sqft.scale_hash"] == stamp.scale_hash
    assert metadata["sqft.base"] == "tiny"
    assert metadata["sqft.group_size"] == 32


def test_int4_logits_are_near_the_dequantized_model(gemma3_int4, tmp_path):
    """llama.cpp rounds activations to 8 bits, so only near: the bits are tested above."""
    export_gguf(gemma3_int4, tmp_path / "m.gguf")
    tokens = list(range(4, 130))
    from sqft_plugins.checkpoint import load_model

    with torch.no_grad():
        reference = load_model(gemma3_int4, dtype=torch.float32)(torch.tensor([tokens])).logits[0]
    with LlamaSession(tmp_path / "m.gguf", threads=1) as session:
        logits = torch.cat([chunk.clone() for chunk in session.logits(tokens)])
    assert torch.nn.functional.cosine_similarity(reference, logits).min() > 0.95


# --- what can go wrong ---


def test_an_existing_target_stays(llama, tmp_path):
    target = tmp_path / "m.gguf"
    target.write_text("mine")
    with pytest.raises(OutputExistsError, match="--overwrite"):
        export_gguf(llama, target)
    assert target.read_text() == "mine"
    export_gguf(llama, target, overwrite=True)
    assert verify_gguf(llama, target).ok


def test_a_missing_model_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="is not a folder"):
        export_gguf(tmp_path / "none", tmp_path / "m.gguf")


def test_a_failure_while_writing_leaves_nothing(llama, tmp_path, monkeypatch):
    from gguf_ext.write.plan import Planned

    calls = []

    def fail(self, folder):
        calls.append(self.name)
        if len(calls) == 5:
            raise KeyboardInterrupt
        yield from original(self, folder)

    original = Planned.pieces
    monkeypatch.setattr(Planned, "pieces", fail)
    (tmp_path / "m.gguf").write_text("old")
    with pytest.raises(KeyboardInterrupt):
        export_gguf(llama, tmp_path / "m.gguf", overwrite=True)
    assert [file.name for file in tmp_path.iterdir()] == ["m.gguf"]
    assert (tmp_path / "m.gguf").read_text() == "old"


@pytest.mark.parametrize("split", [None, 100_000])
def test_a_full_disk_is_one_line_and_leaves_nothing(split, llama, small_disk):
    (small_disk / "filler").write_bytes(bytes(800_000))
    with pytest.raises(DiskFullError, match=r"m\.gguf: the disk is full"):
        export_gguf(llama, small_disk / "m.gguf", split_max_size=split)
    assert [file.name for file in small_disk.iterdir()] == ["filler"]


KILLED = """
import os, signal, sys
from gguf_ext import export_gguf
from gguf_ext.write.plan import Planned
original, calls = Planned.pieces, []
def pieces(self, folder):
    calls.append(self)
    if len(calls) == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    yield from original(self, folder)
Planned.pieces = pieces
export_gguf(sys.argv[1], sys.argv[2], overwrite=True)
"""


@pytest.mark.once
@pytest.mark.parametrize("old", [None, b"old"])
def test_killed_while_writing_leaves_no_target_or_the_old_one(old, llama, tmp_path):
    if old is not None:
        (tmp_path / "m.gguf").write_bytes(old)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", KILLED, llama, tmp_path / "m.gguf"], env=environment, check=False, timeout=120
    )
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / "m.gguf").read_bytes() == old if old else not (tmp_path / "m.gguf").exists()


def test_a_file_that_does_not_verify_is_not_kept(llama_int4, tmp_path, monkeypatch):
    monkeypatch.setattr("gguf_ext.write.plan.block_bytes", lambda weight, kind: _flipped(weight, kind))
    with pytest.raises(VerificationError, match=r"blk\.0\.attn_q\.weight: .* weights differ, by .* at most"):
        export_gguf(llama_int4, tmp_path / "m.gguf")
    assert list(tmp_path.iterdir()) == []


def _flipped(weight, kind):
    from gguf_ext.write.transcode import block_bytes

    raw = block_bytes(weight, kind)
    raw[0, 5] ^= 1
    return raw


# --- verify ---


def test_verify_finds_one_changed_nibble_and_a_lost_zero(llama_int4, tmp_path):
    export_gguf(llama_int4, tmp_path / "m.gguf")
    read = GGUFFile(tmp_path / "m.gguf")
    mask = ModelFolder(llama_int4).mask("model.layers.1.mlp.up_proj")
    column = int((~mask[0, :16]).nonzero()[0])
    at = read.tensors["blk.1.ffn_up.weight"].offset + 2 + column
    with open(tmp_path / "m.gguf", "r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))
    report = verify_gguf(llama_int4, tmp_path / "m.gguf")
    assert not report.ok
    assert [difference.name for difference in report.differences] == ["blk.1.ffn_up.weight"]
    assert "1 of 6144 weights differ" in report.differences[0].what
    assert report.pruned_nonzero == 1


def test_verify_compares_metadata_and_names(llama, llama_int4, gemma3, tmp_path):
    export_gguf(llama_int4, tmp_path / "int4.gguf")
    report = verify_gguf(llama, tmp_path / "int4.gguf")  # the float model it was made from
    assert not report.ok
    assert {d.name for d in report.differences} >= {"blk.0.attn_q.weight"}
    report = verify_gguf(gemma3, tmp_path / "int4.gguf")
    names = {difference.name for difference in report.differences}
    assert "general.architecture" in names
    assert "blk.0.attn_q_norm.weight" in names


def test_verify_counts_what_a_narrow_type_rounded(llama, tmp_path):
    export_gguf(llama, tmp_path / "m.gguf", float_type="f16")
    report = verify_gguf(llama, tmp_path / "m.gguf")
    assert report.ok
    assert report.rounded == sum(len(ModelFolder(llama).spec(name).shape) > 1 for name in ModelFolder(llama).files)


def test_a_sharded_model_and_a_bf16_one(llama, byte_level, make, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.bfloat16)
    shutil.copytree(llama, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    model.save_pretrained(tmp_path / "model", max_shard_size="100KB")
    assert len(set(ModelFolder(tmp_path / "model").files.values())) > 1
    report = export_gguf(tmp_path / "model", tmp_path / "m.gguf")
    assert set(report.types) <= {"F16", "BF16", "F32"}
    assert verify_gguf(tmp_path / "model", tmp_path / "m.gguf").rounded == 0
