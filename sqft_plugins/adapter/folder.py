"""Reading an adapter folder of PEFT: adapter_config.json, adapter_model.safetensors or, from older versions, .bin."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from safetensors import SafetensorError, safe_open

from sqft_plugins.adapter import lora_config
from sqft_plugins.adapter.pickled import Unpickled, read_pickled
from sqft_plugins.adapter.tensor_names import (
    B_OF,
    BASE_WEIGHT,
    CODES_OF,
    EMBEDDING_A,
    in_base,
    is_b,
    module_of,
    patch_name,
)
from sqft_plugins.adapter.tensor_names import A as A_END
from sqft_plugins.checkpoint.json_object import read_object
from sqft_plugins.elastic import check_rank_choices, slice_lora
from sqft_plugins.errors import CheckpointError, SQFTError
from sqft_plugins.identity import hash_of_files

if TYPE_CHECKING:
    from torch import Tensor

    from sqft_plugins.checkpoint import ModelFolder

CONFIG = "adapter_config.json"
WEIGHTS, PICKLED = "adapter_model.safetensors", "adapter_model.bin"
MAX_CONFIG_BYTES = 4 << 20
AGAIN = "copy the adapter again"

AdapterKind = Literal["dense", "masked", "quantization-aware"]
"""dense: s · B A is added as it is. masked: s · (B A) ⊙ M, which has full rank. quantization-aware: base and delta are
put on the base's INT4 grid together."""


def is_adapter(path: str | Path) -> bool:
    """Whether a folder calls itself an adapter; it may be damaged."""
    return (Path(path) / CONFIG).is_file()


def method_of(config: Mapping[str, Any]) -> str:
    """PEFT's type of adapter in capitals, "" where the configuration names none."""
    return str(config.get("peft_type") or "").upper()


@dataclass(frozen=True)
class LoraPair:
    """A and B of one module, by their headers. a, b: their names in the file. inputs: of an embedding, the size of the
    vocabulary."""

    module: str
    a: str
    b: str
    rank: int
    inputs: int
    outputs: int

    @property
    def is_embedding(self) -> bool:
        return self.a.endswith(EMBEDDING_A)


