"""Training with a masked adapter: plain PEFT LoRA, the naive formula, ours; time and memory.

    python benchmarks/tuner.py [--quick] [--model DIR] [--json FILE] [--threads N]

One linear layer, forward and backward, in float32, in bf16 with float32 adapters (autocast, as Trainer's bf16=True) and
in bf16 throughout; with --model (a sparse folder, such as demo-out/pruned) a whole training step of that model, too.
Ratios are ours / peer, lower is better; the JSON has the bound by GEMM count beside them. The naive formula,
x @ (W + s · (B @ A) ⊙ M)ᵀ, is written here. A busy machine shows in a wide min..max: the three take turns, and ratios
are made round by round. Rows without the gradient of x, which only the first layers of a model know, have no goal:
there a plain LoRA needs one GEMM with W and any masked adapter two.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from allocations import kept_bytes, peak_bytes, saved_elements
from common import command, environment, interleaved, ratio, report
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from peft_ext import SQFTConfig

R, ALPHA = 32, 64
TARGETS = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]
SHAPES = [(640, 2048), (2048, 2048), (4096, 4096)]  # out, in
KINDS = {
    "fp32": (torch.float32, torch.float32),
    "bf16/fp32": (torch.bfloat16, torch.float32),
    "bf16": (torch.bfloat16,) * 2,
}
"""Name → dtypes of base and adapter; autocast where they differ."""
GOALS = {"fp32": (2.0, 0.7), "bf16/fp32": (3.5, 0.4), "bf16": (3.5, 0.4)}
"""Name → at most so much of LoRA's time, and of the naive formula's."""
PEAK_GOAL = 1.1


class NaiveLinear(nn.Module):
    """The paper's formula as one writes it down. weight: [out, in]. A: [r, in]. B: [out, r]."""

    def __init__(self, base: nn.Linear, A: Tensor, B: Tensor):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.A, self.B = nn.Parameter(A.detach().clone()), nn.Parameter(B.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        W = self.base.weight
        return F.linear(x, W + (ALPHA / R * (self.B @ self.A) * (W != 0)).to(W.dtype), self.base.bias)


def three(make: Callable[[], nn.Module], targets: list[str], kind: str) -> dict[str, nn.Module]:
    """The same sparse model under a plain LoRA, the naive formula and ours, with the same A and B."""
    adapter_dtype = KINDS[kind][1]
    models: dict[str, nn.Module] = {}
    for name, config in (("lora", LoraConfig), ("naive", SQFTConfig), ("ours", SQFTConfig)):
        settings = config(r=R, lora_alpha=ALPHA, target_modules=targets)
        model = get_peft_model(make(), settings, autocast_adapter_dtype=adapter_dtype == torch.float32).train()
        torch.manual_seed(0)
        for parameter_name, parameter in model.named_parameters():
            if "lora_B" in parameter_name:
                nn.init.normal_(parameter, std=0.01)
        if name == "naive":
            layers = [(path, layer) for path, layer in model.named_modules() if hasattr(layer, "lora_A")]
            for path, layer in layers:
                naive = NaiveLinear(layer.base_layer, layer.factor("A", "default"), layer.factor("B", "default"))
                parent, _, child = path.rpartition(".")
                setattr(model.get_submodule(parent), child, naive)
        models[name] = model
    return models


def sparse_linear(out: int, width: int, dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    layer = nn.Linear(width, out, bias=False, dtype=dtype)
    layer.weight.data[torch.rand(out, width) < 0.5] = 0
    return nn.Sequential(layer)


def forward(model: nn.Module, kind: str, *inputs: Any, **named: Any) -> Any:
    base, adapter = KINDS[kind]
    with torch.autocast("cpu", torch.bfloat16, enabled=base != adapter):
        return model(*inputs, **named)


def clear(model: nn.Module, *inputs: Tensor) -> None:
    for tensor in (*inputs, *model.parameters()):
        tensor.grad = None


def bound(tokens: int, with_x: bool) -> float:
    """ours / lora by the multiplications of each weight of W alone: x @ W', its two gradients, W' made twice, the
    gradients of A and B; against x @ W and one gradient."""
    gemms = 2 if with_x else 1
    return ((gemms + 1) * tokens + 4 * R) / (gemms * tokens)


def step(model: nn.Module, kind: str, x: Tensor, gradient: Tensor) -> None:
    """Forward and backward."""
    clear(model, x)
    forward(model, kind, x).backward(gradient)


def measure_layer(out: int, width: int, tokens: int, kind: str, with_x: bool, rounds: int, limit: float) -> dict:
    """{candidate: seconds} of forward and backward."""
    models = three(lambda: sparse_linear(out, width, KINDS[kind][0]), ["0"], kind)
    x = torch.randn(1, tokens, width, dtype=KINDS[kind][0], requires_grad=with_x)
    gradient = torch.randn(1, tokens, out).to(KINDS[kind][0])
    calls = {name: lambda model=model: step(model, kind, x, gradient) for name, model in models.items()}
    return interleaved(calls, rounds, limit)


def measure_memory(out: int, width: int, tokens: int, kind: str) -> dict[str, dict[str, int]]:
    """{candidate: bytes at the peak of forward and backward, bytes kept between them, elements of the largest tensor
    saved}; gradients of x, A and B are part of the peak."""
    found = {}
    for name, model in three(lambda: sparse_linear(out, width, KINDS[kind][0]), ["0"], kind).items():
        x = torch.randn(1, tokens, width, dtype=KINDS[kind][0], requires_grad=True)
        gradient = torch.randn(1, tokens, out).to(KINDS[kind][0])
        both, first = partial(step, model, kind, x, gradient), partial(forward, model, kind, x)
        both()  # what is made once is made
        clear(model, x)
        found[name] = {"peak": peak_bytes(both), "kept": kept_bytes(first), "largest_saved": saved_elements(first)}
    return found


def measure_model(folder: str, kind: str, rounds: int, limit: float) -> dict[str, list[float]]:
    """{candidate: seconds} of a training step (forward, backward, AdamW) on 4 sequences of 128 tokens; logits at the
    last 16 tokens of each, as `sqft train` computes them at answers only."""
    from sqft_plugins.checkpoint import load_model

    models = three(lambda: load_model(folder, dtype=KINDS[kind][0]), TARGETS, kind)
    tokens = torch.randint(100, 10_000, (4, 128), generator=torch.Generator().manual_seed(0))
    optimizers = {name: torch.optim.AdamW([p for p in m.parameters() if p.requires_grad]) for name, m in models.items()}

    def train(name: str) -> None:
        clear(models[name])
        logits = forward(models[name], kind, input_ids=tokens, logits_to_keep=17).logits[:, :-1]
        F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, -16:].flatten()).backward()
        optimizers[name].step()

    return interleaved({name: lambda name=name: train(name) for name in models}, rounds, limit)


