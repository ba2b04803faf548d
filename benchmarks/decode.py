"""Decoding of a random Llama at 50 % sparsity: bf16, dense INT4 and sparse INT4 in vLLM, llama.cpp on the same codes,
and transformers with and without `sqft_plugins.accelerate`.

    python benchmarks/decode.py [--quick] [--json FILE] [--threads N] [--only NAME ...] [--breakdown] [--compile]

The model (1.16 billion parameters; tiny with --quick) is made, pruned by magnitude and rounded to INT4 in a scratch
folder, or once in --models DIR. Every runtime is loaded in a process of its own and stays; rounds go through all of
them in turn. Times are of decoding alone: the time to the first token is taken off. Bytes of weights are counted tensor
by tensor, the head and the embedding (bf16) among them; what oneDNN packs for bf16 is no tensor and shows in the
resident memory only. `goal` is a ratio of seconds, ours / peer.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from pathlib import Path

from common import command, environment, ratio, report
from memory import LAYERS, SIZES
from random_model import write_model
from worker import Worker

from vllm_ext.checks import has_int4_kernel

STOCK = {"VLLM_PLUGINS": "none"}
COMMON = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_OFFLINE": "1",
}
RUNTIMES: dict[str, tuple[str, str, dict[str, str]]] = {
    "vllm bf16": ("vllm", "pruned", STOCK),
    "vllm INT4 default": ("vllm", "int4", STOCK),
    "vllm INT4 exact": ("vllm", "int4", {**STOCK, "VLLM_CPU_INT4_W4A8": "0"}),
    "vllm sparse INT4": ("vllm", "int4", {"SQFT_VLLM_OPERATOR": "sparse"}),
    "llama.cpp Q4_0": ("llama.cpp", "gguf", {}),
    "transformers bf16": ("transformers", "pruned", {}),
    "transformers accelerate": ("transformers accelerate", "int4", {}),
}
"""Name → runtime, model, environment."""
STOCK_INT4 = ("vllm INT4 default", "vllm INT4 exact")
GOALS = [
    ("vllm sparse INT4", "vllm INT4 default", 1, None),
    ("vllm sparse INT4", "vllm bf16", 1, None),
    ("vllm sparse INT4", "llama.cpp Q4_0", 1, 1.0),
    ("vllm sparse INT4", "vllm INT4 default", 8, None),
    ("vllm sparse INT4", "vllm bf16", 8, None),
    ("vllm sparse INT4", "llama.cpp Q4_0", 8, 1.0),
    ("transformers accelerate", "transformers bf16", 1, 1.0),
    ("transformers accelerate", "llama.cpp Q4_0", 1, None),
]
"""Ours, peer, requests, goal of ours / peer in seconds."""


def make_models(folder: Path, quick: bool) -> dict[str, Path]:
    """The float, the INT4 and the GGUF model, made where they are missing."""
    paths = {"dense": folder / "dense", "pruned": folder / "pruned", "int4": folder / "int4", "gguf": folder / "m.gguf"}
    if not paths["dense"].exists():
        paths["dense"].mkdir(parents=True)
        write_model(paths["dense"], 2 * LAYERS[quick], tied=False, sparse=False, **SIZES[quick])
    if not paths["pruned"].exists():
        from sqft_plugins.compress.prune import prune_folder

        prune_folder(paths["dense"], paths["pruned"], sparsity=0.5, method="magnitude")
    if not paths["int4"].exists():
        from sqft_plugins.compress.quantize import quantize_folder

        quantize_folder(paths["pruned"], paths["int4"], "round-to-nearest")
    if not paths["gguf"].exists():
        from gguf_ext.export import export_gguf

        export_gguf(paths["int4"], paths["gguf"])
    return paths


def main() -> None:
    parser = command(__doc__, "A tiny model and few tokens; ends within a minute or so.")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=list(RUNTIMES), help="Only these runtimes.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--models", type=Path, help="Keep the models in this folder and use those that are there.")
    parser.add_argument("--breakdown", action="store_true", help="Also the share of a step by operator (vLLM).")
    parser.add_argument("--compile", action="store_true", help="vLLM with torch.compile instead of eager.")
    arguments = parser.parse_args()
    os.environ["DECODE_EAGER"] = "0" if arguments.compile else "1"
    names = arguments.only or list(RUNTIMES)
    if arguments.quick and not arguments.only:
        names = ["vllm INT4 default", "vllm sparse INT4", "llama.cpp Q4_0", "transformers accelerate"]
    missing = [name for name in names if name in STOCK_INT4 and not has_int4_kernel()]
    if missing:
        print(f"left out, vLLM has no INT4 kernel for this processor (it needs AVX-512): {'; '.join(missing)}")
    names = [name for name in names if name not in missing]
    tokens = 8 if arguments.quick else 32
    seconds: dict[str, dict[int, list[float]]] = {name: {1: [], 8: []} for name in names}
    with tempfile.TemporaryDirectory() as scratch:
        paths = make_models(arguments.models or Path(scratch), arguments.quick)
        workers = {}
        for name in names:
            runtime, model, settings = RUNTIMES[name]
            variables = {**COMMON, **settings, "OMP_NUM_THREADS": str(arguments.threads)}
            workers[name] = Worker("decode_worker.py", runtime, paths[model], arguments.threads, settings=variables)
        for number in range(arguments.rounds if not arguments.quick else 3):
            order = names if number % 2 else names[::-1]
            for requests in (1, 8):
                for name in order:
                    seconds[name][requests].append(workers[name].ask(requests=requests, tokens=tokens)["seconds"])
        rows = {}
        for name, worker in workers.items():
            rate = {n: requests_per_second(seconds[name][n], n, tokens) for n in (1, 8)}
            rows[name] = {**worker.began, "tokens_per_second": rate}
            if arguments.breakdown and RUNTIMES[name][0] != "llama.cpp":
                rows[name] |= worker.ask(breakdown=True, requests=1, tokens=tokens)
            worker.close()
    print(f"{'':24} {'weights MiB':>11} {'RSS MiB':>8} {'1 request':>10} {'8 requests':>10}  tokens/s, median")
    for name, row in rows.items():
        rate = row["tokens_per_second"]
        print(f"{name:24} {row['weight_bytes'] / 2**20:11.0f} {row['rss_mib']:8} {rate[1]:10.1f} {rate[8]:10.1f}")
        for operator, share in row.get("breakdown", {}).items():
            print(f"{'':26}{share:6.1%}  {operator}")
    ratios = {
        f"{ours} / {peer}, {n} request{'s'[: n > 1]}": ratio(seconds[ours][n], seconds[peer][n], goal)
        for ours, peer, n, goal in GOALS
        if ours in rows and peer in rows
    }
    details = {"threads": arguments.threads, "tokens": tokens, "eager": not arguments.compile, "left_out": missing}
    report({"environment": environment() | details, "runtimes": rows, "ratios": ratios}, arguments.json)


def requests_per_second(seconds: list[float], requests: int, tokens: int) -> float:
    """Tokens a second of all requests together, by the median round."""
    return requests * tokens / statistics.median(seconds)


if __name__ == "__main__":
    main()