class AdapterFolder:
    """One adapter folder. The configuration is read at once, headers when they are asked for, tensors each time.

    | you want | call |
    |---|---|
    | the fields of adapter_config.json | `config` |
    | LORA, SQFT or another of PEFT's types | `method` |
    | what it does to the base: dense, masked or quantization-aware | `kind`, `is_masked` |
    | the adapted modules with rank, in and out; the linear layers among them | `pairs`, `linears` |
    | A and B of every module, whole or cut to a rank each | `read_pairs(ranks)` |
    | the search space, `[r]` where the rank is fixed | `rank_choices`, `is_elastic` |
    | how A and B are scaled: alpha / r with PEFT's patterns | `scaling(module)` |
    | the rank that the configuration gives a module | `rank(module)` |
    | whether configuration and tensors agree, as PEFT needs it | `check_config()`, `check_pair(pair)` |
    | tensors that are no A or B of a linear layer | `others` |
    | weights of the base that PEFT saved along; those of another base | `base_weights`, `foreign_weights(base)` |
    | the base that it was trained over; the INT4 folder whose grid it was trained through | `base`, `grid_over(base)` |
    | which masks and which grid that base had | `mask_hash`, `grid_stamp` |
    | every tensor, or only its shape | `read()`, `shapes` |
    | the files that decide what it computes; their size | `files`, `weight_bytes` |

    Module names are those of the base model (sqft_plugins.adapter.tensor_names). Saved configurations of ranks are
    `sqft_plugins.configurations.saved_configurations(folder.path)`.

    name: what messages call the adapter; a server gives its name, not its path. Raises CheckpointError for a folder
    without configuration or weights, and wherever a file is damaged or cut off.
    """

    def __init__(self, path: str | Path, name: str | None = None):
        self.path = Path(path)
        self.name = name or str(path)
        self._check_there(self.path / CONFIG)
        self.config = read_object(self.path / CONFIG, AGAIN, f"adapter {self.name}: {CONFIG}", MAX_CONFIG_BYTES)
        self._check_there(self.weights)

    # --- files ---

    @property
    def weights(self) -> Path:
        """The file that PEFT reads: of both the safetensors."""
        pickled = self.path / PICKLED
        return pickled if pickled.is_file() and not (self.path / WEIGHTS).is_file() else self.path / WEIGHTS

    @property
    def files(self) -> list[Path]:
        """Configuration and weights."""
        return [self.path / CONFIG, self.weights]

    @property
    def content_hash(self) -> str:
        """SHA-256 over `files`: what else lies in the folder (saved ranks, a plot) makes no other adapter."""
        return hash_of_files(self.files, self.path)

    @property
    def weight_bytes(self) -> int:
        return self.weights.stat().st_size

    # --- configuration ---

    @property
    def method(self) -> str:
        """As `method_of`."""
        return method_of(self.config)

    @property
    def kind(self) -> AdapterKind:
        if self.method == "SQFT" and self.config.get("quantization_aware"):
            return "quantization-aware"
        return "masked" if self.is_masked else "dense"

    @property
    def is_masked(self) -> bool:
        """Whether the delta is zero where the base's weight is, so that a merge keeps every zero."""
        return self.method == "SQFT" and bool(self.config.get("sparse", True))

    @property
    def base(self) -> str | None:
        """The model that it was trained over: a folder, or a name on the hub."""
        return self.config.get("base_model_name_or_path") or None

    def grid_over(self, base: str | Path) -> Path | None:
        """The INT4 folder whose grid a quantization-aware adapter over the model `base` was trained through: the base
        itself, or the folder that the configuration names. None for any other adapter."""
        return Path(self.config.get("grid") or base) if self.kind == "quantization-aware" else None

    @property
    def mask_hash(self) -> str | None:
        """Of the base's masks under the adapted modules."""
        return self.config.get("mask_hash")

    @property
    def grid_stamp(self) -> Mapping[str, Any] | None:
        """Of the grid and the codes under the adapted modules (docs/reference/formats.md)."""
        return self.config.get("grid_stamp")

    @cached_property
    def rank_choices(self) -> list[int]:
        """The search space, largest first; the one rank where it is fixed (a pattern may give modules another)."""
        most, choices = self.config.get("r", lora_config.DEFAULT_RANK), self.config.get("rank_choices")
        if choices is None:
            return [most]
        try:
            return check_rank_choices(choices, most)
        except (SQFTError, TypeError) as error:
            raise CheckpointError(f"adapter {self.name}: {error}: {AGAIN}") from error

    @property
    def is_elastic(self) -> bool:
        return len(self.rank_choices) > 1

    def rank(self, module: str) -> int:
        return lora_config.rank_of(self.config, module)

    def scaling(self, module: str) -> float:
        return lora_config.scaling_of(self.config, module)

    def check_config(self) -> None:
        """Raises CheckpointError for ranks and alphas of which no scaling can be made."""
        lora_config.check_lora_config(self.config, self.name)

    def check_pair(self, pair: LoraPair) -> None:
        """Raises CheckpointError for a module that the configuration does not name, so that PEFT leaves it out, and for
        tensors of another rank than the configuration's, which would be scaled wrongly."""
        if self.config.get("target_parameters") and ".experts" in pair.module:
            return  # all experts in one tensor, [experts * rank, in]
        lora_config.check_adapted(self.config, pair.module, self.name)
        wanted = self.rank(pair.module)
        if pair.rank != wanted:
            raise CheckpointError(
                f"adapter {self.name}: {pair.module} has rank {pair.rank} in its tensors and {wanted} in {CONFIG}, "
                "which makes another scaling: copy the whole adapter again"
            )

    # --- tensors ---

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Tensor name → shape, in name order; of a safetensors file only the header is read."""
        with self._open() as file:
            parts = {name: file.get_slice(name) for name in sorted(file.keys())}
            return {n: tuple(p.get_shape() if hasattr(p, "get_shape") else p.shape) for n, p in parts.items()}

    @cached_property
    def pairs(self) -> dict[str, LoraPair]:
        """Module → its A and B, in name order. Raises CheckpointError for halves, and for shapes that do not fit."""
        found: dict[str, LoraPair] = {}
        for a, shape in self.shapes.items():
            end = next((end for end in B_OF if a.endswith(end)), None)
            if end is None:
                continue
            module, b = in_base(a).removesuffix(end), a.removesuffix(end) + B_OF[end]
            if b not in self.shapes:
                raise CheckpointError(f"adapter {self.name} has lora_A of {module} but no lora_B: {AGAIN}")

            other = self.shapes[b]
            if len(shape) != 2 or len(other) != 2 or shape[0] != other[1] or not math.prod(shape) * math.prod(other):
                raise CheckpointError(
                    f"adapter {self.name} has lora_A {shape} and lora_B {other} of {module}, which do not belong "
                    f"together: {AGAIN}"
                )
            if module in found:
                raise CheckpointError(f"adapter {self.name} holds {module} twice: {AGAIN}")
            found[module] = LoraPair(module, a, b, shape[0], shape[1], other[0])

        paired = {pair.b for pair in found.values()}
        lone = next((name for name in self.shapes if is_b(name) and name not in paired), None)
        if lone is not None:
            raise CheckpointError(f"adapter {self.name} has lora_B of {module_of(lone)} but no lora_A: {AGAIN}")
        return found

    @property
    def linears(self) -> list[str]:
        """The adapted modules that are linear layers, the ones with ranks to choose."""
        return [module for module, pair in self.pairs.items() if not pair.is_embedding]

    @cached_property
    def base_weights(self) -> dict[str, str]:
        """Adapted module → the tensor with the base's own weight that PEFT saved along (of an embedding or a head)."""
        kept = {in_base(name).removesuffix(BASE_WEIGHT): name for name in self.shapes if name.endswith(BASE_WEIGHT)}
        return {module: name for module, name in kept.items() if module in self.pairs}

    @cached_property
    def others(self) -> list[str]:
        """Tensors that are neither A or B of a linear layer, codes that it has settled to, nor a weight of the base: of
        embeddings, biases, magnitudes, whole layers that were trained (modules_to_save)."""
        known = {name for pair in self.pairs.values() if not pair.is_embedding for name in (pair.a, pair.b)}
        known |= {name for name in self.shapes if CODES_OF in name}
        return sorted(self.shapes.keys() - known - set(self.base_weights.values()))

    def read(self) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) of each tensor in name order; of a safetensors file one is in memory at a time."""
        with self._open() as file:
            for name in sorted(file.keys()):
                yield name, file.get_tensor(name)

    def read_pairs(self, ranks: Mapping[str, int] | None = None) -> Iterator[tuple[LoraPair, Tensor, Tensor]]:
        """(the pair, A [r, in], B [out, r]) of every module, or of those in `ranks`, cut to that rank: of a safetensors
        file only so much is read."""
        with self._open() as file:
            for module, pair in self.pairs.items():
                if ranks is None or module in ranks:
                    rank = pair.rank if ranks is None else ranks[module]
                    yield pair, *slice_lora(file.get_slice(pair.a), file.get_slice(pair.b), rank)

    @property
    def settles(self) -> bool:
        """Whether its codes stand in the folder, and do not follow from A and B (`rounding="compensated"`)."""
        return self.kind == "quantization-aware" and self.config.get("rounding") == "compensated"

    def settled(self, module: str, A: Tensor, B: Tensor, base: Tensor, bits: int) -> Tensor:
        """The codes of a module that it has settled to at the rank of A [r, in] and B [out, r] → uint8 [out, in].

        base: uint8 [out, in], the codes without the adapter, of `bits` bits. Raises CheckpointError where there are
        none of this rank, or those of another A and B.
        """
        from sqft_plugins.adapter.settled import hash_of, made_of, settled_codes  # late: they bring torch

        name = f"{self.pairs[module].a.removesuffix(A_END)}{CODES_OF}{patch_name(len(A))}"
        if name in self.shapes:
            with self._open() as file:
                patch = file.get_tensor(name)
            if made_of(patch) == hash_of(A, B, self.scaling(module)):
                return settled_codes(patch, base, bits)
        raise CheckpointError(
            f"adapter {self.name} has no codes of rank {len(A)} for {module} that belong to its A and B: settle it at "
            "that rank (model.base_model.settle), or take another"
        )

    def foreign_weights(self, base: ModelFolder) -> Iterator[str]:
        """Modules of which the weight that was saved along is not that of `base`."""
        for module, name in self.base_weights.items():
            with self._open() as file:
                weight = file.get_tensor(name)
            if lora_config.is_weight_of(base, module, weight) is False:
                yield module

    # --- inside ---

    def _check_there(self, file: Path) -> None:
        if not file.is_file():
            raise CheckpointError(
                f"adapter {self.name} has no {file.name}: give a folder that `sqft train` or save_pretrained wrote"
            )

    @contextmanager
    def _open(self) -> Iterator[Any]:
        """The weights: safetensors' handle, or the tensors of a pickle behind the same methods."""
        if self.weights.name == PICKLED:
            yield self._unpickled
            return
        try:
            handle = safe_open(self.weights, framework="pt")
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"adapter {self.name}: {WEIGHTS} is damaged or cut off ({error}): {AGAIN}") from error
        with handle as opened:
            yield opened

    @cached_property
    def _unpickled(self) -> Unpickled:
        return read_pickled(self.weights, self.name, AGAIN)
