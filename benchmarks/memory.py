"""Peak memory of pruning and INT4 on random Llamas of two depths, against a model held in memory.

    python benchmarks/memory.py [--quick] [--json FILE] [--method gptq]

A model of `layers` blocks and one of twice as many are written to disk (the larger has 1.16 billion parameters), pruned
(Wanda, 50 %) and quantized, each in a process of its own. The peer is the same pruning of the whole model in memory,
loaded by transformers: what a tool that does not stream needs at least.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import command, environment, ratio, report
from random_model import write_model

SIZES = {
    False: {"hidden_size": 2048, "intermediate_size": 5632, "num_attention_heads": 16, "vocab_size": 32000},
    True: {"hidden_size": 256, "intermediate_size": 704, "num_attention_heads": 4, "vocab_size": 4000},
}
LAYERS = {False: 10, True: 2}
PRUNE = """
import sys
from sqft_plugins.compress.prune import prune_folder
r = prune_folder(sys.argv[1], sys.argv[2], sparsity=0.5, **CALIBRATION)
"""
QUANTIZE = """
import sys
from sqft_plugins.compress.quantize import quantize_folder
r = quantize_folder(sys.argv[1], sys.argv[2], METHOD, **CALIBRATION)
"""
IN_MEMORY = """
import sys
from sqft_plugins.checkpoint import load_model, load_tokenizer
from sqft_plugins.compress.calibration import builtin_text, token_batch
from sqft_plugins.compress.prune import prune_model
from sqft_plugins.compress.report import peak_memory_mib
from sqft_plugins.compress.wanda import Wanda
calibration = CALIBRATION
tokens = token_batch(builtin_text("train"), load_tokenizer(sys.argv[1]), **calibration)
prune_model(load_model(sys.argv[1]), tokens, Wanda(), 0.5)
r = {"peak_memory_mib": peak_memory_mib()}
"""


def measured(code: str, *arguments: Path) -> dict:
    """Runs `code` in a process of its own → its result `r`, with the seconds it took."""
    start = time.monotonic()
    text = f"{code}\nimport json; print(json.dumps({{'peak': r['peak_memory_mib']}}))"
    command = [sys.executable, "-c", text, *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return {**json.loads(done.stdout.splitlines()[-1]), "seconds": time.monotonic() - start}


def main() -> None:
    parser = command(__doc__, "Small models; ends within a minute.")
    parser.add_argument("--method", default="gptq", help="The quantizer.")
    arguments = parser.parse_args()
    calibration = {"sequences": 4, "length": 32} if arguments.quick else {"sequences": 16, "length": 128}
    few = LAYERS[arguments.quick]

    def code(template: str) -> str:
        return template.replace("CALIBRATION", repr(calibration)).replace("METHOD", repr(arguments.method))

    results: dict[str, dict] = {}
    parameters = {}
    with tempfile.TemporaryDirectory() as scratch:
        for layers in (few, 2 * few):
            model, pruned, int4 = (Path(scratch) / f"{layers}-{what}" for what in ("model", "pruned", "int4"))
            model.mkdir()
            parameters[layers] = write_model(model, layers, tied=False, sparse=False, **SIZES[arguments.quick])
            results[f"prune, {layers} layers"] = measured(code(PRUNE), model, pruned)
            results[f"quantize ({arguments.method}), {layers} layers"] = measured(code(QUANTIZE), pruned, int4)
            results[f"prune in memory, {layers} layers"] = measured(code(IN_MEMORY), model)
    for name, row in results.items():
        print(f"{name:34} peak {row['peak']:6} MiB {row['seconds']:7.0f} s")

    def peak(what: str, layers: int) -> float:
        return results[f"{what}, {layers} layers"]["peak"]

    quantize = f"quantize ({arguments.method})"
    ratios = {
        "prune: peak at twice the layers / peak": ratio([peak("prune", 2 * few)], [peak("prune", few)], 1.05),
        "quantize: peak at twice the layers / peak": ratio([peak(quantize, 2 * few)], [peak(quantize, few)], 1.05),
        "prune: peak / peak in memory": ratio([peak("prune", 2 * few)], [peak("prune in memory", 2 * few)], 1.0),
    }
    result = {"environment": environment(), "parameters": parameters, "results": results, "ratios": ratios}
    report(result, arguments.json)


if __name__ == "__main__":
    main()
