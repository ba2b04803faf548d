"""What the same numbers are worth: KL divergence of our Q4_0 file from the INT4 model, against llama.cpp's own route.

    python benchmarks/gguf_exactness.py [--quick] [--json FILE] [--model DIR] [--float DIR] [--tokens N]

The model runs in transformers, dequantized, in float32; every file runs in llama.cpp on the same text. The peers turn
the same weights into F16 and quantize them anew to Q4_0: once with embedding and head left in F16, so that only the
INT4 weights differ, once as llama.cpp does by default (Q6_K). --float: what was quantized to make the model; a last
file is made of it by llama.cpp's quantizer, whose perplexity stands beside that of GPTQ.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from common import command, environment, ratio, report
from llama_cpp_route import quantize, write_float

from gguf_ext import compare_logits, export_gguf, verify_gguf
from gguf_ext.blocks import TensorType
from gguf_ext.reader import GGUFFile
from sqft_plugins.compress.calibration import builtin_text, read_texts

OURS, PEER = "sqft export gguf", "F16, Q4_0, embedding kept"


def changed(ours: Path, other: Path) -> float:
    """The share of the weights in our blocks that have another value in the other file."""
    a, b = GGUFFile(ours), GGUFFile(other)
    different = total = 0
    for name, info in a.tensors.items():
        if TensorType(info.type).is_block:
            different += int(np.count_nonzero(a.dequantize(name) != b.dequantize(name)))
            total += int(np.prod(info.shape))
    return different / total


def main() -> None:
    parser = command(__doc__, "A tiny random model.")
    parser.add_argument("--model", type=Path, default=Path("demo-out/int4"), help="The INT4 folder. [demo-out/int4]")
    parser.add_argument("--float", type=Path, dest="float_model", help="What it was quantized from.")
    parser.add_argument("--text", type=Path, help="Held-out text. Default: the built-in one.")
    parser.add_argument("--tokens", type=int, default=1024, help="Tokens of it.")
    arguments = parser.parse_args()
    text = "\n\n".join(read_texts(arguments.text, "--text") if arguments.text else builtin_text("heldout"))
    rows = {}
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        model, original = arguments.model, arguments.float_model
        if arguments.quick:
            from random_model import write_int4_model, write_model

            original, model = place / "original", place / "int4"
            write_model(original, layers=2, hidden_size=256, intermediate_size=704, num_attention_heads=4)
            write_int4_model(original, model)
        files = {OURS: place / "ours.gguf", PEER: place / "kept.gguf", "F16, Q4_0 as by default": place / "q4.gguf"}
        export_gguf(model, files[OURS])
        assert verify_gguf(model, files[OURS]).ok
        export_gguf(write_float(model, place / "float"), place / "f16.gguf", float_type="f16")
        quantize(place / "f16.gguf", files[PEER], keep_embedding=True)
        quantize(place / "f16.gguf", files["F16, Q4_0 as by default"])
        if original:
            export_gguf(original, place / "original.gguf", float_type="f16")
            files["the float model, Q4_0, embedding kept"] = quantize(
                place / "original.gguf", place / "original-q4.gguf", keep_embedding=True
            )
        for name, file in files.items():
            found = compare_logits(model, file, text, 128 if arguments.quick else arguments.tokens).as_dict()
            rows[name] = {**found, "changed": changed(files[OURS], file), "bytes": file.stat().st_size}
            print(
                f"{name:38} mean KL {found['mean_kl']:.3g}  p99 {found['p99_kl']:.3g}  top-1 {found['top1']:.1%}  "
                f"perplexity {found['perplexity_model']:.3f} → {found['perplexity_file']:.3f}  changed "
                f"{rows[name]['changed']:.1%}  {file.stat().st_size / 1e6:.0f} MB",
                flush=True,
            )
    ours = rows[OURS]["mean_kl"]
    ratios = {
        f"mean KL: ours / {name}": ratio([ours], [row["mean_kl"]], 0.1 if name == PEER else None)
        for name, row in rows.items()
        if name != OURS
    }
    ratios["mean KL of ours / 0.02"] = ratio([ours], [2e-2], 1.0)
    report({"environment": environment(), "model": str(model), "rows": rows, "ratios": ratios}, arguments.json)


if __name__ == "__main__":
    main()
