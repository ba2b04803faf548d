"""Peak memory and seconds of each step: estimates, from the shapes of the model and measured rates of this machine.

The constants are measured with torch 2.13 and transformers 5.19 on Linux. Compared with reality on Gemma-3-270M, 32
sequences of 128 tokens, one thread, estimated and measured CPU-seconds and peak MiB: wanda 16 and 16, 1527 and 1528;
magnitude 7 and 7, 750 and 756; round-to-nearest 6 and 7, 750 and 750; gptq 65 and 78, 1527 and 1532.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from sqft_plugins.compress.blocks import MICRO_TOKENS
from sqft_plugins.compress.float_model import FloatModel
from sqft_plugins.hardware import fast_dtype
from sqft_plugins.mask import Pattern
from sqft_plugins.plan.machine import column_costs, gemm_rate
from sqft_plugins.plan.settings import PlanSettings
from sqft_plugins.plugins.protocols import Pruner, Quantizer, Statistic
from sqft_plugins.recover.settings import RecoverSettings

TORCH = (300 if torch.backends.cuda.is_built() else 0) << 20
"""What torch built for GPUs takes beyond the build for CPUs once it is imported, on any machine: 290 to 315 MiB with
torch 2.10 to 2.15."""
INTERPRETER = TORCH + (540 << 20)
"""Python with torch and transformers, before any model: 430 to 650 MiB, most where scikit-learn is installed (with
lm-eval), which transformers then imports."""
TUNING = TORCH + (650 << 20)
"""The same with PEFT and the Trainer."""
TOKENIZER = 4
"""Bytes in memory for each byte of tokenizer.json."""
WORK = 6
"""Copies of a layer's weight in float32 while it is compressed: scores, masks, dequantized, errors."""
BYTES_PER_SECOND = 3e8
"""Reading a tensor, checking it, changing its dtype, writing it, with files in the page cache."""
TEXT_VOCABULARY = 9000
"""Tokens that a recovery's heads are cut to: of the built-in text Gemma's tokenizer makes 4,900 different ones."""
EFFICIENCY = 0.6
"""Of the rate of a plain matrix product, what a model reaches."""


@dataclass(frozen=True)
class Cost:
    """What one command takes. step: its name. peak_memory: bytes. seconds: None where they are not known."""

    step: str
    peak_memory: int
    seconds: float | None


