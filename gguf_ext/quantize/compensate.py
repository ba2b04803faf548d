"""GPTQ on llama.cpp's scales: the file keeps every scale that llama.cpp's quantizer chose, and gets other codes.

The quantizer rounds each weight by itself. Here the error of one is passed on to those behind it, weighted by the
inputs' Hessian (`sqft_plugins.compress.compensate`), and each layer sees what quantized layers before it give.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from gguf_ext.blocks import TensorType, grid_kind, replace_codes
from gguf_ext.errors import GGUFError
from gguf_ext.model.file import GGUFModel
from gguf_ext.quantize.importance import Reading
from sqft_plugins.compress.compensate import QUANTIZING, compensated, ordered_factor
from sqft_plugins.compress.drive import Compressed, Compression
from sqft_plugins.compress.float_model import FloatModel
from sqft_plugins.compress.hessian import FactorMemo
from sqft_plugins.compress.report import Row, relative_error
from sqft_plugins.mask import nonzero_mask, sparsity_of


def check_zeros(source: FloatModel, file: Path) -> None:
    """Raises GGUFError where llama.cpp chose a type without an exact 0 for a layer, whose zeros would be lost."""
    made = GGUFModel(file)
    for module in source.modules:
        kind = made.source.grid_type(made.int4.tensor_of(module))
        if not grid_kind(kind).has_zero:
            raise GGUFError(
                f"model {source.name} is pruned, and llama.cpp takes {kind.name} for {module}, which cannot hold a 0: "
                "use --no-importance, or --grid q8_0"
            )


def compensate(source: FloatModel, file: Path, tokens: Tensor, keep_zeros: bool = False) -> list[Row]:
    """Puts GPTQ's codes into a file, which is written to in place → what became of each layer.

    source: the float model that the file was made of.
    tokens: int64 [sequences, length], the calibration.
    keep_zeros: hold the zeros of the model's weights.

    In memory are one block, a Hessian and its factor.
    """
    made = GGUFModel(file)
    factor_of = FactorMemo(partial(ordered_factor, damping=QUANTIZING))

    def put_on_grid(module: str, weight: Tensor, statistic: Tensor | None) -> Compressed:
        assert statistic is not None
        grid, mask = made.int4.weight(module).grid, nonzero_mask(weight) if keep_zeros else None
        codes = compensated(weight, statistic, grid, mask, factor_of)
        _write(made, module, codes)
        exact = grid.dequantize(codes)
        sparsity = 0.0 if mask is None else sparsity_of(mask)
        return Compressed(exact, {"sparsity": sparsity, "error": relative_error(weight, exact)}, {})

    modules = [module for module in source.modules if module in made.int4.modules]
    with torch.no_grad():
        return Compression("quantize (gptq)", modules, "hessian", tokens, put_on_grid).run(Reading(source))


def _write(model: GGUFModel, module: str, codes: Tensor) -> None:
    """codes: uint8 [out, in], in the row order of the checkpoint."""
    order, tensor = model.int4.file_order(module), model.int4.tensor_of(module)
    info = model.source.tensors[tensor]
    rows = codes if order is None else codes[order]
    raw = replace_codes(model.source.raw(tensor), rows.numpy(), TensorType(info.type))
    with open(model.source.parts[info.part].path, "r+b") as file:
        file.seek(info.offset)
        file.write(raw.tobytes())
