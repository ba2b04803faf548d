"""The shape of an architecture's table. A table is data: adding an architecture is adding one short file."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from gguf_ext.errors import UnsupportedArchitectureError
from gguf_ext.gguf_package import module_name

Config = Mapping[str, Any]
"""The configuration as transformers normalizes it (`AutoConfig(...).to_dict()`), so that defaults are filled in."""

GELU_TANH = ("gelu_new", "gelu_pytorch_tanh", "gelu_python_tanh", "gelu_fast", "gelu_accurate")
"""transformers' names of the one function that llama.cpp's gelu is (activations.py)."""
SILU = ("silu", "swish")
"""The same of its silu."""

Kind = str
"""A GGUF value type: uint32, int32, float32, bool, string, …; of an array its plural: strings, floats, ints, bools,
uint32s, …"""
Bias = Literal["none", "optional", "required"]
"""Whether llama.cpp's graph adds a bias after the module."""


class Entry(NamedTuple):
    """One metadata entry of a GGUF file."""

    key: str
    value: Any
    kind: Kind


@dataclass(frozen=True)
class Key:
    """A hyper-parameter. name: its GGUF key without the architecture. source: its name in config.json, or what it is
    by the configuration."""

    name: str
    source: str | Callable[[Config], Any]
    kind: Kind = "uint32"


@dataclass(frozen=True)
class Rule:
    """One kind of module.

    source: its name in the checkpoint, `{i}` for the layer.
    target: its name in the GGUF file; "" for the gguf package's name of it.
    rows: the row of the checkpoint in each row of the file, int64 [out], from the configuration; None where rows stay.
    transposed: whether the float weight is stored [in, out], as in a Conv1D (an INT4 one is always [out, in]).
    bias: whether llama.cpp has one.
    add: added to the weight, in float32.
    required: whether a model without it is refused.
    """

    source: str
    target: str = ""
    rows: Callable[[Config], Tensor] | None = None
    transposed: bool = False
    bias: Bias = "none"
    add: float = 0.0
    required: bool = True

    @property
    def pattern(self) -> re.Pattern[str]:
        return re.compile(re.escape(self.source).replace(re.escape("{i}"), r"(?P<i>\d+)"))


@dataclass(frozen=True)
class Told:
    """What a file says of its model.

    get: the value of a hyper-parameter, by its name without the architecture: what stands in the file, else what
        llama.cpp takes without it, else None.
    tensors: the names of its tensors.
    constant: a tensor by its name, float32.
    """

    get: Callable[[str], Any]
    tensors: Collection[str]
    constant: Callable[[str], Tensor]


