"""Which adapters a LoRA file of llama.cpp can hold: those that compute `W x + scale * B A x` over the untouched base.

A `LoraConfig` can ask for much else. What is known to leave that formula alone is listed; any other option that is set
is refused, so that one which PEFT adds tomorrow is not exported as if it were not there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gguf_ext.errors import AdapterError
from sqft_plugins.adapter import AdapterFolder
from sqft_plugins.adapter.initialisations import CONVERT, changes_base, is_repeated

PLAIN_FIELDS = frozenset(
    {
        # where it comes from and which modules it adapts: the tensors say so
        *("peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "task_type"),
        *("inference_mode", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
        *("target_parameters", "megatron_config", "megatron_core"),
        # what the scaling is made of
        *("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora"),
        # of training alone
        *("lora_dropout", "init_lora_weights", "eva_config", "corda_config", "lora_ga_config", "loftq_config"),
        # how PEFT holds it, not what it computes: A and B are stored alike
        *("fan_in_fan_out", "ensure_weight_tying", "qalora_group_size", "runtime_config"),
        # of SQFT, looked at by name
        *("sparse", "quantization_aware", "grid", "rank_choices", "share_rank", "mask_hash", "grid_stamp"),
        "rounding",  # of codes, which only a quantization-aware adapter has
    }
)
NO_MERGE = {
    "alora_invocation_tokens": "llama.cpp's library would have it always on, not from these tokens on, and nothing "
    "merges it: run it in PEFT",
    "layer_replication": "the model has layers that its base lacks: run it in PEFT",
}


def check_dense(folder: AdapterFolder) -> None:
    """Raises AdapterError, naming the way out, for an adapter whose delta is not scale * (B @ A) of one rank."""
    folder.check_config()
    adapter = folder.path
    merge = f"merge it with `sqft merge MODEL {adapter} --out DIR` and export that"

    # what is more, or less, than scale * (B @ A)
    if folder.method not in ("LORA", "SQFT"):
        raise AdapterError(f"adapter {adapter} is {folder.method or 'of no type'}: llama.cpp has LoRA only; {merge}")
    if folder.kind == "quantization-aware":
        raise AdapterError(f"adapter {adapter} is quantization-aware: base + LoRA is not the trained model; {merge}")
    if folder.kind == "masked":
        raise AdapterError(f"adapter {adapter} is masked: its delta has full rank, no LoRA file holds it; {merge}")
    if folder.is_elastic:
        raise AdapterError(
            f"adapter {adapter} is elastic: write one of its ranks with `sqft extract {adapter} --rank heuristic "
            f"--out DIR` and export that"
        )

    # what PEFT can add beside
    _check_init(folder.config.get("init_lora_weights", True), adapter, merge)
    for name, value in folder.config.items():
        if name in PLAIN_FIELDS or not value or (name == "bias" and value == "none"):
            continue
        way = NO_MERGE.get(name, merge)
        raise AdapterError(f"adapter {adapter} has {name}={value!r}, which llama.cpp lacks: {way}")


def _check_init(init: Any, adapter: Path, merge: str) -> None:
    if changes_base(init):
        raise AdapterError(
            f"adapter {adapter} has init_lora_weights={init!r}, which changed the base weight: over the untouched base "
            f"its A and B are another model; {f'{merge}, or {CONVERT}' if is_repeated(init) else CONVERT}"
        )
