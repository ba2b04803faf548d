"""How near a quantized model is to its float model, by the method that chose its codes: `sqft quantize --grid`.

    python benchmarks/quantize_kl.py [--grids q4_0 q3_k_m int3] [--model DIR] [--text FILE] [--quick] [--json FILE]

KL is the mean Kullback-Leibler divergence, in nats a token, of the next tokens from those of the float model, on text
that has not calibrated; both run in transformers in float32, a file with its weights as llama.cpp dequantizes them.

    grid of                    round-to-nearest                      peer                       ours
    llama.cpp (q4_0, q3_k_m)   its quantizer, every input the same   with an importance matrix  gptq on these scales
    a folder (int2 to int8)    round-to-nearest                      -                          gptq

All are calibrated on the built-in text as `sqft quantize` is by default. Default model: Gemma-3-270M from its package.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from common import command, environment, ratio, report

from sqft_plugins.checkpoint import load_model, load_tokenizer
from sqft_plugins.compress.calibration import builtin_text, read_texts, token_batch
from sqft_plugins.compress.quantize import quantize_folder
from sqft_plugins.compress.settings import GRIDS, bits_of, maker_of
from sqft_plugins.demo.base import prepare_base
from sqft_plugins.progress import say

ROUND, PEER, OURS = "round-to-nearest", "importance matrix", "gptq"


def main() -> None:
    parser = command(__doc__, "A tiny random model, 64 tokens: does it run.")
    parser.add_argument("--grids", nargs="+", default=["q4_0", "q3_k_m"], help="[q4_0 q3_k_m]")
    parser.add_argument("--model", type=Path, help="A dense float folder.")
    parser.add_argument(
        "--text", type=Path, help="Text that is judged by. Default: topics of Python's manual, held out."
    )
    parser.add_argument("--tokens", type=int, default=1024, help="Tokens of it, in rows of 128. [1024]")
    parser.add_argument("--sequences", type=int, default=32, help="Of 128 tokens, which calibrate. [32]")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        model = options.model or place / "model"
        if options.quick:
            from random_model import write_model

            write_model(model, 2, sparse=False, hidden_size=256, intermediate_size=512, num_attention_heads=4)
            options.tokens, options.sequences = 64, 4
        elif options.model is None:
            prepare_base(model)

        length = min(128, options.tokens)
        texts = read_texts(options.text, "--text") if options.text else builtin_text("heldout")
        tokens = token_batch(texts, load_tokenizer(model), options.tokens // length, length)
        exact = load_model(model, torch.float32).eval()
        for grid in options.grids:
            for method in (ROUND, OURS) if grid in GRIDS else (ROUND, PEER, OURS):
                start = time.perf_counter()
                file = made(model, place, grid, method, options.sequences)
                row = {"grid": grid, "method": method, "kl": divergence(exact, load_model(file, torch.float32), tokens)}
                rows.append({**row, "seconds": round(time.perf_counter() - start, 1)})
                say(f"{grid}, {method}: {row['kl']:.4f} nats a token")
    report({"environment": environment(), "rows": rows, "ratios": ratios(rows)}, options.json)


def made(model: Path, place: Path, grid: str, method: str, sequences: int) -> Path:
    """The folder or the file."""
    if maker_of(grid) is None:
        folder, text = place / f"{grid}-{method}", {"sequences": sequences}
        quantize_folder(model, folder, method, symmetric=False, bits=bits_of(grid), overwrite=True, **text)
        return folder
    from gguf_ext.quantize.run import quantize_gguf

    file = place / f"{grid}.gguf"
    how = {"method": "gptq" if method == OURS else "llama.cpp", "importance": method != ROUND, "sequences": sequences}
    quantize_gguf(model, file, type=grid, overwrite=True, **how)
    return file


@torch.no_grad()
def divergence(exact: Any, other: Any, tokens: torch.Tensor) -> float:
    """tokens: int64 [rows, length], one row after the other."""
    found = []
    for row in tokens.split(1):
        p, q = (model.eval()(row).logits.float().log_softmax(-1) for model in (exact, other))
        found.append(float((p.exp() * (p - q)).sum(-1).mean()))
    return sum(found) / len(found)


def ratios(rows: list[dict[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Ours over each other method of the same grid: not above 1."""
    kl = {(row["grid"], row["method"]): row["kl"] for row in rows}
    return {
        f"{grid}, KL: {OURS} / {method}": ratio([kl[grid, OURS]], [value], 1.0)
        for (grid, method), value in kl.items()
        if method != OURS
    }


if __name__ == "__main__":
    main()
