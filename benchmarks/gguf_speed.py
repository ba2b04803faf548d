"""Speed and peak memory of `sqft export gguf` against the size of the model, beside llama.cpp's own route.

    python benchmarks/gguf_speed.py [--quick] [--json FILE] [--sizes 0.27 1 3]

Random Llamas (symmetric INT4, groups of 32, half of the weights 0) are written to disk with one tensor in memory.
Each is exported in a process of its own, one thread; the time ends with the file verified and renamed, that of the
verification stands beside it. The peer starts from the same weights as a folder in fp16, which is not counted: an F16
file, then llama.cpp's quantizer over that (not verified). Times are seconds of the processor, so that a busy machine
changes them little; those of the clock are in the JSON. Peaks are of resident memory, mapped files included.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from common import command, environment, ratio, report
from llama_cpp_route import write_float
from random_model import write_int4_model, write_model

SIZES = {
    "0.02": {"layers": 4, "hidden_size": 512, "intermediate_size": 1408, "num_attention_heads": 8, "vocab_size": 4000},
    "0.04": {"layers": 12, "hidden_size": 512, "intermediate_size": 1408, "num_attention_heads": 8, "vocab_size": 4000},
    "0.27": {
        "layers": 21,
        "hidden_size": 1024,
        "intermediate_size": 2816,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
    },
    "1": {
        "layers": 21,
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
    },
    "3": {
        "layers": 29,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_attention_heads": 24,
        "num_key_value_heads": 8,
    },
}
"""Billions of parameters → shape."""
TIMED = """
import sys, time
sys.path.insert(0, HERE)
import torch
torch.set_num_threads(1)
from gguf_ext import export_gguf, verify_gguf
from llama_cpp_route import quantize
from sqft_plugins.compress.report import peak_memory_mib
from pathlib import Path
source, target = map(Path, sys.argv[1:])
start, busy = time.perf_counter(), time.process_time()
CALL
import json
seconds, cpu = time.perf_counter() - start, time.process_time() - busy
print(json.dumps({"seconds": seconds, "cpu_seconds": cpu, "peak_mib": peak_memory_mib()}))
"""
OURS, VERIFY, FLOAT, QUANTIZE = "export", "of it verifying", "F16 file", "F16 to Q4_0"
CALLS = {
    OURS: "export_gguf(source, target)",
    VERIFY: "assert verify_gguf(source, target).ok",
    FLOAT: "export_gguf(source, target, float_type='f16')",
    QUANTIZE: "quantize(source, target, threads=1, keep_embedding=True)",
}


def measured(call: str, source: Path, target: Path) -> dict:
    """Runs one of CALLS in a process of its own → seconds and cpu_seconds (without the imports), peak_mib."""
    code = TIMED.replace("CALL", CALLS[call]).replace("HERE", repr(str(Path(__file__).parent)))
    command = [sys.executable, "-c", code, str(source), str(target)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def one_size(size: str, place: Path) -> dict:
    """Every measurement of one size, and what it left on the disk removed."""
    original, int4, half = place / "original", place / "int4", place / "half"
    ours, f16, theirs = place / "ours.gguf", place / "f16.gguf", place / "theirs.gguf"
    parameters = write_model(original, **SIZES[size])
    write_int4_model(original, int4)
    shutil.rmtree(original)
    rows = {OURS: measured(OURS, int4, ours), VERIFY: measured(VERIFY, int4, ours)}
    write_float(int4, half)
    shutil.rmtree(int4)
    rows |= {FLOAT: measured(FLOAT, half, f16), QUANTIZE: measured(QUANTIZE, f16, theirs)}
    bytes_ = {"ours": ours.stat().st_size, "peer": theirs.stat().st_size}
    for name, row in rows.items():
        times = f"{row['cpu_seconds']:7.1f} s of the processor, {row['seconds']:7.1f} s"
        print(f"{size:>4} B  {name:16} {times}  peak {row['peak_mib']:5} MiB", flush=True)
    for path in (ours, f16, theirs):
        path.unlink()
    shutil.rmtree(half)
    return {"parameters": parameters, "bytes": bytes_, **rows}


def main() -> None:
    parser = command(__doc__, "Small models; ends within a minute.")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, help="Billions of parameters. [0.27 1 3]")
    arguments = parser.parse_args()
    sizes = arguments.sizes or (["0.02", "0.04"] if arguments.quick else ["0.27", "1", "3"])
    with tempfile.TemporaryDirectory() as scratch:
        results = {size: one_size(size, Path(scratch)) for size in sizes}

    def per_parameter(size: str) -> float:
        return results[size][OURS]["cpu_seconds"] / results[size]["parameters"]

    peer = {size: row[FLOAT]["cpu_seconds"] + row[QUANTIZE]["cpu_seconds"] for size, row in results.items()}
    peaks = {size: max(row[FLOAT]["peak_mib"], row[QUANTIZE]["peak_mib"]) for size, row in results.items()}
    ratios = {
        f"{size} B: seconds a parameter / those at {sizes[0]} B": ratio(
            [per_parameter(size)], [per_parameter(sizes[0])], 1.25
        )
        for size in sizes[1:]
    }
    for size, row in results.items():
        ratios[f"{size} B: peak / 2 GB"] = ratio([row[OURS]["peak_mib"] * 2**20], [2e9], 1.0)
        ratios[f"{size} B: seconds / llama.cpp's route"] = ratio([row[OURS]["cpu_seconds"]], [peer[size]], None)
        ratios[f"{size} B: peak / llama.cpp's route"] = ratio([row[OURS]["peak_mib"]], [peaks[size]], None)
    report({"environment": environment(), "results": results, "ratios": ratios}, arguments.json)


if __name__ == "__main__":
    main()