@dataclass(frozen=True)
class Architecture:
    """How models of some classes become files, and files such models.

    name: llama.cpp's.
    classes: the `architectures` of config.json.
    keys: hyper-parameters that config.json has.
    rules: the modules, in the order of the file.
    reason: a line why a model cannot be exported, "" for a model that can.
    entries: hyper-parameters beyond `keys`.
    constants: tensors that stand in no checkpoint, such as rope factors.
    note: a line that the user should read although the model can be exported, "" for none.
    ignored: tensors of the checkpoint that the file does not need (regular expressions).
    told: the fields of config.json, `model_type` among them, that a file says beyond those which stand in `keys` by
        name; None where no file is read as a model of these classes.
    head: whether llama.cpp's graph takes a head of its own ("own"), the embedding ("tied"), or either ("any").
    reads: of tables with one name, whether a file is read by this one.
    """

    name: str
    classes: tuple[str, ...]
    keys: tuple[Key, ...]
    rules: tuple[Rule, ...]
    reason: Callable[[Config], str]
    entries: Callable[[Config], list[Entry]] = lambda config: []
    constants: Callable[[Config], dict[str, Tensor]] = lambda config: {}
    note: Callable[[Config], str] = lambda config: ""
    ignored: tuple[str, ...] = field(default=(r".*\.rotary_emb\.inv_freq",))
    told: Callable[[Told], dict[str, Any]] | None = None
    head: Literal["any", "tied", "own"] = "any"
    reads: Callable[[Told], bool] = lambda told: True

    @property
    def bodies(self) -> set[str]:
        """First parts of module names, which a checkpoint of the bare body of the model lacks."""
        return {rule.source.partition(".")[0] for rule in self.rules if "." in rule.source}

    def target(self, rule: Rule) -> str:
        """The name in the file of the modules of a rule, `{i}` for the layer. Raises UnsupportedArchitectureError."""
        return rule.target or module_name(self.name, rule.source)

    def config_of(self, told: Told) -> dict[str, Any]:
        """config.json's fields by what a file says: the table read backwards. Those that the file does not say are left
        to transformers' defaults, so `metadata` of the result is to be compared with the file."""
        assert self.told is not None
        named = {key.source: told.get(key.name) for key in self.keys if isinstance(key.source, str)}
        fields = {name: short(value) for name, value in named.items() if value is not None}
        return {
            "architectures": [self.classes[0]],
            "tie_word_embeddings": "output.weight" not in told.tensors,
            **fields,
            **self.told(told),
        }

    def metadata(self, config: Config) -> list[Entry]:
        """The hyper-parameters, `general.architecture` left to the writer. Raises UnsupportedArchitectureError for a
        value that a GGUF file does not hold."""
        table = [Entry(f"{self.name}.{key.name}", _read(key, config), key.kind) for key in self.keys]
        entries = table + self.entries(config)
        for key, value, kind in entries:
            if kind == "uint32" and not 0 <= value < 2**32:
                raise UnsupportedArchitectureError(f"{key}={value} does not fit a GGUF file: correct config.json")
        return entries


def _read(key: Key, config: Config) -> Any:
    read: dict[str, Callable[[Any], Any]] = {"uint32": int, "float32": float, "bool": bool}
    name, value = (
        (key.source, config.get(key.source)) if isinstance(key.source, str) else (key.name, key.source(config))
    )
    try:
        return read[key.kind](value)
    except (TypeError, ValueError, OverflowError) as error:
        raise UnsupportedArchitectureError(
            f"{name}={value!r} is no {key.name} that a GGUF file could hold: correct config.json"
        ) from error


def absent(name: str, config: Config, *options: str) -> str:
    """A line for the first of the options that the model sets, all of which llama.cpp's architecture `name` lacks; ""
    where it sets none."""
    found = next((option for option in options if config.get(option) is not None and config[option] is not False), "")
    return f"{found} does not exist in llama.cpp's {name}: only models without it" if found else ""


def short(value: Any) -> Any:
    """A float32 in the fewest digits that mean it, as people write it: 9.999999974752427e-07 becomes 1e-06."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


def rotary_order(rows: int, heads: int) -> Tensor:
    """int64 [rows]: which row of the checkpoint stands in each row of the file.

    transformers rotates the first half of a head against the second, llama.cpp's `llama` neighbours against each
    other: [x0 x1 … y0 y1 …] becomes [x0 y0 x1 y1 …] within each head.
    """
    order = torch.arange(rows).view(heads, 2, rows // heads // 2)
    return order.transpose(1, 2).reshape(-1)


def head_width(config: Config) -> int:
    """Columns of one head."""
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def rotary(heads: str) -> Callable[[Config], Tensor]:
    """Rows in llama.cpp's rotary order. heads: the entry of config.json that counts the heads of the module."""
    return lambda config: rotary_order(int(config[heads]) * head_width(config), int(config[heads]))


DECODER_KEYS = (
    Key("vocab_size", "vocab_size"),
    Key("context_length", "max_position_embeddings"),
    Key("embedding_length", "hidden_size"),
    Key("block_count", "num_hidden_layers"),
    Key("feed_forward_length", "intermediate_size"),
    Key("attention.head_count", "num_attention_heads"),
    Key("attention.head_count_kv", "num_key_value_heads"),
    Key("attention.layer_norm_rms_epsilon", "rms_norm_eps", "float32"),
)
"""Hyper-parameters that every decoder with RMS norms and grouped attention has: llama.cpp's name, and the config's."""
