"""The hyper-parameters of a file, as llama.cpp reads them, against those that a model must have: both ways.

A key that only the model has is compared with what llama.cpp takes where it is missing; a key that only the file has
must say what llama.cpp takes without it, or what the model's configuration says. Defaults: llama-model.cpp,
`load_hparams`, and llama-hparams.h.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from gguf_ext.arch.spec import Entry
from gguf_ext.reader import GGUFFile
from gguf_ext.tokenizer.keys import TOKENS

PER_LAYER = ("feed_forward_length", "attention.head_count", "attention.head_count_kv", "expert_used_count")
"""Keys that may hold one number, or one a layer."""
PATTERN = "attention.sliding_window_pattern"
MAX_LAYERS = 512
"""LLAMA_MAX_LAYERS of llama.cpp."""
INTEGERS = ("ints", "uint32s", "bools")
SILENT = ("sqft.version", "sqft.exact", "sqft.largest_error")
"""What a file says of its own making."""
HARMLESS = ("tensor_data_layout", "rope.scaling.finetuned")
"""Keys that change nothing in any graph of ours; Granite alone reads `finetuned`, as a switch of its rotation."""
SEEN = frozenset({
    "arcee", "chatglm", "cohere2", "command-r", "ernie4_5", "exaone4", "falcon", "gemma", "gemma2", "glm4", "gptneox",
    "granite", "hunyuan-dense", "nemotron", "olmo", "olmo2", "phi2", "seed_oss", "smollm3", "stablelm", "starcoder2",
})  # fmt: skip
"""Graphs whose logits were seen to be transformers'."""


class File(NamedTuple):
    """The hyper-parameters of one file: `get("rope.freq_base")`."""

    architecture: str
    metadata: Mapping[str, Any]

    def get(self, name: str) -> Any:
        """The value that llama.cpp goes by, None where it has none."""
        found = self.metadata.get(f"{self.architecture}.{name}")
        if found is not None:
            return found
        default = default_of(self.architecture, name)
        return None if default is None else default.value(self)

    def named(self, name: str, missing: Any) -> Any:
        """The value that stands in the file."""
        return self.metadata.get(f"{self.architecture}.{name}", missing)

    @property
    def layers(self) -> int:
        """How many there are; 0 where the file has no sensible number."""
        count = self.named("block_count", 0)
        return count if isinstance(count, int) and 0 < count <= MAX_LAYERS else 0

    @property
    def heads(self) -> Any:
        count = self.get("attention.head_count")
        return count[0] if isinstance(count, list) and count else count


class Default(NamedTuple):
    """kind: the value type that llama.cpp insists on. value: what it takes where the key is missing."""

    kind: str
    value: Callable[[File], Any]


def _is(kind: str, value: Any) -> Default:
    return Default(kind, lambda file: value)


def _as(kind: str, name: str) -> Default:
    return Default(kind, lambda file: file.get(name))


def _head_width(file: File) -> Any:
    width, heads = file.get("embedding_length"), file.heads
    return width // heads if isinstance(width, int) and isinstance(heads, int) and heads > 0 else None


def _tokens(file: File) -> Any:
    tokens = file.metadata.get(TOKENS)
    return len(tokens) if isinstance(tokens, list) else None


def _attention_scale(file: File) -> Any:
    width = file.get("attention.key_length")
    return 1 / math.sqrt(width) if isinstance(width, int) and width > 0 else None


DEFAULTS: dict[str, Default] = {
    "vocab_size": Default("uint32", _tokens),
    "embedding_length_out": _as("uint32", "embedding_length"),
    "use_parallel_residual": _is("bool", False),
    "pooling_type": _is("uint32", 0),
    "attention.head_count_kv": _as("uint32", "attention.head_count"),
    "attention.key_length": Default("uint32", _head_width),
    "attention.value_length": Default("uint32", _head_width),
    "attention.key_length_swa": _as("uint32", "attention.key_length"),
    "attention.value_length_swa": _as("uint32", "attention.value_length"),
    "attention.causal": _is("bool", True),
    "attention.sliding_window": _is("uint32", 0),
    "attention.scale": Default("float32", _attention_scale),
    "rope.dimension_count": _as("uint32", "attention.key_length"),
    "rope.dimension_count_swa": _as("uint32", "rope.dimension_count"),
    "rope.freq_base": _is("float32", 10000.0),
    "rope.freq_base_swa": _as("float32", "rope.freq_base"),
    "rope.scaling.type": _is("string", "linear"),  # by a factor of 1 where no other is said
    "rope.scaling.factor": Default("float32", lambda file: file.named("rope.scale_linear", 1.0)),
    "rope.scale_linear": Default("float32", lambda file: file.named("rope.scaling.factor", 1.0)),
    "rope.scaling.attn_factor": _is("float32", 1.0),
    "rope.scaling.alpha": _is("float32", 0.0),
    "rope.scaling.original_context_length": _as("uint32", "context_length"),
    "rope.scaling.yarn_ext_factor": _is("float32", -1.0),
    "rope.scaling.yarn_attn_factor": _is("float32", 1.0),
    "rope.scaling.yarn_beta_fast": _is("float32", 32.0),
    "rope.scaling.yarn_beta_slow": _is("float32", 1.0),
    "rope.scaling.yarn_log_multiplier": _is("float32", 0.0),
    **{name: _is("float32", 0.0) for name in ("attn_logit_softcapping", "final_logit_softcapping")},
    **{f"attention.{name}": _is("float32", 0.0) for name in ("clamp_kqv", "max_alibi_bias", "temperature_scale")},
    **{name: _is("float32", 1.0) for name in ("logit_scale", "residual_scale", "embedding_scale")},
    **{f"attention.{name}": _is("float32", 1.0) for name in ("output_scale", "value_scale")},
    **{name: _is("uint32", 0) for name in ("expert_count", "expert_used_count", "expert_shared_count")},
    **{name: _is("uint32", 0) for name in ("expert_group_count", "expert_group_used_count")},
    **{name: _is("uint32", 0) for name in ("leading_dense_block_count", "nextn_predict_layers")},
    "attention.temperature_length": _is("uint32", 0),
}
"""Every key that is common to the graphs, without the architecture's name in front."""
OWN_DEFAULTS: dict[str, dict[str, Default]] = {
    "bloom": {"attention.max_alibi_bias": _is("float32", 8.0)},
    "gemma3": {"rope.freq_base_swa": _is("float32", 10000.0)},
    "gemma2": {
        "attn_logit_softcapping": _is("float32", 50.0),
        "final_logit_softcapping": _is("float32", 30.0),
        "attention.sliding_window": _is("uint32", 4096),
    },
}
"""Where the graph of an architecture has its own (src/models/*.cpp)."""
ZERO_IS_OFF = {
    "logit_scale", "residual_scale", "embedding_scale", "attention.output_scale", "attention.value_scale",
    "attention.scale", "rope.scaling.factor", "rope.scale_linear",
}  # fmt: skip
"""Factors that are not applied where they are 0: the same as their default."""