class Costs:
    """The steps of one source.

    stored: tensor name → its spec, of every tensor in the folder.
    rate: useful floating point operations a second, measured where None.
    """

    def __init__(
        self, source: FloatModel, settings: PlanSettings, stored: Mapping[str, Any], rate: float | None = None
    ):
        self.source, self.settings = source, settings
        self.rate = EFFICIENCY * gemm_rate() if rate is None else rate

        # all tensors
        self.parameters = sum(spec.nbytes // spec.dtype.itemsize for spec in stored.values())
        self.stored_bytes = sum(spec.nbytes for spec in stored.values())
        self.largest_bytes: int = max(spec.nbytes for spec in stored.values())

        # the embedding
        model: Any = source.skeleton.model
        table = model.get_input_embeddings().weight  # [vocabulary, hidden]
        self.vocabulary: int = table.shape[0]
        self.hidden: int = model.config.get_text_config().hidden_size
        self.embedding: int = table.numel()
        self.embedding_itemsize: int = stored[source.skeleton.sources(_name_of(model, table))[0]].dtype.itemsize

        # the linear layers, by block; those of an expert compute for the tokens that reach it
        experts = source.experts
        shapes = source.structure.shapes | {name: layer.shape for name, layer in experts.items()}
        reached = getattr(model.config.get_text_config(), "num_experts_per_tok", 1)
        self.weights: float = 0
        self.blocks: dict[int, list[tuple[int, int]]] = {}
        for name, (rows, columns) in shapes.items():
            path, share = (experts[name].path, reached / experts[name].count) if name in experts else (name, 1)
            self.weights += share * rows * columns
            self.blocks.setdefault(source.structure.block(path), []).append((rows, columns))

    # --- prune and quantize ---

    def prune(self, pruner: Pruner, patterns: Mapping[str, Pattern]) -> Cost:
        example = next(iter(patterns.values()))

        def run(rows: int, columns: int) -> None:
            if example.group is None or columns % example.group == 0:
                pruner.prune(torch.randn(rows, columns), _statistic(pruner.statistic, columns), example)

        return self._compress(f"prune ({pruner.name})", pruner.statistic, run)

    def quantize(self, quantizer: Quantizer) -> Cost:
        def run(rows: int, columns: int) -> None:
            weight = torch.randn(rows, columns)
            grid = self.settings.stamp
            quantizer.quantize(weight, weight > 0, _statistic(quantizer.statistic, columns), grid)

        return self._compress(f"quantize ({quantizer.name})", quantizer.statistic, run)

    def _compress(self, what: str, statistic: Statistic, run: Any) -> Cost:
        column, weight = column_costs(run)
        own = sum(columns * (column + rows * weight) for rows, columns in self.source.modules.values())
        seconds = own + 2 * self.stored_bytes / BYTES_PER_SECOND
        if statistic != "none":
            seconds += self._calibration_flops(statistic) / self.rate
        return Cost(what, self._compress_memory(statistic), seconds)

    def _calibration_flops(self, statistic: Statistic) -> float:
        tokens = self.settings.sequences * self.settings.length
        # one micro-batch: layers are compressed as their inputs arrive. More: a pass over part of the block for each
        # group of layers that share an input, and one to go on
        passes = 1 if tokens <= MICRO_TOKENS else 3
        flops = 2.0 * self.weights * tokens * passes
        if statistic == "hessian":
            inputs = {(name.rpartition(".")[0], shape[1]) for name, shape in self.source.modules.items()}
            flops += sum(2.0 * tokens * n**2 + 16 / 3 * n**3 for _, n in inputs)  # XᵀX; its factor, in float64
            flops += sum(5.0 * rows * n**2 for rows, n in self.source.modules.values())  # compensation, output error
        return flops

    def _compress_memory(self, statistic: Statistic) -> int:
        block = 4 * max(sum(rows * columns for rows, columns in shapes) for shapes in self.blocks.values())
        layer = max(4 * WORK * rows * columns for rows, columns in self.source.modules.values())
        if statistic == "none":
            return INTERPRETER + max(self.largest_bytes, block + layer)
        tokens = self.settings.sequences * self.settings.length
        micro = min(tokens, max(MICRO_TOKENS, self.settings.length))
        states = 4 * tokens * self.hidden
        seen = 4 * micro * max(sum(rows for rows, _ in shapes) + 2 * self.hidden for shapes in self.blocks.values())
        if statistic == "hessian":
            layer += max((4 + 4 + 3 * 8) * columns**2 for _, columns in self.source.modules.values())
        look_up = self.embedding * (4 + self.embedding_itemsize)
        fixed = INTERPRETER + TOKENIZER * self._tokenizer_bytes() + states
        return fixed + max(look_up, self.largest_bytes, block + layer + seen)

    def _tokenizer_bytes(self) -> int:
        file = self.source.path / "tokenizer.json"
        return file.stat().st_size if file.is_file() else 0

    # --- recover ---

    def recover(self) -> Cost:
        """By default, over the built-in text. Both models in the dtype that is fast here; the weights that learn, their
        gradient and Adam's two moments in float32."""
        settings, dtype = RecoverSettings(), fast_dtype()
        tokens, vocabulary = settings.batch_size * settings.length, min(self.vocabulary, TEXT_VOCABULARY)
        shapes = self.source.structure.shapes.values()
        activations = (4 + dtype.itemsize) * tokens * sum(rows + columns for rows, columns in shapes)
        logits = 5 * 4 * tokens * vocabulary
        memory = TUNING + 2 * self.parameters * dtype.itemsize + 16 * self.weights + activations + logits
        # the dense model's forward; forward, gradients of inputs and weights; the heads, of which nothing learns
        flops = 8.0 * tokens * self.weights + 6.0 * tokens * vocabulary * self.hidden
        return Cost("recover", memory, settings.steps * flops / self._rate_of(dtype))

    # --- tune ---

    def train(self, targets: list[str]) -> Cost:
        """The base in the dtype that is fast here; the adapter, its gradient and Adam's two moments in float32."""
        shapes, settings = self.source.structure.shapes, self.settings
        dtype = fast_dtype()
        tokens = settings.batch_size * settings.example_tokens
        adapted = sum(rows * columns for rows, columns in (shapes[name] for name in targets))
        parameters = sum(settings.rank * sum(shapes[name]) for name in targets)
        activations = 4 * tokens * sum(rows + columns for rows, columns in shapes.values())
        answers = tokens // 4  # logits are computed where the answer is: about a quarter of an example
        logits = 3 * 4 * answers * self.vocabulary
        memory = TUNING + self.parameters * dtype.itemsize + 16 * parameters + activations + logits
        # forward, gradient of the inputs, and for adapted layers that of the weight; then the delta itself, thrice
        flops = 4.0 * tokens * self.weights + 2.0 * tokens * adapted + 6.0 * settings.rank * adapted
        flops += 4.0 * answers * self.embedding
        return Cost("train", memory, settings.steps * flops / self._rate_of(dtype))

    def _rate_of(self, dtype: torch.dtype) -> float:
        return self.rate if dtype == torch.float32 else EFFICIENCY * gemm_rate(dtype)

    def merge(self) -> Cost:
        """The base in float32, and the result on its way to the disk."""
        memory = TUNING + 4 * self.parameters + self.stored_bytes
        return Cost("merge", memory, 2 * (4 * self.parameters + self.stored_bytes) / BYTES_PER_SECOND)

    def evaluate(self) -> Cost:
        return Cost(
            "eval", INTERPRETER + TOKENIZER * self._tokenizer_bytes() + self.parameters * fast_dtype().itemsize, None
        )

    def export(self) -> Cost:
        """One tensor at a time, and the vocabulary."""
        memory = INTERPRETER + 2 * TOKENIZER * self._tokenizer_bytes() + 2 * self.largest_bytes
        return Cost("export", memory, 4 * self.stored_bytes / BYTES_PER_SECOND)


def _statistic(kind: Statistic, columns: int) -> torch.Tensor | None:
    if kind == "none":
        return None
    return torch.ones(columns) if kind == "norm" else torch.eye(columns)


def _name_of(model: Any, parameter: Any) -> str:
    return str(next(name for name, p in model.named_parameters(remove_duplicate=False) if p is parameter))
