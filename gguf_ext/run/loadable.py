"""What llama.cpp can load: the values and tokens at which it ends the process (GGML_ASSERT, an exception that nobody
catches) or refuses the file.

One set of rules for what we write and for what we are about to give to llama.cpp. From its source: llama-model.cpp
(`load_hparams`), models/*.cpp (tensors and graphs), llama-vocab.cpp (`load`), ggml's own checks. What it refuses by
itself, in a line and without harm, such as a missing tensor, is left to it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, TypeGuard

import numpy as np

from gguf_ext.arch.gemma3 import PERIOD
from gguf_ext.blocks import TensorType
from gguf_ext.errors import UnloadableFileError
from gguf_ext.hyperparameters.compare import MAX_LAYERS, SEEN, File
from gguf_ext.reader import GGUFFile
from gguf_ext.run.first_load import check_survives
from gguf_ext.tokenizer.keys import DEFAULT_IDS, MODEL, PREFIX, TOKENS, id_key
from gguf_ext.tokenizer.stripping import NEEDED, PHI3, rule_in
from gguf_ext.tokenizer.vocabulary import BYTES

MAX_EXPERTS = 1024
LARGEST = 2**31 - 1
"""Of a count that llama.cpp hands on as int32."""
SCALINGS = ("none", "linear", "yarn", "longrope")
BASE = "rope.freq_base"
EPSILONS = ("attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon")
ROTARY = ("llama", "qwen2", "qwen3", "phi3", "gemma3", *SEEN)
"""Architectures of ours with rotary positions."""
TRANSFORMERS = (*ROTARY, "gpt2", "bloom")
"""Those that we write: every layer is attention, with heads of one width."""
ROTATED_WHOLE = ("llama", "qwen2", "qwen3")
"""Their graphs rotate whole heads."""
HEADS_FILL = (
    "qwen2", "phi3", "gpt2", "bloom", "chatglm", "cohere2", "command-r", "exaone4", "falcon", "gptneox", "nemotron",
    "olmo", "olmo2", "phi2", "stablelm", "starcoder2",
)  # fmt: skip
"""Their tables have a square attention output: heads times their width is the embedding."""
ENCODERS = ("bert", "rwkv")
"""Tokenizers that die of a vocabulary of another kind, and that the models here never have."""
NO_WEIGHTS = {24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64"}
"""ggml's types that hold no weight."""
LORA_KINDS = {"general.type": "string", "general.architecture": "string", "adapter.type": "string"}
LORA_KINDS |= {"adapter.lora.task_name": "string", "adapter.lora.prompt_prefix": "string"}
LORA_KINDS |= {"adapter.lora.alpha": "float32"}
"""What llama-adapter.cpp reads without a look at its kind."""


def check_loadable(file: GGUFFile) -> None:
    """Raises UnloadableFileError for a model file that llama.cpp would die of, or is known to refuse."""
    if file.metadata.get("general.type") == "adapter":
        raise UnloadableFileError(
            f"llama.cpp cannot load {file.path}: it is a LoRA file and no model; give the base, and this as its adapter"
        )
    if reason := unloadable(file.metadata) or next(_tensors(file), ""):
        raise UnloadableFileError(f"llama.cpp cannot load {file.path}: {reason}; export it again, or take another file")
    if file.metadata.get("general.architecture") not in TRANSFORMERS:
        check_survives(file)


def check_lora(file: GGUFFile) -> None:
    """Raises UnloadableFileError for a LoRA file that llama.cpp would die of, or make no number of."""
    if reason := next(_lora(file), ""):
        raise UnloadableFileError(f"llama.cpp cannot add {file.path}: {reason}; export it again, or take another file")


def check_context(file: GGUFFile, context: int) -> None:
    """Raises UnloadableFileError for a context beyond a table of positions: llama.cpp reads past its end, and dies."""
    if not 0 <= context <= LARGEST:  # ctypes would take it modulo 2^32
        raise UnloadableFileError(f"context={context} of {file.path} is none: give 1 or more, or 0 for the model's")
    table = file.tensors.get("position_embd.weight")
    if table is not None and context > table.shape[0]:
        raise UnloadableFileError(
            f"context={context} of {file.path}: it has {table.shape[0]} positions and no more; use a smaller context"
        )


def unloadable(metadata: Mapping[str, Any]) -> str:
    """A line why llama.cpp cannot load a model with this metadata, "" where nothing is known against it."""
    return next(_reasons(metadata), "")


