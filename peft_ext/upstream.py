"""What this package touches in PEFT, transformers, accelerate and torch beyond what they document, and what breaks
where it moves. Imports nothing of theirs; what the sources show by themselves (imports, overridden methods) is found
there."""

from __future__ import annotations

from sqft_plugins.plugins.protocols import Probe, Touch, Upstream, touches

ALL = "no SQFT adapter can be made or loaded"
MERGED = "adapters cannot be merged, or an unmerge leaves another base"
GUARDS = "tensors of another base are loaded under a name that is in use"
HOOKS = "ranks are not drawn in training, or hooks stay on a model that was unloaded"
SAVED = "a saved adapter lacks its ranks or the hash of its masks"
MIXED = "adapters of other types in one model are not refused"
OFFLOADED = "an offloaded base is not recognised"
ATTACHED = "transformers' own add_adapter and load_adapter leave the model half done"
SETTLED = "codes that an adapter has settled to cannot be made or loaded"
STALE = "evaluation may go on with the merged weight of other factors"

PEFT = (
    *touches(ALL, "mapping", "tuners.lora", "tuners.lora.layer", "tuners.tuners_utils", "utils", "utils.other",
             owner="peft"),
    Touch("peft.utils.peft_types.PeftType", ALL, says=("class PeftType(str, enum.Enum)",)),
    Touch(
        "peft.utils.peft_types.register_peft_method", ALL, "name, config_cls, model_cls, prefix, is_mixed_compatible",
    ),
    Touch("peft.utils.hotswap", GUARDS),
    Touch(
        "peft.utils.hotswap.hotswap_adapter_from_state_dict", GUARDS,
        "model, state_dict, adapter_name, config, parameter_prefix",
    ),

    # LoraModel's hooks
    Touch(
        "peft.tuners.lora.LoraModel._create_and_replace", ALL,
        "self, lora_config, adapter_name, target, target_name, parent, current_key, parameter_name=, ...",
    ),
    Touch("peft.tuners.lora.LoraModel._create_new_module", ALL, "lora_config, adapter_name, target, ..."),
    Touch("peft.tuners.tuners_utils.BaseTuner.__init__", MIXED, "self, model, peft_config, adapter_name, ..."),
    *touches(
        ALL, "inject_adapter", "set_adapter", "targeted_module_names", "targeted_parameter_names", "peft_config",
        "active_adapters", owner="peft.tuners.lora.LoraModel",
    ),
    *touches("layers are replicated once for each adapter", "_prepare_model", owner="peft.tuners.lora.LoraModel"),
    *touches(MERGED, "_unload_and_optionally_merge", owner="peft.tuners.lora.LoraModel"),
    Touch(
        "peft.tuners.lora.LoraModel._get_adapter_state_dict", SAVED,
        "cls, model, config, adapter_name, state_dict, ...",
    ),
    Touch(
        "peft.tuners.lora.LoraModel._remap_adapter_state_dict_for_load", SETTLED,
        "cls, model, config, adapter_name, state_dict",
    ),
    *touches(SETTLED, "_disable_adapters", owner="peft.tuners.tuners_utils.BaseTunerLayer"),
    Touch(
        "peft.tuners.lora.LoraModel.add_weighted_adapter", "adapters cannot be combined",
        "self, adapters, weights, adapter_name, combination_type, ...",
    ),
    Touch("peft.tuners.lora.LoraConfig", "custom modules are not refused", says=("_custom_modules",)),

    # LoraLayer and its variants
    *touches(
        ALL, "lora_A", "lora_B", "lora_bias", "lora_dropout", "lora_variant", "scaling", "r", "lora_alpha",
        "disable_adapters", "merged", "merged_adapters", "active_adapters", "fan_in_fan_out", "base_layer",
        "get_base_layer", "other_param_names", "_cast_input_dtype", "lora_variants", owner="peft.tuners.lora.Linear",
    ),
    *touches(ALL, "merge_safe", "merge_unsafe", "forward", "init", owner="peft.tuners.lora.layer.LoraVariant"),
    Touch("peft.tuners.lora.layer.LoraLayer.resolve_lora_variant", ALL, says=("lora_variants",)),
    *touches(MIXED, "_get_available_adapters", owner="peft.tuners.tuners_utils.BaseTunerLayer"),

    # what is wrapped (registry.wrap)
    Touch("peft.PeftModel.load_adapter", GUARDS, "self, model_id, adapter_name, ..."),
    Touch("peft.PeftModel._split_kwargs", GUARDS, "cls, kwargs"),
    Touch("peft.PeftModel.create_or_update_model_card", "the card of an adapter lacks our lines", "self, output_dir"),
)  # fmt: skip

