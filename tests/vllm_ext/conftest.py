"""Tiny stamped INT4 folders that vLLM's CPU build can serve, and engines in this process.

vLLM's CPU attention takes heads of 32 and more, its dense INT4 kernel sizes that are multiples of 32. An engine starts
in two or three seconds after the first; one is alive at a time, and a test that asks for the same one again gets it.
"""

from __future__ import annotations

import gc
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # the engine in this process
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_CPU_INT4_W4A8", "0")  # 1, the default, quantizes activations to 8 bits where there is AMX
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # importlib mode keeps test folders off the path

HAS_VLLM = importlib.util.find_spec("vllm") is not None
SHAPE: dict[str, Any] = {
    "hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2,
    "initializer_range": 0.1,  # as large as makes the answers depend on every weight
}  # fmt: skip
CHANGES: dict[str, dict[str, Any]] = {
    "gemma3": {"num_key_value_heads": 1, "head_dim": 32, "query_pre_attn_scalar": 32, "dtype": "float32"},
    "qwen3": {"head_dim": 32},
}


def pytest_collection_modifyitems(items) -> None:
    """What serves runs in the lane that has vLLM; where there is none, value planes are made all the same."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents and item.path != here / "planes" / "test_build.py":
            item.add_marker(pytest.mark.once)
        if not HAS_VLLM and item.get_closest_marker("vllm") is not None:
            item.add_marker(pytest.mark.skip(reason="vLLM is not installed"))


@pytest.fixture(scope="session")
def tiny_float(tiny_model, tiny_tokenizer, tmp_path_factory) -> Callable[..., Path]:
    """`tiny_float(family, **config changes)` → the folder of a tiny random model in float32, made once."""
    made: dict[tuple, Path] = {}

    def make(family: str, **changes: Any) -> Path:
        key = (family, *sorted(changes.items()))
        if key not in made:
            folder = tmp_path_factory.mktemp("vllm") / f"{family}-float"
            model = tiny_model(family, **{**SHAPE, **CHANGES.get(family, {}), **changes})
            for name, parameter in model.named_parameters():
                if name.endswith(".bias"):
                    torch.nn.init.normal_(parameter, std=0.5)  # transformers makes them 0
            model.save_pretrained(folder)
            tiny_tokenizer("byte-fallback" if family == "gemma3" else "byte-level").save_pretrained(folder)
            made[key] = folder
        return made[key]

    return make


@pytest.fixture(scope="session")
def tiny_int4(tiny_float, tmp_path_factory) -> Callable[..., Path]:
    """`tiny_int4(family, group_size=32, symmetric=True, sparsity=0.5, bits=4, **config changes)` → a stamped folder of
    codes, pruned by magnitude and rounded to nearest; its pruned float base lies beside it as `pruned`. Made once
    each."""
    from sqft_plugins.compress.prune import prune_folder
    from sqft_plugins.compress.quantize import quantize_folder

    made: dict[tuple, Path] = {}

    def make(
        family: str, group_size: int = 32, symmetric: bool = True, sparsity: float = 0.5, bits: int = 4, **changes: Any
    ) -> Path:
        key = (family, group_size, symmetric, sparsity, bits, *sorted(changes.items()))
        if key not in made:
            folder = tmp_path_factory.mktemp("vllm") / f"{family}-{group_size}-{'sym' if symmetric else 'asym'}"
            folder.mkdir()
            prune_folder(tiny_float(family, **changes), folder / "pruned", method="magnitude", sparsity=sparsity)
            quantize_folder(folder / "pruned", folder / "int4", group_size=group_size, symmetric=symmetric, bits=bits)
            made[key] = folder / "int4"
        return made[key]

    return make


@pytest.fixture(scope="module")
def engine() -> Iterator[Callable[..., Any]]:
    """`engine(folder, **options)` → a `vllm.LLM` in this process: float32, eager, 256 tokens, no prefix caching;
    options override. The one before is shut down unless it is the same."""
    current: dict[str, Any] = {}

    def start(folder: Path, **options: Any) -> Any:
        from vllm import LLM

        settings: dict[str, Any] = {
            "model": str(folder), "dtype": "float32", "enforce_eager": True, "max_model_len": 256, "max_num_seqs": 16,
            "enable_prefix_caching": False, "seed": 0, "disable_log_stats": True, **options,
        }  # fmt: skip
        if current.get("settings") != settings:
            stop(current)
            current.update(llm=LLM(**settings), settings=settings)
        return current["llm"]

    yield start
    stop(current)


def stop(current: dict[str, Any]) -> None:
    """Shuts the engine down and forgets it."""
    if not current:
        return
    from vllm.distributed import cleanup_dist_env_and_memory

    current.pop("llm").llm_engine.engine_core.shutdown()
    current.clear()
    gc.collect()
    cleanup_dist_env_and_memory()
    torch.set_num_threads(1)


def answers(
    llm: Any, prompts: Sequence[Sequence[int]], tokens: int = 6, **generate: Any
) -> list[list[dict[int, float]]]:
    """For each prompt of token ids, for each greedily generated token: token id → log-probability of the first few, the
    chosen one first."""
    from vllm import SamplingParams

    outputs = llm.generate(
        [{"prompt_token_ids": list(prompt)} for prompt in prompts],
        SamplingParams(temperature=0, max_tokens=tokens, logprobs=5, ignore_eos=True),
        use_tqdm=False,
        **generate,
    )
    return [
        [
            {chosen: step[chosen].logprob, **{token: entry.logprob for token, entry in step.items()}}
            for chosen, step in zip(output.outputs[0].token_ids, output.outputs[0].logprobs, strict=True)
        ]
        for output in outputs
    ]


@pytest.fixture(scope="session")
def ask() -> Callable[..., list[list[dict[int, float]]]]:
    """The function `answers`."""
    return answers