def main() -> None:
    parser = command(__doc__, "one shape, 128 tokens, ends within a minute")
    parser.add_argument("--model", metavar="DIR", help="a sparse model: a whole training step of it, too")
    parser.add_argument("--threads", type=int, help="threads of torch, all by default")
    parser.add_argument(
        "--limit", type=float, default=20, help="seconds for the rounds of one row (default %(default)s)"
    )
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    result = run(options)
    report({"environment": environment(), **result}, options.json)
    for name, row in result["bytes"].items():
        numbers = ", ".join(f"{candidate} {values['peak'] / 2**20:.0f}" for candidate, values in row.items())
        print(f"{name}: peak MiB {numbers}; ours keeps {row['ours']['kept'] / 2**20:.1f} MiB for backward")


def run(options: argparse.Namespace) -> dict[str, dict]:
    ratios, seconds, sizes = {}, {}, {}
    rounds, limit = (3, 0.0) if options.quick else (7, options.limit)

    def add(name: str, goals: tuple, found: dict[str, list[float]]) -> None:
        seconds[name] = found
        for peer, goal in zip(("lora", "naive"), goals, strict=True):
            ratios[f"{name}: time, ours / {peer}"] = ratio(found["ours"], found[peer], goal)

    for kind in KINDS:
        for out, width in SHAPES[:1] if options.quick else SHAPES:
            for tokens in [128] if options.quick else [128, 512, 2048]:
                for with_x in [True] if options.quick else [True, False]:
                    name = f"{out}x{width}, {tokens} tokens, {kind}{'' if with_x else ', no gradient of x'}"
                    goals = GOALS[kind] if with_x else (None, None)
                    add(name, goals, measure_layer(out, width, tokens, kind, with_x, rounds, limit))
                    ratios[f"{name}: time, ours / lora"]["bound"] = bound(tokens, with_x)
        for out, width in SHAPES[:1] if options.quick else SHAPES:
            name, tokens = f"{out}x{width}, 512 tokens, {kind}", 512
            sizes[name] = found = measure_memory(out, width, tokens, kind)
            goal = PEAK_GOAL if (out, width) == SHAPES[-1] else None
            peaks = {candidate: [float(values["peak"])] for candidate, values in found.items()}
            ratios[f"{name}: peak, ours / lora"] = ratio(peaks["ours"], peaks["lora"], goal)
            if found["ours"]["largest_saved"] >= out * width:
                raise SystemExit(
                    f"{name}: ours keeps a tensor of {found['ours']['largest_saved']} elements for backward"
                )
        if options.model:
            step_of = f"training step of {options.model}, {kind}"
            add(step_of, GOALS[kind], measure_model(options.model, kind, rounds, limit))
    return {"ratios": ratios, "seconds": seconds, "bytes": sizes}


if __name__ == "__main__":
    main()
