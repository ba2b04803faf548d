"""Training over the codes of a file: a step of an adapter that will settle against one of a plain LoRA over the same
dequantized weights, and what settling takes.

    python benchmarks/settling.py [--quick] [--model FILE.gguf] [--json FILE] [--threads N]

A step is forward, backward and AdamW on 4 sequences of 128 tokens, in float32, with logits at the last 16 tokens of
each; both take turns, and ratios are made round by round. Peak bytes are those that torch allocates in a step. Settling
is on 16 sequences of 128 tokens. The base is in memory as floats, whatever its codes take: both numbers are printed.
"""

from __future__ import annotations

import argparse
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

R, ALPHA = 32, 64
TARGETS = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]
STEP_GOAL, PEAK_GOAL = 1.5, 1.1


def adapted(path: Path) -> dict[str, Any]:
    """Candidate → the model of the file with an adapter, both with the same A and B."""
    shared = {"r": R, "lora_alpha": ALPHA, "target_modules": TARGETS}
    settles = SQFTConfig(**shared, sparse=False, quantization_aware=True, rounding="compensated")
    models = {}
    for name, config in (("lora", LoraConfig(**shared)), ("ours", settles)):
        models[name] = get_peft_model(load_model(path, torch.float32), config).train()
        torch.manual_seed(0)
        for parameter_name, parameter in models[name].named_parameters():
            if "lora_B" in parameter_name:
                torch.nn.init.normal_(parameter, std=0.01)
    return models


def step(model: Any, optimizer: torch.optim.Optimizer, tokens: torch.Tensor) -> None:
    optimizer.zero_grad()
    logits = model(input_ids=tokens, logits_to_keep=17).logits[:, :-1]
    F.cross_entropy(logits.flatten(0, 1), tokens[:, -16:].flatten()).backward()
    optimizer.step()


def run(path: Path, rounds: int) -> dict[str, Any]:
    """{"ratios", "seconds", "bytes"}"""
    models = adapted(path)
    vocabulary = models["ours"].get_input_embeddings().weight.shape[0]
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, vocabulary, (4, 128), generator=generator)
    calls = {
        name: partial(step, model, torch.optim.AdamW([p for p in model.parameters() if p.requires_grad]), tokens)
        for name, model in models.items()
    }
    seconds = interleaved(calls, rounds)
    peaks = {name: float(peak_bytes(call)) for name, call in calls.items()}

    start = time.perf_counter()
    models["ours"].base_model.settle(torch.randint(0, vocabulary, (16, 128), generator=generator))
    seconds["settle"] = [time.perf_counter() - start]
    base = {
        "file": open_model(path).weight_bytes,
        "floats": sum(p.numel() * p.element_size() for p in models["lora"].parameters() if not p.requires_grad),
    }
    ratios = {
        "step, ours / lora": ratio(seconds["ours"], seconds["lora"], STEP_GOAL),
        "peak of a step, ours / lora": ratio([peaks["ours"]], [peaks["lora"]], PEAK_GOAL),
    }
    return {"ratios": ratios, "seconds": seconds, "bytes": {"peak": peaks, **base}}


def main() -> None:
    parser = command(__doc__, "A tiny random model; ends within a minute.")
    parser.add_argument("--model", type=Path, help="The file. Default: one of a random model, Q4_0.")
    parser.add_argument("--threads", type=int, help="Threads of torch, all by default.")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)

    with tempfile.TemporaryDirectory() as scratch:
        result = run(options.model or random_file(Path(scratch), options), 3 if options.quick else 7)
    report({"environment": environment(), **result}, options.json)
    bytes_, settle = result["bytes"], result["seconds"]["settle"][0]
    print(f"base in memory {bytes_['floats'] / 2**20:.0f} MiB, its file {bytes_['file'] / 2**20:.0f} MiB")
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
