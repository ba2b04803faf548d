"""The linear layers that are pruned, quantized and adapted: those inside the decoder blocks, found by structure.

The blocks are the longest ModuleList whose members are of one class and hold linear layers; a list inside another
such list (the experts of one block, say) does not compete. Embeddings and `lm_head` lie outside the blocks, and a layer
that shares its weight with anything outside them is left out, so neither is ever compressed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from sqft_plugins.errors import CheckpointError, SQFTError


@dataclass(frozen=True)
class Structure:
    """The linear layers of a model. blocks: the name of the block list, such as "model.layers".
    shapes: module name → (out, in), in the order of the model. outside: linear modules that stay as they are."""

    blocks: str
    shapes: dict[str, tuple[int, int]]
    outside: list[str]

    def kind(self, module: str) -> str:
        """The name of a module within its block: "model.layers.3.mlp.up_proj" → "mlp.up_proj"."""
        return module.removeprefix(f"{self.blocks}.").partition(".")[2]

    def block(self, module: str) -> int:
        """The number of the block that a module belongs to."""
        return int(module.removeprefix(f"{self.blocks}.").partition(".")[0])


def find_blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The name and the list of the decoder blocks. Raises SQFTError for a model that has none."""
    candidates: dict[str, nn.ModuleList] = {}
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or len({type(block) for block in module}) != 1:
            continue
        inside_another = any(name.startswith(f"{outer}.") for outer in candidates)  # named_modules yields parents first
        if not inside_another and any(isinstance(m, nn.Linear | Conv1D) for m in module.modules()):
            candidates[name] = module
    if not candidates:
        raise SQFTError(
            f"model {type(model).__name__} has no list of equal blocks with linear layers: give a decoder model"
        )
    name = max(candidates, key=lambda n: (len(candidates[n]), _parameters(candidates[n])))
    return name, candidates[name]


def find_linears(model: nn.Module) -> dict[str, nn.Linear]:
    """Module name → linear layer, for all linear layers of the decoder blocks, in the order of the model.

    Raises SQFTError for a model without blocks, and for GPT-2's Conv1D, whose weight is [in, out]: neither the mask
    file nor compressed-tensors describes such a weight.
    """
    blocks_name, blocks = find_blocks(model)
    prefix = f"{blocks_name}."
    outside = {id(p) for name, p in model.named_parameters(remove_duplicate=False) if not name.startswith(prefix)}
    found = {}
    for name, module in blocks.named_modules(prefix=blocks_name):
        if isinstance(module, Conv1D):
            raise SQFTError(
                f"layer {name} is a Conv1D (GPT-2's transposed linear), which this release cannot compress: "
                "use a model with torch.nn.Linear layers"
            )
        if isinstance(module, nn.Linear) and id(module.weight) not in outside:
            found[name] = module
    return found


def structure_of(model: nn.Module) -> Structure:
    """The structure of a model in memory; shapes are (out, in)."""
    blocks, _ = find_blocks(model)
    shapes = {name: (m.out_features, m.in_features) for name, m in find_linears(model).items()}
    outside = [name for name, m in model.named_modules() if isinstance(m, nn.Linear) and name not in shapes]
    return Structure(blocks, shapes, outside)


def structure_of_folder(path: str | Path) -> Structure:
    """The structure of a saved model from its config.json alone: no weight is read or allocated.

    Raises CheckpointError for a config that transformers does not know.
    """
    return _structure_of_folder(str(path))


@lru_cache(maxsize=8)
def _structure_of_folder(path: str) -> Structure:
    try:
        config = AutoConfig.from_pretrained(path)
        if hasattr(config, "quantization_config"):  # the structure is that of the float model
            del config.quantization_config
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except (OSError, ValueError, KeyError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise CheckpointError(
            f"model {path} is no language model that transformers knows: check its config.json ({lines[0][:160]})"
        ) from error
    model.tie_weights()
    return structure_of(model)


def _parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
