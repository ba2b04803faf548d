"""LoRA on the CPU in vLLM: its own path against ours, in one run.

    python benchmarks/vllm_lora.py [--quick] [--json FILE] [--threads N] [--model DIR]

The model (a random Llama in bf16, or the folder given) is loaded twice, in a process with the plug-in and in one
without, and every round asks both. Adapters have rank 8, 32 and 64 on all linear layers, --max-lora-rank is 64,
--max-loras 4. Decoding: seconds of a step with 1 and with 8 requests of one adapter, and of 8 requests that share four.
Prefill: one prompt of 512 tokens. `goal` is ours / stock in seconds. Stock vLLM rounds A x to bf16, ours does not.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import command, environment, interleaved, ratio, report
from random_model import write_model
from safetensors.torch import save_file

from sqft_plugins.checkpoint import ModelFolder

RANKS = (8, 32, 64)
MAX_RANK = 64
PROMPT = 512
STEPS = {False: 16, True: 4}
SIZES = {
    False: {"layers": 4, "hidden_size": 2048, "intermediate_size": 5632, "num_attention_heads": 16},
    True: {"layers": 2, "hidden_size": 256, "intermediate_size": 704, "num_attention_heads": 4, "vocab_size": 4000},
}
GOALS = {"prefill": 0.1, "decode 8": 0.5}
"""Ours / stock in seconds: prefill ten times faster at least, decoding of eight requests twice."""
PROCESSES = {"stock": {"VLLM_PLUGINS": "none"}, "ours": {"SQFT_ADAPTERS_DIR": tempfile.gettempdir()}}
"""The plug-in leaves adapters alone that are not ours, unless a directory of adapters is served."""
COMMON = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "HF_HUB_OFFLINE": "1",
}


def write_adapter(folder: Path, model: Path, rank: int, seed: int) -> Path:
    """A plain LoRA in bf16 on all linear layers of the decoder, random."""
    files, generator, tensors = ModelFolder(model), torch.Generator().manual_seed(seed), {}
    modules = [name.removesuffix(".weight") for name in files.files if name.endswith("_proj.weight")]
    modules += [module for module in files.int4.modules if module.endswith("_proj")] if files.quantization else []
    for module in modules:
        shape = files.int4.shape(module) if files.quantization else files.spec(f"{module}.weight").shape
        key = f"base_model.model.{module}"
        tensors[f"{key}.lora_A.weight"] = torch.randn(rank, shape[1], generator=generator).bfloat16() / shape[1] ** 0.5
        tensors[f"{key}.lora_B.weight"] = torch.randn(shape[0], rank, generator=generator).bfloat16() * 0.01
    ends = sorted({module.rpartition(".")[2] for module in modules})
    folder.mkdir()
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": ends, "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


class Worker:
    """A vLLM engine in a process of its own, which measures when it is asked."""

    def __init__(self, model: Path, adapters: Sequence[Path], settings: Mapping[str, str], threads: int):
        words = [sys.executable, str(Path(__file__).with_name("vllm_lora_worker.py")), str(model), *map(str, adapters)]
        variables = {**os.environ, **COMMON, "OMP_NUM_THREADS": str(threads), **settings}
        self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=variables)
        self.ready = self._answer()

    def seconds(self, **question: Any) -> float:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        return self._answer()["seconds"]

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:  # vLLM prints there too
            if line.startswith("RESULT"):
                return json.loads(line.removeprefix("RESULT"))
        raise SystemExit(f"the worker ended with {self.process.wait()}: its messages are above")

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def questions(quick: bool) -> dict[str, dict[str, dict[str, Any]]]:
    """What is measured → which adapters → the question. adapters: the number of each request's adapter, None for the
    base."""
    steps, rows = STEPS[quick], {}
    named = {**{f"rank {rank}": number for number, rank in enumerate(RANKS)}, "no adapter": None}
    for requests in (1, 8):
        rows[f"decode {requests}"] = {
            name: {"what": "decode", "adapters": [number] * requests, "steps": steps} for name, number in named.items()
        }
    rows["decode 8"]["four adapters"] = {"what": "decode", "adapters": [0, 1, 2, 3] * 2, "steps": steps}
    rows[f"prefill {PROMPT}"] = {
        name: {"what": "prefill", "adapters": [number], "tokens": PROMPT} for name, number in named.items()
    }
    return rows


def main() -> None:
    parser = command(__doc__, "a small model, few rounds; ends within two minutes")
    parser.add_argument("--threads", type=int, default=1, help="threads of each engine (default %(default)s)")
    parser.add_argument("--model", metavar="DIR", help="a model folder, instead of the random Llama")
    parser.add_argument("--limit", type=float, default=120, help="seconds of a row (default %(default)s)")
    options = parser.parse_args()
    seconds: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        model = Path(options.model) if options.model else Path(scratch) / "model"
        if not options.model:
            model.mkdir()
            write_model(model, **SIZES[options.quick])
        adapters = [
            write_adapter(Path(scratch) / f"adapter-{number}", model, rank, number)
            for number, rank in enumerate((*RANKS, 32))
        ]
        workers: dict[str, Worker] = {}
        try:
            for name, settings in PROCESSES.items():
                workers[name] = Worker(model, adapters, settings, options.threads)
                if workers[name].ready["plugin"] != (name == "ours"):
                    raise SystemExit(f"the {name} process has the plug-in: {workers[name].ready['plugin']}")
            for what, asked in questions(options.quick).items():
                found = measure(workers, asked, 3 if options.quick else 5, options.limit)
                seconds |= {f"{what}, {row}": own for row, own in found.items()}
        finally:
            for worker in workers.values():
                worker.close()
    ratios = {f"{row}: ours / stock": ratio(own["ours"], own["stock"], goal_of(row)) for row, own in seconds.items()}
    for what in questions(options.quick):
        low, high = (seconds[f"{what}, rank {rank}"]["ours"] for rank in (RANKS[0], RANKS[-1]))
        ratios[f"{what}: ours, rank {RANKS[0]} / rank {RANKS[-1]}"] = ratio(low, high, goal=1.0)
    threads = {"threads of each engine": options.threads}
    report({"environment": {**environment(), **threads}, "seconds": seconds, "ratios": ratios}, options.json)


def measure(
    workers: Mapping[str, Worker], asked: Mapping[str, Mapping[str, Any]], rounds: int, limit: float
) -> dict[str, dict[str, list[float]]]:
    """{adapters: {process: seconds}}: what the workers measured themselves, in rounds that ask everything in turn."""
    found: dict[str, dict[str, list[float]]] = {row: {name: [] for name in workers} for row in asked}

    def ask(row: str, name: str) -> None:
        found[row][name].append(workers[name].seconds(**asked[row]))

    interleaved({f"{row} {name}": partial(ask, row, name) for row in asked for name in workers}, rounds, limit)
    for row, own in found.items():
        shown = (f"{name} {sorted(times[1:])[len(times[1:]) // 2] * 1000:.1f} ms" for name, times in own.items())
        print(f"{row}:", *shown, file=sys.stderr)
    return {row: {name: times[1:] for name, times in own.items()} for row, own in found.items()}  # the first warms up


def goal_of(row: str) -> float | None:
    """None for the rows without an adapter, which have nothing to gain."""
    if "no adapter" in row:
        return None
    return next((goal for name, goal in GOALS.items() if row.startswith(name)), None)


if __name__ == "__main__":
    main()
