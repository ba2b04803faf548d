"""Whether a model without a table computes what its template's metadata says: config.json against the template.

The weights show that both are of one base; they do not show a rotary base, a scale or a window. What a configuration
says of the values that llama.cpp's graphs read is compared with what the template says or leaves to llama.cpp's
defaults, and what the graph has fixed with what the model asks for. Fields that nobody knows are named.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from gguf_ext.arch import Entry, completed
from gguf_ext.arch.gemma3 import PERIOD
from gguf_ext.arch.rope import FACTORED, rope_constants, rope_reason
from gguf_ext.arch.spec import GELU_TANH, SILU, Config
from gguf_ext.errors import TemplateError
from gguf_ext.hyperparameters.compare import DEFAULTS, HARMLESS, PATTERN, SEEN, File, default_of, same
from gguf_ext.hyperparameters.config import WINDOW, counterparts, has_window, rope_of, sources_of
from gguf_ext.memory import ModelInMemory, config_of
from gguf_ext.reader import GGUFFile
from sqft_plugins.checkpoint import ModelFolder
from sqft_plugins.errors import CheckpointError

PERIODS = {
    "afmoe": 4, "cohere2": 4, "exaone4": 4, "exaone-moe": 4, "gemma2": 2, "gemma3": PERIOD, "gemma3n": 5, "gpt-oss": 2,
    "llama4": 4, "olmo2": 4, "plamo3": 8,
}  # fmt: skip
"""Graphs that have a window (`load_swa_pattern` in src/models): every n-th layer is whole where no pattern is given."""
SQUARED = ("relu2",)
GRAPHS = {
    SILU: (
        *("olmo", "olmo2", "granite", "stablelm", "command-r", "cohere2", "smollm3", "exaone", "exaone4", "chatglm"),
        *("glm4", "ernie4_5", "hunyuan-dense", "seed_oss", "internlm2", "minicpm", "minicpm3", "orion", "xverse"),
        *("baichuan", "deci", "dream", "plamo", "lfm2", "llama", "qwen2", "qwen3", "phi3"),
    ),
    GELU_TANH: ("gemma", "gemma2", "gemma3", "starcoder", "starcoder2", "phi2", "gptneox", "codeshell"),
    SQUARED: ("nemotron", "arcee", "jais2"),
    ("xielu",): ("apertus",),
}
ACTIVATIONS = {graph: names for names, graphs in GRAPHS.items() for graph in graphs}
"""llama.cpp's graph → transformers' names of the activation that it has (ggml's gelu is the one with tanh)."""
ACTIVATION_FIELDS = ("hidden_activation", "hidden_act", "activation_function", "activation")
FIXED: dict[str, tuple[Any, ...]] = {
    "use_bidirectional_attention": (None, False),
    "is_causal": (None, True),
    "add_cross_attention": (None, False),
    "scale_attn_weights": (None, True),
    "scale_attn_by_inverse_layer_idx": (None, False),
    "apply_residual_connection_post_layernorm": (None, False),
}
"""Fields whose other values exist in no graph."""
LAYERS_OF_EXAONE4_32B = 64
"""llama.cpp knows by them the EXAONE 4 that has windows, and layers without rotary positions."""
LAYERS_OF_27B = 46
"""llama.cpp knows Gemma 2 27B, whose attention is scaled differently, by its number of layers."""
FOLLOWED = ("query_pre_attn_scalar", "no_rope_layers", "no_rope_layer_interval", "original_max_position_embeddings")
"""Fields that the checks of single graphs and of rotary positions look at."""
NORMS = ("attention.layer_norm_epsilon", "attention.layer_norm_rms_epsilon")
"""A graph reads one of them; converters write both."""
SHAPES = ("vocab_size", "embedding_length", "feed_forward_length", "block_count")
"""The shapes of the tensors show these, which are compared anyway."""
PLAIN = frozenset({
    # what it is called and where it comes from
    "_name_or_path", "architectures", "model_type", "transformers_version", "auto_map", "sqft", "quantization_config",
    "dtype", "torch_dtype", "is_encoder_decoder", "is_decoder", "tie_word_embeddings", "name_or_path", "init_device",
    # tokens, and how to generate
    "bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "sep_token_id", "decoder_start_token_id",
    "eod_token_id", "use_cache", "num_logits_to_keep", "generation_config",
    # of training alone
    "initializer_range", "embedding_initializer_range", "attention_dropout", "attn_pdrop", "embd_pdrop", "resid_pdrop",
    "hidden_dropout", "residual_dropout", "embedding_dropout", "classifier_dropout", "emb_pdrop", "dropout",
    "gradient_checkpointing", "output_router_logits", "router_aux_loss_coef", "pretraining_tp", "rescale_layers",
    # outputs beside the logits
    "output_attentions", "output_hidden_states", "return_dict", "problem_type", "id2label", "label2id",
    "chunk_size_feed_forward", "num_labels",
    # which tensors there are, and these are all compared
    "attention_bias", "attention_out_bias", "mlp_bias", "use_bias", "bias", "use_qkv_bias", "no_bias", "lm_head_bias",
    "qk_layernorm", "use_qk_norm",
    # precision of what is float32 here
    "attention_softmax_in_fp32", "scale_attention_softmax_in_fp32", "attn_implementation", "_attn_implementation",
})  # fmt: skip
"""Fields that do not change what is computed."""


@dataclass(frozen=True)
class Checked:
    """What was found.

    differences: (key or field, line).
    unchecked: fields of config.json and keys of the template that were compared with nothing.
    context: of the file, where llama.cpp lacks the model's window; else None.
    """

    differences: list[tuple[str, str]] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)
    context: int | None = None


