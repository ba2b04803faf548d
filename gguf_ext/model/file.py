"""A GGUF file as a model: what a folder answers, by the file alone."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from copy import deepcopy
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from gguf_ext.merge import check_merge, merge_file, merged_target
from gguf_ext.model.blocks import Blocks, FileOrder, PackedRows, checkpoint_tensor, holds_codes_in
from gguf_ext.model.config import Described, read_config
from gguf_ext.model.names import Stored, stored_tensors
from gguf_ext.model.trial import tried_tokenizer
from gguf_ext.reader import GGUFFile
from gguf_ext.tokenizer.ending import file_ends
from gguf_ext.tokenizer.keys import TOKENS
from gguf_ext.write.split import publish
from sqft_plugins.checkpoint.dequantize import Lazy, load_state
from sqft_plugins.checkpoint.folder import StoredMasks
from sqft_plugins.checkpoint.model_file import ModelFile
from sqft_plugins.checkpoint.shards import TensorSpec
from sqft_plugins.checkpoint.stamp import Stamp
from sqft_plugins.errors import CheckpointError
from sqft_plugins.grid import QuantizedWeight

MASKED = "sqft.mask_hash"
"""The key of a file that was pruned: its exact zeros are the mask."""


class GGUFModel(ModelFile):
    """The model of a file, or of the parts that follow it. Weights are dequantized as llama.cpp does it, in float32.

    A file says nothing about masks. One that was pruned by this project is stamped, and its mask is what is not exactly
    0; any other is dense. Raises GGUFError for a file that no model of transformers' computes alike.
    """

    def __init__(self, path: str | Path):
        self.source = GGUFFile(path)
        self.path = self.source.path
        self.described: Described = read_config(self.source)
        self.stored: Mapping[str, Stored] = stored_tensors(self.source, self.described.table, self.described.complete)

    # --- what a folder keeps in files ---

    @cached_property
    def config(self) -> dict[str, Any]:  # type: ignore[override]
        """As in config.json."""
        return self.described.config.to_dict()

    @property
    def stamp(self) -> Stamp | None:
        """None: a file has its own keys for that."""
        return None

    @property
    def dense(self) -> bool:  # type: ignore[override]
        """Whether the file was not pruned, so that its zeros are numbers like others."""
        return MASKED not in self.source.metadata

    def transformers_config(self) -> PretrainedConfig:
        return deepcopy(self.described.config)

    def tokenizer(self) -> PreTrainedTokenizerBase:
        return tried_tokenizer(self.source)

    def load(
        self, dtype: torch.dtype | str = "auto", fill: Callable[[str, bool], Tensor] | None = None, **kwargs: Any
    ) -> PreTrainedModel:
        config = self.transformers_config()
        with torch.device("meta"):
            empty = AutoModelForCausalLM.from_config(config)
        state = {name: Lazy(partial(self.tensor, name)) for name in self.stored}
        if fill is not None:
            for module in self.int4.modules:
                state[f"{module}.weight"] = Lazy(partial(fill, module, self.is_transposed(module)))
        model = load_state(self, type(empty), config, state, dtype, **kwargs)
        model.generation_config = GenerationConfig(**self._endings())
        return model

    def _endings(self) -> dict[str, Any]:
        """The tokens of a generation: it ends where llama.cpp ends it."""
        ids = {f"{name}_token_id": self.config.get(f"{name}_token_id") for name in ("bos", "eos", "pad")}
        if TOKENS in self.source.metadata and (ends := file_ends(self.source.metadata)):
            ids["eos_token_id"] = sorted(ends)
        return ids

    # --- tensors ---

    @cached_property
    def files(self) -> dict[str, Path]:
        return dict.fromkeys(self.stored, self.path)

    @property
    def tensor_names(self) -> list[str]:
        return list(self.stored)

    @property
    def weight_bytes(self) -> int:
        return self.source.bytes

    def tensor(self, name: str) -> Tensor:
        """float32, as a checkpoint has it."""
        return checkpoint_tensor(self.source, self._stored(name), self.described.complete)

    def spec(self, name: str) -> TensorSpec:
        stored = self._stored(name)
        shape = self.source.tensors[stored.tensor].shape
        return TensorSpec(torch.float32, shape[::-1] if stored.is_weight and stored.rule.transposed else shape)

    def module_bytes(self, module: str) -> int:
        return self.source.raw(self._stored(f"{module}.weight").tensor).nbytes

    def own_name(self, name: str) -> str:
        return name

    def is_transposed(self, module: str) -> bool:
        return self._stored(f"{module}.weight").rule.transposed

    def _stored(self, name: str) -> Stored:
        if name not in self.stored:
            raise CheckpointError(f"model {self.path} has no tensor {name}: give the file of another model")
        return self.stored[name]

    # --- codes ---

    @property
    def quantization(self) -> dict[str, Any]:
        return {"quant_method": "gguf"}

    @cached_property
    def int4(self) -> Blocks:
        return Blocks(self.source, self.stored, self.described.complete)

    def quantized_rows(self, module: str, rows: slice) -> QuantizedWeight:
        return self.int4.weight(module, rows)

    def packed(self, module: str) -> PackedRows:
        return self.int4.packed(module)

    def check_grids(self, modules: Iterable[str]) -> None:
        for module in modules:
            self.source.grid_type(self._stored(f"{module}.weight").tensor)

    # --- masks ---

    @cached_property
    def masks(self) -> StoredMasks:
        return StoredMasks({})

    def mask(self, module: str) -> Tensor | None:
        """What is not exactly 0, in a sparse file; None in a dense one."""
        return None if self.dense else self.weight(module) != 0

    def kept(self, module: str) -> Tensor:
        mask = self.mask(module)
        return torch.ones((), dtype=torch.bool).expand(self.int4.shape(module)) if mask is None else mask

    def check_masked(self) -> None:
        """A dense file has all ones for its mask."""

    # --- merging ---

    def holds_codes_in(self, dtype: torch.dtype) -> bool:
        return all(holds_codes_in(self.int4.weight(module).grid, dtype) for module in self.int4.modules)

    def check_merge(self, out: Path, modules: Collection[str], note: Mapping[str, Any], overwrite: bool) -> None:
        tensors = [self.int4.tensor_of(module) for module in modules]
        check_merge(self.source, out, tensors, note, overwrite)

    def write_codes(
        self, out: Path, codes: Mapping[str, Tensor], note: Mapping[str, Any], overwrite: bool = False
    ) -> Path:
        merge_file(self.source, out, FileOrder(self.int4, codes), note, overwrite)
        return merged_target(self.source, out)

    def publish(self, place: Path, out: Path) -> None:
        publish(sorted(place.iterdir()), out, place / "old")
