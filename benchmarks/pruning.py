"""Perplexity after pruning and INT4: SparseGPT, Wanda and magnitude at 30, 50, 70 % and 2:4.

    python benchmarks/pruning.py [--quick] [--json FILE] [--model DIR] [--calibration FILE] [--text FILE]

Every pruned model is quantized by GPTQ (symmetric, groups of 32). For each, perplexity in float and in INT4, weights
that are nonzero where the mask prunes, and on how many layers GPTQ's output error is below that of round-to-nearest,
the peer, on the same inputs.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import torch
from common import command, environment, ratio, report

import sqft_plugins
from sqft_plugins.checkpoint import ModelFolder
from sqft_plugins.compress.calibration import builtin_text, read_texts
from sqft_plugins.compress.gptq import GPTQ
from sqft_plugins.compress.prune import prune_folder
from sqft_plugins.compress.quantize import quantize_folder
from sqft_plugins.compress.report import output_error
from sqft_plugins.compress.round_to_nearest import RoundToNearest
from sqft_plugins.evaluate import open_session, perplexity
from sqft_plugins.mask import lost_zeros
from sqft_plugins.plugins import get_manager

METHODS = ("magnitude", "wanda", "sparsegpt")
PATTERNS = ("0.3", "0.5", "0.7", "2:4")


class GPTQBesideRounding(GPTQ):
    """GPTQ that also notes both output errors of each layer."""

    name = "gptq-beside-rounding"

    def __init__(self) -> None:
        super().__init__()
        self.errors: list[tuple[float, float]] = []

    def quantize(self, weight, mask, statistic, grid):
        result = super().quantize(weight, mask, statistic, grid)
        rounded = RoundToNearest().quantize(weight, mask, None, grid)
        self.errors.append(tuple(output_error(weight, q.dequantize(), statistic) for q in (result, rounded)))
        return result


class Plugin:
    """Brings the quantizer above in through the hook, as any plug-in does."""

    def __init__(self, quantizer: GPTQBesideRounding):
        self.quantizer = quantizer

    @sqft_plugins.hookimpl
    def sqft_quantizers(self):
        return [self.quantizer]


def violations(folder: ModelFolder) -> int:
    """Weights that are nonzero although the mask prunes them."""
    return sum(lost_zeros(folder.weight(module), folder.mask(module)) for module in folder.masks)


def score(path: Path, text: str, tokens: int) -> float:
    session = open_session(path)
    try:
        return perplexity(session, text, tokens)
    finally:
        session.close()


def main() -> None:
    parser = command(__doc__, "A tiny random model and 2:4 only.")
    parser.add_argument("--model", type=Path, default=Path("demo-out/base"), help="Default: the demo's dense model.")
    parser.add_argument("--calibration", type=Path, help="Text to calibrate on. Default: the built-in one.")
    parser.add_argument("--text", type=Path, help="Held-out text. Default: the built-in one.")
    parser.add_argument("--tokens", type=int, default=8192, help="Tokens of it.")
    arguments = parser.parse_args()
    text = "\n".join(read_texts(arguments.text, "--text") if arguments.text else builtin_text("heldout"))
    patterns, tokens = (("2:4",), 512) if arguments.quick else (PATTERNS, arguments.tokens)
    calibration = {"calibration": arguments.calibration, **({"sequences": 4, "length": 64} if arguments.quick else {})}

    quantizer = GPTQBesideRounding()
    get_manager().manager.register(Plugin(quantizer), name="benchmark")
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        model = tiny_model(Path(scratch) / "model") if arguments.quick else arguments.model
        dense = score(model, text, tokens)
        print(f"dense: perplexity {dense:.2f}", flush=True)
        for pattern in patterns:
            for method in METHODS:
                pruned, int4 = Path(scratch) / "pruned", Path(scratch) / "int4"
                prune_folder(model, pruned, method, pattern, **calibration)
                quantizer.errors.clear()
                quantize_folder(pruned, int4, quantizer.name, **calibration)
                row = {
                    "pattern": pattern,
                    "method": method,
                    "float": score(pruned, text, tokens),
                    "int4": score(int4, text, tokens),
                    "violations": violations(ModelFolder(pruned)) + violations(ModelFolder(int4)),
                    "layers": len(quantizer.errors),
                    "layers_below_rounding": sum(ours < rounded for ours, rounded in quantizer.errors),
                    "error_ratio": [ours / rounded for ours, rounded in quantizer.errors],
                }
                rows.append(row)
                print(
                    f"{pattern:4} {method:10} float {row['float']:9.2f}  int4 {row['int4']:9.2f}  violations "
                    f"{row['violations']}  GPTQ below rounding on {row['layers_below_rounding']}/{row['layers']}",
                    flush=True,
                )
                for folder in (pruned, int4):
                    shutil.rmtree(folder)
    by = {(row["pattern"], row["method"]): row for row in rows}
    ratios = {}
    for pattern in patterns:
        for ours, peer in (("sparsegpt", "wanda"), ("wanda", "magnitude")):
            name = f"{pattern}: perplexity {ours} / {peer}"
            ratios[name] = ratio([by[pattern, ours]["float"]], [by[pattern, peer]["float"]], 1.0)
    errors = [value for row in rows for value in row["error_ratio"]]
    ratios["output error of a layer, GPTQ / round-to-nearest"] = ratio(errors, [1.0] * len(errors), 1.0)
    report({"environment": environment(), "dense": dense, "rows": rows, "ratios": ratios}, arguments.json)


def tiny_model(path: Path) -> Path:
    """A random Gemma 3 with a byte-level tokenizer: for a first look only, its perplexities mean nothing."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import AutoModelForCausalLM, Gemma3TextConfig, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<pad>", "<bos>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(builtin_text("train")[:5], trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", pad_token="<pad>").save_pretrained(path)
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=640, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=1, head_dim=16, query_pre_attn_scalar=16, bos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(path)
    return path


if __name__ == "__main__":
    main()
