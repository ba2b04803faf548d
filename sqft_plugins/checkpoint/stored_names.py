"""How a family's files name what transformers holds, in both directions, by transformers' own conversion mapping.

What a parameter of the model is in the files:

- a tensor of the same name, or of one that lacks the prefix of the body, or has it: `h.0.attn.c_attn.weight` in the
  files of GPT-2, `transformer.h.0.attn.c_attn.weight` in memory;
- a tensor of another name: `backbone.embeddings.weight`, `model.embeddings.weight`;
- one part of a tensor: `mlp.gate_up_proj.weight`, of which `mlp.gate_proj.weight` and `mlp.up_proj.weight` are made;
- several tensors that are joined: `mlp.experts.0.gate_proj.weight` [out, in] and those of all experts, which become
  `mlp.experts.gate_up_proj` [experts, 2 · out, in].

`StoredNames(model, folder)` reads no weight, only names and shapes. Then, tensor by tensor:

- `sources(parameter)`: the tensors of the files that it is made of; `parameters(tensor)`: the parameters that a tensor
  of the files is in.
- `read(parameter)`: its value, made by transformers' own operation.
- `split({parameter: value})`: the tensors of the files, by name, that these values are.

Experts, one linear layer each: `expert_views("….mlp.experts.gate_up_proj", value)` gives the name of each tensor in the
files, such as `….mlp.experts.3.gate_proj.weight`, and its place in `value`, as a view [out, in]: prune or quantize
the view, write into it, and the model in memory computes with it; written to the files under that name, transformers
and vLLM open it. It is None where the files hold the experts fused, too (gpt-oss, Llama 4): then they are one tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    MergeModulelist,
    Transpose,
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from sqft_plugins.checkpoint.tensors import TensorFiles
from sqft_plugins.errors import CheckpointError


@dataclass
class Conversion:
    """Tensors of the files that together become parameters.

    sources: pattern of the converter → its tensors, in the order of their numbers. converter: None where the tensor is
    the parameter. parameters: in the order of the converter's targets.
    """

    converter: WeightConverter | None
    sources: dict[str, list[str]] = field(default_factory=dict)
    parameters: list[str] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        return [name for names in self.sources.values() for name in names]


class StoredNames:
    """unknown: tensors of the files that are in no parameter or buffer of the model."""

    def __init__(self, model: PreTrainedModel, files: TensorFiles):
        self.model, self.files = model, files
        self.unknown: list[str] = []
        self._made: dict[str, Conversion] = {}
        for conversion in _conversions(model, files.files, self.unknown):
            if conversion.converter is not None:
                conversion.parameters = list(self._convert(conversion, self._empty))
            for parameter in conversion.parameters:
                self._made[parameter] = conversion
        self._within = {name: made.parameters for made in self._made.values() for name in made.names}

    def __contains__(self, parameter: object) -> bool:
        return parameter in self._made

    def __iter__(self) -> Iterator[str]:
        return iter(self._made)

    def sources(self, parameter: str) -> list[str]:
        """Names in the files; none for a parameter that the files do not have."""
        return self._made[parameter].names if parameter in self._made else []

    def parameters(self, tensor: str) -> list[str]:
        """Names in the model of what a tensor of the files becomes; none where the model does not know it."""
        return self._within.get(tensor, [])

    def is_one(self, parameter: str) -> bool:
        """Whether one tensor of the files is the parameter as it is."""
        return parameter in self._made and self._made[parameter].converter is None

    def is_renamed(self, parameter: str) -> bool:
        """Whether the files have another name than that of the model, with or without the prefix of its body."""
        prefix = self.model.base_model_prefix
        (name,) = self.sources(parameter)
        return parameter not in (name, f"{prefix}.{name}") and name != f"{prefix}.{parameter}"

    def read(self, parameter: str) -> Tensor:
        """The value of a parameter, in the dtype of the files. Raises CheckpointError for a parameter that they do not
        have."""
        if parameter not in self._made:
            raise CheckpointError(f"model {self.files.path} has no tensor for {parameter}: copy the whole model again")
        made = self._made[parameter]
        if made.converter is None:
            return self.files.tensor(made.names[0])
        return self._convert(made, self.files.tensor)[parameter]

    def split(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Name in the files → tensor, of parameters with these values. All parameters that share a tensor of the files
        are given together. Raises CheckpointError for a family whose operation transformers cannot turn back."""
        result: dict[str, Tensor] = {}
        for made in {id(self._made[name]): self._made[name] for name in values}.values():
            missing = [name for name in made.parameters if name not in values]
            if missing:
                raise CheckpointError(f"{made.names[0]} is also of {missing[0]}: give the values of both")
            result |= self._split(made, [values[name] for name in made.parameters])
        return result

    def expert_views(self, parameter: str, value: Tensor) -> dict[str, Tensor] | None:
        """Name in the files → its place in `value`, a view; None where the files do not hold a parameter
        [experts, …, …] expert by expert."""
        made = self._made[parameter]
        operations = () if made.converter is None else made.converter.operations
        if not any(isinstance(operation, MergeModulelist) for operation in operations):
            return None
        return self._views(made, value)

    # --- the two directions ---

    def _empty(self, name: str) -> Tensor:
        spec = self.files.spec(name)
        return torch.empty(spec.shape, dtype=spec.dtype, device="meta")

    def _convert(self, made: Conversion, tensor: Callable[[str], Tensor]) -> dict[str, Tensor]:
        converter = deepcopy(made.converter)
        assert converter is not None
        first = made.parameters[0]
        for pattern, names in made.sources.items():
            for name in names:
                converter.add_tensor(first, name, pattern, tensor(name))  # type: ignore[arg-type]
        found = converter.convert(first, model=self.model, config=self.model.config)
        return {name: value[0] if isinstance(value, list) else value for name, value in found.items()}

    def _split(self, made: Conversion, values: Sequence[Tensor]) -> dict[str, Tensor]:
        if made.converter is None:
            return {made.names[0]: values[0]}

        # transformers' own operations, from the last to the first
        back: Any = made.converter.reverse_transform()
        patterns = {"source_patterns": back.source_patterns, "target_patterns": back.target_patterns}
        context = {"full_layer_name": made.parameters[0], "model": self.model, "config": self.model.config}
        parts: dict[str, Any] = {name: [value] for name, value in zip(back.source_patterns, values, strict=True)}
        for operation in back.operations:
            parts = operation.convert(parts, **patterns, **context, missing_keys=None)

        # what they call by pattern and number, by the names in the files
        result = {}
        for theirs, pattern in zip(back.target_patterns, made.converter.source_patterns, strict=True):
            for number, name in enumerate(made.sources.get(pattern, [])):
                part = parts[theirs] if theirs in parts else parts[theirs.replace("*", str(number))]
                result[name] = part[0] if isinstance(part, list) else part
        wrong = [name for name, part in result.items() if part.shape != self.files.spec(name).shape]
        if wrong or len(result) != len(made.names):
            raise CheckpointError(
                f"model {self.files.path}: {made.parameters[0]} cannot be written as {(wrong or made.names)[0]}, "
                "transformers does not turn its conversion back: leave the layer out with --exclude"
            )
        return result

    def _views(self, made: Conversion, value: Tensor) -> dict[str, Tensor] | None:
        """The operations that only move numbers, turned back as views; None where there are others."""
        assert made.converter is not None
        patterns = list(made.sources)
        parts: list[Tensor] = [value]
        for operation in reversed(made.converter.operations):
            if isinstance(operation, Concatenate) and len(parts) == 1:
                parts = list(parts[0].chunk(len(patterns), operation.dim))
            elif isinstance(operation, Transpose) and not operation.check_dims:
                parts = [part.transpose(operation.dim0, operation.dim1) for part in parts]
            elif isinstance(operation, MergeModulelist) and operation is made.converter.operations[0]:
                experts = [part.unbind(operation.dim) for part in parts]
                names = [made.sources[pattern] for pattern in patterns]
                pairs = zip(names, experts, strict=True)
                return {name: view for own, views in pairs for name, view in zip(own, views, strict=True)}
            else:
                return None
        return None


def _conversions(model: PreTrainedModel, names: Iterable[str], unknown: list[str]) -> list[Conversion]:
    """Which tensors go where, as transformers' loader finds it."""
    known: dict[str, Any] = model.state_dict()
    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    prefix = model.base_model_prefix
    found: dict[str, Conversion] = {}
    for name in sorted(names, key=dot_natural_key):
        parameter, pattern = rename_source_key(name, renamings, converters, prefix, known)
        if parameter not in known and name in known:  # it has the model's name already
            parameter, pattern = rename_source_key(name, [], [], prefix, known)
        if parameter not in known:
            unknown.append(name)
            continue
        of = next((entry for entry in converters if pattern in entry.source_patterns), None) if pattern else None
        made = found.setdefault(parameter, Conversion(of, parameters=[parameter]))
        if made.converter is None and made.sources:  # two names for one parameter: the first, as transformers has it
            unknown.append(name)
            continue
        made.sources.setdefault(pattern or name, []).append(name)
    return list(found.values())
