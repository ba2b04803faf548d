"""A family as one row of data: its modules, its hyper-parameters, and which value each further field of its config.json
must have because llama.cpp's graph has it fixed.

A field that the configuration class of transformers declares and that no row speaks of is refused by its name: it may
change the arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache
from typing import Any, Literal

from gguf_ext.arch.rope import ROPE_KEYS, rope_constants, rope_note, rope_reason, scaling_entries, told_rope
from gguf_ext.arch.spec import DECODER_KEYS, Architecture, Config, Entry, Key, Rule, Told

TRAINING = frozenset({
    "attention_dropout", "attn_pdrop", "classifier_dropout", "embd_pdrop", "emb_pdrop", "embedding_dropout",
    "hidden_dropout", "init_device", "initializer_range", "pretraining_tp", "resid_pdrop", "residual_dropout",
    "use_cache", "bos_token_id", "eos_token_id", "pad_token_id", "eod_token_id", "is_decoder",
})  # fmt: skip
"""Fields that say how a model is trained, loaded or ended: no graph computes otherwise for them."""
ROPE = frozenset({"rope_parameters", "partial_rotary_factor", "head_dim"})
"""Fields that the keys of rotary positions read."""
RMS_KEYS = DECODER_KEYS
Source = str | Callable[[Config], Any]


def layer_norm_keys(epsilon: Source, changed: Mapping[str, Source] | None = None) -> tuple[Key, ...]:
    """Sizes, and the epsilon of LayerNorms. epsilon: its name in config.json. changed: key → its source, where that is
    not a decoder's."""
    sizes = (key for key in DECODER_KEYS if key.name != "attention.layer_norm_rms_epsilon")
    return (
        *(Key(key.name, (changed or {}).get(key.name, key.source)) for key in sizes),
        Key("attention.layer_norm_epsilon", epsilon, "float32"),
    )


def family(
    name: str,
    model_class: str,
    model_type: str,
    rules: tuple[Rule, ...],
    *,
    keys: tuple[Key, ...] = RMS_KEYS,
    rope: Sequence[str] = (),
    parts: bool = False,
    fixed: Mapping[str, Collection[Any]] | None = None,
    biases: Mapping[str, str] | None = None,
    spoken: Collection[str] = (),
    head: Literal["any", "tied", "own"] = "any",
    reason: Callable[[Config], str] = lambda config: "",
    entries: Callable[[Config], list[Entry]] = lambda config: [],
    told: Callable[[Told], dict[str, Any]] = lambda told: {},
    note: Callable[[Config], str] = lambda config: "",
    reads: Callable[[Told], bool] = lambda told: True,
) -> Architecture:
    """The table of one family.

    name: llama.cpp's.
    model_class, model_type: transformers'.
    rules: the modules, in the order of the file.
    keys: hyper-parameters without those of rotary positions.
    rope: the kinds of rotary positions that the graph has; () for a graph without, or one whose `keys`, `entries` and
        `spoken` say it themselves.
    parts: whether the graph may rotate a part of each head.
    fixed: field of config.json → the values that llama.cpp computes; the first is what a file means.
    biases: field of config.json → the tensor of the first block by which a file says that it is true.
    spoken: further fields that `keys`, `reason` and `entries` look at.
    head: whether llama.cpp has a head of its own, the embedding, or either.
    reason, entries, told, note, reads: see `Architecture`; what all families have is added.
    """
    allowed = dict(fixed or {}) | ({"tie_word_embeddings": (head == "tied",)} if head != "any" else {})
    named = {key.source for key in keys if isinstance(key.source, str)}
    known = {*named, *allowed, *(biases or {}), *spoken, "tie_word_embeddings", *(ROPE if rope else ())}

    def why_not(config: Config) -> str:
        found = _fixed(name, config, allowed) or reason(config) or _unspoken(name, config, known)
        if found or not rope:
            return found
        if not parts and float(config["rope_parameters"].get("partial_rotary_factor") or 1) != 1:
            return f"partial_rotary_factor has no table for {name}: only models that rotate whole heads"
        return rope_reason(name, config["rope_parameters"], rope)

    def said(told_by: Told) -> dict[str, Any]:
        width, turned = told_by.get("attention.key_length"), told_rope(told_by) if rope else {}
        if parts and width:  # classes that rotate a part have a default of their own
            turned["partial_rotary_factor"] = told_by.get("rope.dimension_count") / width
        return {
            "model_type": model_type,
            "max_position_embeddings": told_by.get("context_length"),
            **{field: next(iter(values)) for field, values in allowed.items()},
            **{field: tensor in told_by.tensors for field, tensor in (biases or {}).items()},
            **({"rope_parameters": turned} if rope else {}),
            **({} if _derived(model_type, "head_dim") else {"head_dim": width}),
            **told(told_by),
        }

    return Architecture(
        name=name,
        classes=(model_class,),
        keys=(*keys, *(ROPE_KEYS if rope else ())),
        rules=rules,
        reason=why_not,
        entries=lambda config: [
            *(scaling_entries(name, config["rope_parameters"], config) if rope else ()),
            *entries(config),
        ],
        constants=rope_constants if rope else lambda config: {},
        note=lambda config: "; ".join(filter(None, (note(config), rope_note(config) if rope else ""))),
        told=said,
        head=head,
        reads=reads,
    )


def _fixed(name: str, config: Config, allowed: Mapping[str, Collection[Any]]) -> str:
    """A line for the first field whose value llama.cpp does not compute; null will do where false does."""
    for field, values in allowed.items():
        value = config.get(field)
        if value not in values and not (value is None and False in values):
            choice = " or ".join(map(repr, values))
            return f"{field}={value!r} does not exist in llama.cpp's {name}: only {choice}"
    return ""


def _unspoken(name: str, config: Config, known: Collection[str]) -> str:
    """A line for the first declared field that no row speaks of and that says something."""
    declared, aliases = _declared(str(config.get("model_type")))
    spoken = {*known, *(aliases[field] for field in known if field in aliases)}
    found = next((field for field in sorted(declared - spoken) if config.get(field)), "")
    return f"{found}={config[found]!r} has no place in the table of {name}: report the architecture" if found else ""


@cache
def _declared(model_type: str) -> tuple[frozenset[str], dict[str, str]]:
    """The fields that a configuration class has beyond those of every class and of training, and its other names."""
    from transformers import CONFIG_MAPPING, PretrainedConfig

    kind = CONFIG_MAPPING[model_type]
    common = PretrainedConfig().to_dict().keys()
    return frozenset(kind().to_dict().keys() - common - TRAINING), dict(kind.attribute_map)


def _derived(model_type: str, field: str) -> bool:
    """Whether the configuration class computes the field from others."""
    from transformers import CONFIG_MAPPING

    return isinstance(getattr(CONFIG_MAPPING[model_type], field, None), property)