def _reasons(metadata: Mapping[str, Any]) -> Iterator[str]:
    name = metadata.get("general.architecture")
    if not isinstance(name, str):
        yield f"general.architecture={name!r} is no name"
        return

    own = {key.removeprefix(f"{name}."): value for key, value in metadata.items() if key.startswith(f"{name}.")}
    found = list(_sizes(own))
    if not found:
        found = [*_scaling(own), *_experts(own), *_vocabulary(metadata)]
    if not found and name in TRANSFORMERS:
        found = [*_heads(File(name, metadata)), *(_windows(own) if name == "gemma3" else ())]
        if (model := metadata.get(MODEL)) in ENCODERS:
            found.append(f"{MODEL}={model!r} is no tokenizer of a {name}")
    yield from (f"{name}.{reason}" if reason.partition("=")[0] in own else reason for reason in found)


def _tensors(file: GGUFFile) -> Iterator[str]:
    """Of our architectures: types that no operator takes, and what phi3 does not miss until it is used."""
    name = file.metadata.get("general.architecture")
    if name not in TRANSFORMERS:
        return
    for info in file.tensors.values():
        if len(info.shape) == 1 and info.type != TensorType.F32:
            kind = NO_WEIGHTS.get(info.type, info.type_name)
            yield f"{info.name} is {kind}: norms, biases and rope factors must be F32"
        elif info.type in NO_WEIGHTS:
            yield f"{info.name} is of {NO_WEIGHTS[info.type]}, which no weight is"
    for block in range(file.metadata[f"{name}.block_count"] if name == "phi3" else 0):
        if not file.tensors.keys() & {f"blk.{block}.attn_qkv.weight", f"blk.{block}.attn_q.weight"}:
            yield f"blk.{block}.attn_qkv.weight is missing"


def _lora(file: GGUFFile) -> Iterator[str]:
    for key, kind in LORA_KINDS.items():
        if file.kinds.get(key, kind) != kind:
            yield f"{key} is of kind {file.kinds[key]}, not {kind}"
    if not math.isfinite(float(file.metadata.get("adapter.lora.alpha", 0.0))):
        yield f"adapter.lora.alpha={file.metadata['adapter.lora.alpha']} is no number"
    for info in file.tensors.values():
        if info.type in NO_WEIGHTS:
            yield f"{info.name} is of {NO_WEIGHTS[info.type]}, which no weight is"
        elif len(info.shape) != 2 and file.metadata.get("general.architecture") in TRANSFORMERS:
            yield f"{info.name} has {len(info.shape)} dimensions, not 2"
        elif info.type in set(TensorType) and not np.isfinite(file.dequantize(info.name)).all():
            yield f"{info.name} holds values that are no numbers"


def _sizes(own: Mapping[str, Any]) -> Iterator[str]:
    for key, most in (("block_count", MAX_LAYERS), ("embedding_length", LARGEST), ("context_length", LARGEST)):
        value = own.get(key)
        if not _is_count(value) or not 1 <= value <= most:
            yield f"{key}={value} is not between 1 and {most}"
    more = own.get("nextn_predict_layers", 0)
    if _is_count(more) and _is_count(own.get("block_count")) and more > own["block_count"]:
        yield f"nextn_predict_layers={more} is more than the blocks"


def _scaling(own: Mapping[str, Any]) -> Iterator[str]:
    kind = own.get("rope.scaling.type", SCALINGS[0])
    if isinstance(kind, str) and kind not in SCALINGS:
        yield f"rope.scaling.type={kind!r} is none of {', '.join(SCALINGS)}"
    for key, value in own.items():
        if isinstance(value, float) and not math.isfinite(value):
            yield f"{key}={value} is no number"
        elif isinstance(value, float) and key in EPSILONS and value < 0:
            yield f"{key}={value} is less than 0"
        elif isinstance(value, float) and key.startswith(BASE) and value <= 0:
            yield f"{key}={value} is not more than 0"


def _experts(own: Mapping[str, Any]) -> Iterator[str]:
    count, used = own.get("expert_count", 0), own.get("expert_used_count", 0)
    groups, picked = own.get("expert_group_count", 0), own.get("expert_group_used_count", 0)
    most = max(used, default=0) if isinstance(used, list) else used
    if not all(map(_is_count, (count, most, groups, picked))):
        return
    if count > MAX_EXPERTS:
        yield f"expert_count={count} is more than {MAX_EXPERTS}"
    elif most > count or (count and not most):
        yield f"expert_used_count={used} does not go with expert_count {count}"
    elif groups and groups >= count:
        yield f"expert_group_count={groups} does not go with expert_count {count}"
    elif groups > 1 and (count % groups or not 0 < picked < groups):
        yield f"expert_group_count={groups} does not go with expert_count {count}, of which {picked} groups are used"


