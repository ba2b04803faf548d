"""Fixtures every test may use: tiny random models with real tokenizers, made once a session.

`tiny_llama` (float32, untied, byte-level BPE) and `tiny_gemma` (Gemma 3 text, bfloat16, tied embeddings, BPE with byte
fallback) are folders as `save_pretrained` writes them; `pruned` and `int4` are made of the Llama. Tests must not write
into them; copy them first.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two cores are shared, and one thread gives the same sums everywhere
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # llama.cpp's threads would wait in a loop, on the cores of others
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sqft_plugins.compress.prune import prune_folder
from sqft_plugins.compress.quantize import quantize_folder

sys.path.insert(0, str(Path(__file__).parent / "samples"))  # importlib mode keeps test folders off the path
torch.set_num_threads(1)

TOKENIZERS = Path(__file__).parent / "tokenizers"
VOCABULARY = 640
SIZES = {
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
}


def make_tokenizer(kind: str):
    """A tokenizer that adds <bos>: kind "byte-level" (as Llama 3) or "byte-fallback" (as Llama 2 and Gemma).

    Both were trained on the first topics of Python 3.11's manual and are kept: every Python has another wording.
    """
    from transformers import PreTrainedTokenizerFast

    names = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_file=str(TOKENIZERS / f"{kind}.json"), **names)


FAMILIES = ("llama", "mistral", "phi3", "qwen2", "qwen3", "gemma3", "opt", "bloom", "gpt2")
"""The decoder families that the compressors promise; each is one `make_model(family)`."""


def make_model(family: str, **changes):
    """A tiny random model of one of the `FAMILIES`; always the same weights."""
    import transformers
    from transformers import AutoModelForCausalLM

    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    grouped = {**SIZES, **shape, "num_key_value_heads": 2}
    gemma = {"num_key_value_heads": 1, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 32}
    opt = {**shape, "ffn_dim": 128, "word_embed_proj_dim": 64}
    gpt2 = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256}
    name, settings = {
        "llama": ("Llama", {**grouped, "tie_word_embeddings": False}),
        "mistral": ("Mistral", {**grouped, "sliding_window": None}),
        "phi3": ("Phi3", grouped),
        "qwen2": ("Qwen2", grouped),
        "qwen3": ("Qwen3", {**grouped, "head_dim": 16}),
        "gemma3": ("Gemma3Text", {**grouped, **gemma, "dtype": "bfloat16"}),
        "opt": ("OPT", {**SIZES, **opt}),
        "bloom": ("Bloom", {**SIZES, "hidden_size": 64, "n_layer": 2, "n_head": 4}),
        "gpt2": ("GPT2", {**SIZES, **gpt2}),
    }[family]
    config = getattr(transformers, f"{name}Config")(**{**settings, **changes})
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=getattr(config, "dtype", None) or torch.float32).eval()


@pytest.fixture(scope="session")
def tiny_model() -> Callable:
    """`tiny_model(family, **config changes)` → a tiny random model in memory."""
    return make_model


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    """Each of the `FAMILIES` in turn."""
    return request.param


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Callable:
    """`tiny_tokenizer("byte-level" | "byte-fallback")` → a tokenizer that adds <bos>."""
    return make_tokenizer


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny Llama: float32, lm_head untied, byte-level BPE."""
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    make_model("llama").save_pretrained(folder)
    make_tokenizer("byte-level").save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny Gemma 3 text model: bfloat16, tied embeddings, BPE with byte fallback."""
    folder = tmp_path_factory.mktemp("models") / "tiny-gemma"
    make_model("gemma3").save_pretrained(folder)
    make_tokenizer("byte-fallback").save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def pruned(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the tiny Llama, pruned to 50 % by Wanda. For all tests: copy it before you change it."""
    folder = tmp_path_factory.mktemp("pruned") / "model"
    prune_folder(tiny_llama, folder, sparsity=0.5, sequences=2, length=32)
    return folder


@pytest.fixture(scope="session")
def int4(pruned: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of `pruned` as INT4, rounded to nearest in groups of 32. Likewise."""
    folder = tmp_path_factory.mktemp("int4") / "model"
    quantize_folder(pruned, folder)
    return folder


SAMPLES = Path(__file__).parent / "samples"


@pytest.fixture(params=sorted(path.name for path in SAMPLES.glob("v*")))
def samples(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the sample files of each version that wrote some, as the current folder: paths in them begin there."""
    copy = tmp_path / "samples"
    shutil.copytree(SAMPLES / request.param, copy)
    monkeypatch.chdir(copy)
    return copy


@pytest.fixture
def small_disk(tmp_path):
    """A tmpfs of one mebibyte; skipped where mounting is not permitted."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    if (
        mount is None
        or subprocess.run([mount, "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True).returncode
    ):
        pytest.skip("mounting a small disk is not permitted here")
    yield disk
    for _ in range(20):
        if subprocess.run(["umount", disk], capture_output=True).returncode == 0:
            break
        time.sleep(0.1)