OTHERS = (
    # transformers
    *touches(ALL, "pytorch_utils", owner="transformers"),
    *touches(ATTACHED, "integrations.peft", owner="transformers"),
    Touch("transformers.integrations.peft.PeftAdapterMixin._hf_peft_config_loaded", ATTACHED),
    Touch("transformers.integrations.peft.PeftAdapterMixin.add_adapter", ATTACHED, says=("_hf_peft_config_loaded",)),
    Touch("transformers.integrations.peft.MIN_PEFT_VERSION", ATTACHED),

    # accelerate
    *touches(OFFLOADED, "hooks", owner="accelerate"),
    Touch("accelerate.hooks.add_hook_to_module", OFFLOADED, says=("_hf_hook",)),
    *touches(OFFLOADED, "offload", owner="accelerate.hooks.AlignDevicesHook"),

    # torch
    *touches(
        HOOKS, "_forward_hooks", "_forward_pre_hooks", "_forward_hooks_always_called", "_forward_pre_hooks_with_kwargs",
        "_load_state_dict_pre_hooks", owner="torch.nn.Module",
    ),
    Touch("torch.nn.Module._load_from_state_dict", SETTLED, "self, state_dict, prefix, ..."),
    *touches(MERGED, "_parameters", "_modules", "_buffers", owner="torch.nn.Module"),
    Touch("torch.nn.Module._apply", MERGED, "self, fn, recurse"),
    Touch("torch._C._current_graph_task_id", "a checkpointed forward draws ranks of its own"),
    Touch("torch.Tensor._version", STALE),
    Touch("torch.distributed.fsdp._dynamo_utils", MERGED, says=("_is_fsdp_managed_module",)),
    Touch("torch.distributed.fsdp._fully_shard._fully_shard", MERGED, says=("_is_fsdp_managed_module",)),
)  # fmt: skip

ENUM = (
    Touch("enum.EnumType", ALL, says=("_member_names_", "_member_map_", "_value2member_map_")),
    Touch("enum", ALL, says=("_name_", "_value_", "_sort_order_", "__objclass__")),
)
"""Python's: a member is added to PEFT's closed Enum (registry.py)."""

PROBES = (
    Probe("`PeftType` takes one more member", ALL, "peft_ext.probes:peft_type_grows", ("peft",)),
    Probe(
        "transformers takes the PEFT that is installed", "add_adapter and load_adapter of transformers raise",
        "peft_ext.probes:transformers_takes_peft", ("transformers", "peft"),
        copes="PEFT's get_peft_model and PeftModel.from_pretrained work, transformers' own two methods do not",
    ),
    Probe(
        "the forward pass of a transformers model can be read", "an adapter that a model reads past changes nothing",
        "peft_ext.probes:reads_are_seen", ("transformers", "peft"),
    ),
)  # fmt: skip

UPSTREAM = Upstream(
    code="peft_ext",
    seen={
        "peft": ">=0.21,<0.22", "transformers": ">=5.16.1,<5.25", "accelerate": ">=1.10,<1.16", "torch": ">=2.10,<2.16",
        "enum": ">=3.11,<3.14",
    },
    touches=(*PEFT, *OTHERS, *ENUM),
    probes=PROBES,
    public=("torch",),
)  # fmt: skip