def _heads(file: File) -> Iterator[str]:
    """Of every layer: how many heads, of which width, and how much of it is rotated."""
    name, blocks, hidden = file.architecture, file.get("block_count"), file.get("embedding_length")
    counts = [file.get(key) for key in ("attention.head_count", "attention.head_count_kv")]
    heads, groups = (_each(count, blocks) for count in counts)
    if not heads or min(heads) < 1:
        yield f"attention.head_count={counts[0]} is no count of heads for {blocks} blocks"
        return
    if not groups or any(kv < 1 or count % kv for count, kv in zip(heads, groups, strict=True)):
        yield f"attention.head_count_kv={counts[1]} does not divide {heads[0]} heads"
        return

    width, values = file.get("attention.key_length"), file.get("attention.value_length")
    if not _is_count(width) or width < 2 or width != values:  # ggml takes a width of 1 for a transposed matrix
        yield f"attention.key_length={width}: keys and values ({values}) are not of one width, 2 or more"
        return
    if name in HEADS_FILL and heads[0] * width != hidden:
        yield (
            f"{heads[0]} heads of {width} (head_dim) are not the embedding's {hidden}, as llama.cpp's {name} takes "
            "for granted"
        )
    rotated = file.get("rope.dimension_count")
    for key, part in (("", rotated), ("_swa", file.get("rope.dimension_count_swa"))):
        if name in ROTARY and (not _is_count(part) or part < 1 or part % 2 or part > width):
            yield f"rope.dimension_count{key}={part} is no even part of heads of {width}"
    if name in ROTATED_WHOLE and rotated != width:
        yield f"rope.dimension_count={rotated} is not the heads' {width}, which llama.cpp's {name} rotates whole"


def _windows(own: Mapping[str, Any]) -> Iterator[str]:
    """Gemma 3: with a window, some layer must have it."""
    if not own.get("attention.sliding_window"):
        return
    pattern = own.get("attention.sliding_window_pattern", PERIOD)
    if pattern == 1 or (isinstance(pattern, list) and not any(pattern[: own["block_count"]])):
        size = own["attention.sliding_window"]
        yield f"attention.sliding_window={size}: by attention.sliding_window_pattern no layer has this window"


def _vocabulary(metadata: Mapping[str, Any]) -> Iterator[str]:
    model, tokens = metadata.get(MODEL), metadata.get(TOKENS)
    if model in ("none", "no_vocab"):
        yield f"{MODEL}={model!r}: the file has no tokenizer, and a text would end the process"
        return
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        return  # llama.cpp says so

    # an empty token gets a name of its own
    names = [token or f"[EMPTY_{index}]" for index, token in enumerate(tokens)]
    if len(set(names)) != len(names):
        seen: set[str] = set()
        twice = next(token for token in names if token in seen or seen.add(token))  # type: ignore[func-returns-value]
        yield f"{TOKENS} holds {twice!r} twice"
        return

    there = set(names)
    if model == "llama" and (lost := next((token for token in BYTES if not _has_byte(token, there)), None)):
        yield f"{TOKENS} has no {lost}, which its tokenizer needs for texts that hold this byte"
    if rule_in(metadata) == PHI3 and (lost := next((token for token in NEEDED if token not in there), None)):
        yield f"general.name {metadata['general.name']!r} makes llama.cpp look for {lost}, which is no token"

    for which in ("bos", "eos"):
        added = metadata.get(f"{PREFIX}add_{which}_token", which == "bos" and model == "llama")
        token = metadata.get(id_key(which), len(tokens))
        known = _is_count(token) and token < len(tokens)
        if added is True and not known and DEFAULT_IDS.get(str(model), {}).get(which, -1) not in range(len(tokens)):
            yield f"{PREFIX}add_{which}_token=True, but the file names no such token"


def _has_byte(name: str, there: set[str]) -> bool:
    """A byte's own token, or the character itself (`byte_to_token`)."""
    return name in there or chr(int(name[1:-1], 16)) in there


def _each(value: Any, blocks: int) -> list[int]:
    """A count of each block; [] where it is none."""
    found = value if isinstance(value, list) else [value] * blocks
    return found if len(found) == blocks and all(map(_is_count, found)) else []


def _is_count(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**32