def check_template(folder: ModelFolder, template: GGUFFile) -> Checked:
    """Compares the configuration of a model with the metadata of a file of its base, or of its own. Raises
    CheckpointError for a configuration, and TemplateError for metadata, of values that are none."""
    config, known = full_config(folder)
    for name in ("context_length", "block_count", "attention.sliding_window"):
        value = template.metadata.get(f"{template.metadata['general.architecture']}.{name}", 0)
        if not isinstance(value, int):
            raise TemplateError(f"template {template.path} has {name}={value!r}, which is no number: give another file")
    try:
        return _checked(folder, template, config, known)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(
            f"config.json of model {folder.path} cannot be compared with template {template.path} "
            f"({type(error).__name__}: {error}): correct it"
        ) from error


def _checked(folder: ModelFolder, template: GGUFFile, config: Config, known: bool) -> Checked:
    file = File(str(template.metadata["general.architecture"]), template.metadata)
    said = counterparts(config)
    context = None
    if has_window(config) and file.architecture not in PERIODS:
        context = int(config["sliding_window"])
        if int(file.get("context_length") or 0) <= context:  # as an export leaves it
            said.pop("context_length", None)
    differences = [*_values(file, said, config), *_graph(file, config), *_factors(template, config)]
    more, unchecked = _unsaid(file, said, known)
    if file.architecture not in SEEN:
        unchecked.insert(0, f"llama.cpp's graph of {file.architecture}")
    return Checked(differences + more, unchecked + _unknown_fields(folder, config, known), context)


def limited(entries: list[Entry], context: int | None) -> list[Entry]:
    """The hyper-parameters with a context that ends at the window which llama.cpp lacks."""
    if context is None:
        return entries
    return [
        entry._replace(value=min(int(entry.value), context)) if entry.key.endswith(".context_length") else entry
        for entry in entries
    ]


def full_config(folder: ModelFolder) -> tuple[Config, bool]:
    """The configuration with transformers' defaults and common names filled in, and whether transformers knows it;
    config.json as it stands where it does not."""
    try:
        return completed(config_of(folder)), True
    except CheckpointError:
        return folder.config, False


def _values(file: File, said: Mapping[str, Any], config: Config) -> Iterator[tuple[str, str]]:
    """What both speak of."""
    for name, wanted in said.items():
        key = f"{file.architecture}.{name}"
        if name in NORMS and key not in file.metadata:
            continue  # the configuration's name of it does not say which of both it is
        if name == PATTERN or name.startswith("attention.sliding_window"):
            continue
        found = file.get(name)
        if found is None and name in SHAPES:
            continue
        if not same(name, found, wanted, file):
            yield key, f"{found!r} in the file, {wanted!r} in config.json"
    if file.architecture in PERIODS:
        yield from _windows(file, config)


def _windows(file: File, config: Config) -> Iterator[tuple[str, str]]:
    """The window of a graph that has one, and which layers have it."""
    key = f"{file.architecture}.attention.sliding_window"
    size = config.get("sliding_window") if has_window(config) else 0
    context = int(file.get("context_length") or 0)
    found = int(file.get("attention.sliding_window") or 0)

    if not size:
        if 0 < found < context:
            yield key, f"{found} in the file, config.json has no window below its context"
        return

    if found != size:
        yield key, f"{found} in the file, {size} in config.json"

    layers = int(file.get("block_count") or 0)
    period = PERIODS[file.architecture]
    pattern = file.get(PATTERN) or period
    kinds = config.get("layer_types") or ["sliding_attention"] * layers
    if not same(PATTERN, pattern, [kind == "sliding_attention" for kind in kinds], file):
        yield f"{file.architecture}.{PATTERN}", f"{pattern!r} in the file, {kinds} in config.json"


