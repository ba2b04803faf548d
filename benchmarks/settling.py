"""Training over the codes of a file: a step of an adapter that will settle, over a base that stays packed and over its
floats, against one of a plain LoRA over the same floats, and what settling takes.

    python benchmarks/settling.py [--quick] [--model FILE.gguf] [--json FILE] [--threads N]

A step is forward, backward and AdamW on 4 sequences of 128 tokens, in float32, with logits at the last 16 tokens of
each; all take turns, and ratios are made round by round. Peak bytes are those that torch allocates in a step. Memory is
the base and that peak, and what is allowed: the file, the peak of LoRA, and one layer in float32. Settling is on 16
sequences of 128 tokens. --dtype bfloat16 is autocast over a bfloat16 base, as `sqft train` has it.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from allocations import peak_bytes
from common import command, environment, interleaved, ratio, report
from peft import LoraConfig, get_peft_model

from gguf_ext import quantize_gguf
from peft_ext import SQFTConfig
from sqft_plugins.checkpoint import load_model, open_model
from sqft_plugins.checkpoint.load_packed import load_packed

R, ALPHA = 32, 64
TARGETS = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]
STEP_GOAL = 1.5


def adapted(path: Path, dtype: torch.dtype) -> dict[str, Any]:
    """Candidate → the model of the file with an adapter, all with the same A and B."""
    shared = {"r": R, "lora_alpha": ALPHA, "target_modules": TARGETS}
    settles = SQFTConfig(**shared, sparse=False, quantization_aware=True, rounding="compensated")
    models = {}
    for name, config, load in (
        ("lora", LoraConfig(**shared), load_model),
        ("float", settles, load_model),
        ("ours", settles, load_packed),
    ):
        models[name] = get_peft_model(load(path, dtype), config).train()
        torch.manual_seed(0)
        for parameter_name, parameter in models[name].named_parameters():
            if "lora_B" in parameter_name:
                torch.nn.init.normal_(parameter, std=0.01)
    return models


def step(model: Any, optimizer: torch.optim.Optimizer, tokens: torch.Tensor, narrow: bool) -> None:
    optimizer.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
        logits = model(input_ids=tokens, logits_to_keep=17).logits[:, :-1]
    F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, -16:].flatten()).backward()
    optimizer.step()


def run(path: Path, rounds: int, dtype: torch.dtype) -> dict[str, Any]:
    """{"ratios", "seconds", "bytes"}"""
    models = adapted(path, dtype)
    vocabulary = models["lora"].get_input_embeddings().weight.shape[0]
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, vocabulary, (4, 128), generator=generator)
    calls = {
        name: partial(
            step,
            model,
            torch.optim.AdamW([p for p in model.parameters() if p.requires_grad]),
            tokens,
            dtype == torch.bfloat16,
        )
        for name, model in models.items()
    }
    seconds = interleaved(calls, rounds)
    peaks = {name: float(peak_bytes(call)) for name, call in calls.items()}

    start = time.perf_counter()
    models["ours"].base_model.settle(torch.randint(0, vocabulary, (16, 128), generator=generator))
    seconds["settle"] = [time.perf_counter() - start]
    file = open_model(path)
    base = {
        "file": file.weight_bytes,
        "floats": frozen_bytes(models["lora"]),
        "packed": frozen_bytes(models["ours"]),
        "layer": 4 * max(math.prod(file.int4.shape(module)) for module in file.int4.modules),
    }
    memory, allowed = base["packed"] + peaks["ours"], base["file"] + peaks["lora"] + base["layer"]
    ratios = {
        "step, ours / lora": ratio(seconds["ours"], seconds["lora"], STEP_GOAL),
        "step over floats, ours / lora": ratio(seconds["float"], seconds["lora"], None),
        "memory, ours / allowed": ratio([memory], [allowed], 1.0),
        "memory, ours / lora": ratio([memory], [base["floats"] + peaks["lora"]], None),
    }
    return {"ratios": ratios, "seconds": seconds, "bytes": {"peak": peaks, **base}}


def frozen_bytes(model: Any) -> int:
    """Of the base: its floats, and what is packed, once where layers share it."""
    floats = sum(p.numel() * p.element_size() for p in model.parameters() if not p.requires_grad)
    packed = {id(layer.packed): layer.packed.nbytes for layer in model.modules() if hasattr(layer, "packed")}
    return floats + sum(packed.values())


def main() -> None:
    parser = command(__doc__, "A tiny random model; ends within a minute.")
    parser.add_argument("--model", type=Path, help="The file. Default: one of a random model, Q4_0.")
    parser.add_argument("--threads", type=int, help="Threads of torch, all by default.")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)

    with tempfile.TemporaryDirectory() as scratch:
        result = run(
            options.model or random_file(Path(scratch), options),
            3 if options.quick else 7,
            getattr(torch, options.dtype),
        )
    report({"environment": environment(), **result}, options.json)
    bytes_, settle = result["bytes"], result["seconds"]["settle"][0]
    mib = {name: f"{count / 2**20:.0f} MiB" for name, count in bytes_.items() if name != "peak"}
    print(f"base: packed {mib['packed']}, as floats {mib['floats']}, its file {mib['file']}")
    print("peak of a step: " + ", ".join(f"{name} {count / 2**20:.0f} MiB" for name, count in bytes_["peak"].items()))
    print(f"settling {settle:.1f} s, a step {min(result['seconds']['ours']):.2f} s")


def random_file(place: Path, options: argparse.Namespace) -> Path:
    from random_model import write_model

    sizes = {True: (2, 256, 704, 4), False: (4, 1024, 2816, 8)}[options.quick]
    layers, hidden, inner, heads = sizes
    (place / "model").mkdir()
    write_model(
        place / "model", layers, sparse=False, hidden_size=hidden, intermediate_size=inner, num_attention_heads=heads
    )
    quantize_gguf(place / "model", place / "m.gguf", type="Q4_0", importance=False)
    return place / "m.gguf"


if __name__ == "__main__":
    main()