def default_of(architecture: str, name: str) -> Default | None:
    """What llama.cpp takes for a missing key; None where it has no default, or nobody looked."""
    return OWN_DEFAULTS.get(architecture, {}).get(name) or DEFAULTS.get(name)


def compare_entries(
    architecture: str, wanted: Iterable[Entry], read: GGUFFile, other: Mapping[str, Any]
) -> Iterator[tuple[str, str]]:
    """(key, line) of every difference between the metadata that a model must have and that of its file.

    other: what the configuration says besides, key without the architecture's name → value: a file may say it too.
    """
    file, prefix = File(architecture, read.metadata), f"{architecture}."
    needed = {entry.key: entry for entry in wanted}

    # what the model must have
    for key, entry in needed.items():
        name = key.removeprefix(prefix)
        if key in read.metadata:
            if line := _unequal(name, entry, read.metadata[key], read.kinds[key], file):
                yield key, line
        elif not (key.startswith(prefix) and same(name, file.get(name), entry.value, file)):
            yield key, f"is missing in the file, {entry.value!r} in the model"

    # what the file has besides
    for key, value in read.metadata.items():
        if key in needed:
            continue
        if key.startswith(prefix):
            name = key.removeprefix(prefix)
            if line := _additional(name, value, read.kinds[key], file, other):
                yield key, line
        elif key.startswith("sqft.") and key not in SILENT:
            yield key, f"{value!r} in the file, the model has no such entry"


def _unequal(name: str, entry: Entry, value: Any, kind: str, file: File) -> str:
    allowed = {entry.kind}
    if name in PER_LAYER or entry.kind in INTEGERS:
        allowed |= set(INTEGERS)
    if kind not in allowed:
        return f"is a {kind} in the file, llama.cpp reads a {entry.kind}"
    return "" if same(name, value, entry.value, file) else f"{value!r} in the file, {entry.value!r} in the model"


def _additional(name: str, value: Any, kind: str, file: File, other: Mapping[str, Any]) -> str:
    """Why a key that the model does not ask for is a difference; "" where it says what holds without it."""
    if name in HARMLESS and file.architecture != "granite":
        return ""

    default = default_of(file.architecture, name)
    if default is None and name in other and same(name, value, other[name], file):
        return ""
    if default is None:
        return f"{value!r} in the file, the model has no such entry"
    if kind != default.kind and not (name in PER_LAYER and kind in INTEGERS):
        return f"is a {kind} in the file, llama.cpp reads a {default.kind}"

    meant = other[name] if name in other else default.value(file)
    if same(name, value, meant, file):
        return ""
    if name == "rope.scaling.original_context_length" and file.get("rope.scaling.type") in ("none", "linear"):
        return ""  # nobody looks at it
    return f"{value!r} in the file, {meant!r} in the model"


def same(name: str, value: Any, wanted: Any, file: File) -> bool:
    """Whether two values of a key are one to llama.cpp: floats are float32, a number may stand for all layers."""
    if name == PATTERN:
        return bool(_pattern(value, file) == _pattern(wanted, file))
    if name == "rope.scaling.type" and {value, wanted} <= {"none", "linear"}:
        return bool(value == wanted) or same("rope.scaling.factor", file.get("rope.scaling.factor"), 1.0, file)

    if isinstance(value, list) or isinstance(wanted, list):
        value, wanted = (one if isinstance(one, list) else [one] * file.layers for one in (value, wanted))
        return len(value) == len(wanted) and all(same("", *pair, file) for pair in zip(value, wanted, strict=True))

    if isinstance(value, bool) != isinstance(wanted, bool):
        return False
    if isinstance(value, float) or isinstance(wanted, float):
        if not isinstance(value, (int, float)) or not isinstance(wanted, (int, float)):
            return False
        if name in ZERO_IS_OFF:
            neutral = 1.0 if name != "attention.scale" else _attention_scale(file)
            value, wanted = value or neutral, wanted or neutral
        return bool(np.float32(value) == np.float32(wanted))

    return bool(value == wanted)


def _pattern(value: Any, file: File) -> Any:
    """Which layers have a window: a period n leaves every n-th layer whole."""
    if isinstance(value, int) and not isinstance(value, bool):
        return [value == 0 or layer % value < value - 1 for layer in range(file.layers)]
    return [bool(item) for item in value] if isinstance(value, list) else value