def _graph(file: File, config: Config) -> Iterator[tuple[str, str]]:
    """What llama.cpp's graph has fixed, and no key says."""
    name = next((one for one in ACTIVATION_FIELDS if config.get(one) is not None), None)
    allowed = ACTIVATIONS.get(file.architecture)
    if name is not None and allowed is not None and config[name] not in allowed:
        yield name, f"{config[name]!r} in config.json does not exist in llama.cpp's {file.architecture}"

    for one, values in FIXED.items():
        if config.get(one) not in values:
            yield one, f"{config[one]!r} in config.json does not exist in llama.cpp's {file.architecture}"

    rope = rope_of(config)
    if rope is not None and (reason := rope_reason(file.architecture, rope, FACTORED)):
        yield "rope_parameters", reason

    # single graphs
    if file.architecture == "gemma2":
        yield from _gemma2(config)
    if file.architecture == "exaone4" and bool(config.get("sliding_window")) != (
        config.get("num_hidden_layers") == LAYERS_OF_EXAONE4_32B
    ):
        size = config.get("sliding_window")
        yield "sliding_window", f"{size} in config.json, llama.cpp's exaone4 has a window in models of 64 layers only"
    if file.architecture == "smollm3":
        wanted = [int((layer + 1) % 4 != 0) for layer in range(int(config["num_hidden_layers"]))]
        if (layers := config.get("no_rope_layers")) is not None and list(layers) != wanted:
            yield "no_rope_layers", f"{layers} in config.json, every fourth layer is fixed in llama.cpp's smollm3"


def _gemma2(config: Config) -> Iterator[tuple[str, str]]:
    wide = config["num_hidden_layers"] == LAYERS_OF_27B
    scalar = config["hidden_size"] / config["num_attention_heads"] if wide else config["head_dim"]
    if config.get("query_pre_attn_scalar") != scalar:
        found = config.get("query_pre_attn_scalar")
        yield "query_pre_attn_scalar", f"{found} in config.json is fixed to {scalar:g} in llama.cpp's gemma2"


def _factors(template: GGUFFile, config: Config) -> Iterator[tuple[str, str]]:
    """Tensors that divide rotary frequencies stand in no checkpoint: they follow from the configuration."""
    rope = rope_of(config)
    wanted = {}
    if rope is not None and rope["rope_type"] in ("llama3", "longrope"):
        wanted = rope_constants({**config, "rope_parameters": rope})
    there = {name: info for name, info in template.tensors.items() if name.startswith("rope_f")}
    for name in sorted({*wanted, *there}):
        found = torch.from_numpy(template.dequantize(name).reshape(-1).copy()) if name in there else None
        right = wanted.get(name)
        if right is None and found is not None:
            right = torch.ones_like(found)
        if found is None or right is None or found.shape != right.shape or not torch.allclose(found, right, rtol=1e-6):
            yield name, "is not what rope_parameters in config.json make"


def _unsaid(file: File, said: Mapping[str, Any], known: bool) -> tuple[list[tuple[str, str]], list[str]]:
    """Keys of the template of which the configuration says nothing: differences, and what cannot be compared."""
    differences, unchecked = [], []
    prefix = f"{file.architecture}."
    for key, value in file.metadata.items():
        name = key.removeprefix(prefix)
        if not key.startswith(prefix) or name in said or name in (*NORMS, *SHAPES, *HARMLESS):
            continue
        if name == PATTERN or name.startswith("attention.sliding_window"):
            continue

        default = default_of(file.architecture, name)
        if default is not None and same(name, value, default.value(_without(file, key)), file):
            continue
        if known and name in DEFAULTS:
            differences.append((key, f"{value!r} in the file, config.json has nothing of it"))
        else:
            unchecked.append(key)

    return differences, unchecked


def _without(file: File, key: str) -> File:
    return file._replace(metadata={name: value for name, value in file.metadata.items() if name != key})


def _unknown_fields(folder: ModelFolder, config: Config, known: bool) -> list[str]:
    """Fields of the configuration that say something of the model and were compared with nothing: of a class that
    transformers knows those that are not its defaults, of another all."""
    looked = sources_of(config) | PLAIN | WINDOW | {*ACTIVATION_FIELDS, *FIXED, *FOLLOWED}
    names = [name for name in config if name not in looked and not name.startswith("_")]
    if known:
        usual = _defaults(folder, config)
        names = [name for name in names if name in usual and config[name] != usual[name]]
    return sorted(f"config.json: {name}" for name in names if config[name] is not None)


def _defaults(folder: ModelFolder, config: Config) -> Mapping[str, Any]:
    from transformers import AutoConfig

    kind = type(folder.model.config) if isinstance(folder, ModelInMemory) else None
    found = kind() if kind is not None else AutoConfig.for_model(config["model_type"])
    return found.to_dict()
