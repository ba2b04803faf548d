"""Forward and backward of one adapted linear layer: plain PEFT LoRA, the naive formula, ours.

    python benchmarks/tuner.py [--quick] [--json FILE] [--threads N]

Ratios are ours / peer, lower is better. The naive formula, x @ (W + s · (B @ A) ⊙ M)ᵀ, is written here.
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from common import environment, interleaved, ratio, report
from peft import LoraConfig, get_peft_model
from torch import nn

from peft_ext import SQFTConfig

R, ALPHA = 32, 64


def layers(out: int, width: int, dtype: torch.dtype) -> dict[str, nn.Module]:
    """The same sparse linear layer under a plain LoRA and under a masked adapter."""
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(width, out, bias=False, dtype=dtype))
    base[0].weight.data[torch.rand(out, width) < 0.5] = 0
    state = base.state_dict()
    models = {}
    for name, config in (("lora", LoraConfig), ("ours", SQFTConfig)):
        copy = nn.Sequential(nn.Linear(width, out, bias=False, dtype=dtype))
        copy.load_state_dict(state)
        models[name] = get_peft_model(copy, config(r=R, lora_alpha=ALPHA, target_modules=["0"])).train()
        for parameter_name, parameter in models[name].named_parameters():
            if "lora_B" in parameter_name:
                nn.init.normal_(parameter, std=0.01)
    return models


def step(call, x: torch.Tensor, parameters) -> None:
    """One forward and backward."""
    for tensor in (x, *parameters):
        tensor.grad = None
    with torch.autocast("cpu", torch.bfloat16, enabled=x.dtype == torch.bfloat16):
        call(x).sum().backward()


def measure(out: int, width: int, tokens: int, dtype: torch.dtype, rounds: int) -> dict[str, list[float]]:
    """Seconds of the three, interleaved."""
    models = layers(out, width, dtype)
    x = torch.randn(1, tokens, width, dtype=dtype, requires_grad=True)
    weight = models["ours"].base_model.model[0].base_layer.weight
    A, B = (models["lora"].base_model.model[0].get_submodule(f"lora_{f}.default").weight for f in "AB")

    def naive(x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, weight + ALPHA / R * (B @ A) * (weight != 0))

    trained = {name: [p for p in model.parameters() if p.requires_grad] for name, model in models.items()}
    return interleaved(
        {
            "lora": lambda: step(models["lora"], x, trained["lora"]),
            "naive": lambda: step(naive, x, [A, B]),
            "ours": lambda: step(models["ours"], x, trained["ours"]),
        },
        rounds,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer shapes and rounds, ends within a minute")
    parser.add_argument("--json", metavar="FILE", help="write environment, seconds and ratios")
    parser.add_argument("--threads", type=int, help="threads of torch, all by default")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    shapes = [(640, 2048), (2048, 640)] if options.quick else [(640, 2048), (2048, 640), (2048, 2048), (4096, 4096)]
    lengths = [512] if options.quick else [128, 512, 2048]
    goals = {torch.float32: (2.0, 0.7), torch.bfloat16: (3.5, 0.4)}
    ratios, seconds = {}, {}
    for dtype, (goal_lora, goal_naive) in goals.items():
        for out, width in shapes:
            for tokens in lengths:
                name = f"{out}x{width} {tokens} tokens {str(dtype).removeprefix('torch.')}"
                found = measure(out, width, tokens, dtype, rounds=3 if options.quick else 7)
                seconds[name] = found
                ratios[f"{name}: ours / lora"] = ratio(found["ours"], found["lora"], goal_lora)
                ratios[f"{name}: ours / naive"] = ratio(found["ours"], found["naive"], goal_naive)
    report({"environment": environment(), "ratios": ratios, "seconds": seconds}, options.json)


if __name__ == "__main__":
    main()
