"""Which of PEFT's tests are left out for SQFTConfig, each with its reason.

FILES: whole files that are not run. REFUSALS: what the tuner refuses by name. A test that runs into one of these
messages is left out; no other message is taken for a refusal. LEFT_OUT: tests that fail for another reason. One that
passes, or that exists no more, is an error. TOLERANCES: tests that compare with torch.allclose, whose own tolerance
holds on some processors and not on others; they run with the absolute one given here. FAIL_FOR_LORA: tests that fail
for stock LoraConfig too, because of what this machine or the stand-ins lack. SLOW: tests that wait for SQFT_SLOW=1.
"""

from __future__ import annotations

from peft_ext.loading_guards import newer_peft_wanted

_VARIANT = "another variant of LoRA, which SQFTConfig refuses"
_ON_TOP = "a tuner of its own on top of stock LoRA layers"
_GPU = "needs a GPU, quantized backends and the model hub"

FILES = {
    "test_arrow.py": _ON_TOP,
    "test_auto.py": "needs the hub's adapters",
    "test_bdlora.py": _VARIANT,
    "test_common_gpu.py": _GPU,
    "test_gptqmodel.py": _GPU,
    "test_gpu_examples.py": _GPU,
    "test_lora_ga.py": _VARIANT,
    "test_lora_megatron.py": "needs Megatron",
    "test_mixed.py": "all of PeftMixedModel, whose list of types is closed",
    "test_riemannian_lora.py": "an optimizer for the factors of a dense delta",
    "test_stablediffusion.py": "needs diffusers and the hub's pipelines",
    "test_target_parameters.py": "all of target_parameters, which SQFTConfig refuses",
    "test_torch_compile.py": "needs the hub's datasets; ours is tests/peft_ext/test_model_compile.py",
    "test_velora.py": _VARIANT,
    "test_vision_models.py": "convolutions, and the hub's images",
    "test_xlora.py": _ON_TOP,
}
REFUSALS = {
    r"variant combination: \('alora_invocation_tokens',\)": "aLoRA adapts some tokens only, which no merged weight can",
    r"variant combination: \('use_dora',\)": "DoRA rescales the base weight: its merge leaves the grid",
    r"variant combination: \('use_bdlora',\)": "BD-LoRA is a layout for serving unmerged",
    r"variant combination: \('velora_config',\)": "VeLoRA has a backward pass of its own",
    r"variant combination: \('kasa_config',\)": "KaSA truncates the base weight",
    r"variant combination: \('monteclora_config',\)": "MonteCLoRA samples its weights in a forward pass of its own",
    r"variant combination: \('mica',\)": "MiCA starts from the base weight's singular vectors",
    r"a (\w*Embedding|Conv[123]d|MultiheadAttention|GRU|LSTM|MyModule): SQFT adapts linear layers only": "not linear",
    r"(?i)init_lora_weights='(pissa\w*|olora|corda|loftq|lora_ga)' changes the base weight": "changes the base weight",
    r"target_parameters=.* is not supported": "adapts bare parameters, not linear layers",
    r"custom modules \(_register_custom_module\) are not supported": "replaces our layer by another",
    r"SQFT'? is not .*(`PeftMixedModel`|mixed models)": "PEFT's list of types that mix with other tuners is closed",
    r"bias='invalid' is not what it takes": "PEFT has the same refusal in other words, and later",
    r"mamba reads that weight itself, past any adapter": "PEFT has the same refusal in other words",
}

_NAME = "asserts the name LORA, LoraModel or lora.Linear, where ours say SQFT"
_NO_LORA = "a masked delta has full rank: there is no LoRA for it to become"
_HOOKS = "expects the error of hooks on lora_A, a module whose weight ours reads without calling it"
_INTRUDERS = "PEFT mitigates intruders of the type LORA alone"
_THRESHOLD = "its thresholds are tuned to unmasked deltas"

LEFT_OUT = {
    "test_custom_models.py::TestLayerRepr::test_repr_lora_linear": _NAME,
    "test_custom_models.py::TestLayerRepr::test_repr_lora_conv1d": _NAME,
    "test_initialization.py::TestLoraInitialization::test_modules_to_save_targets_lora_layer_raises": _NAME,
    "test_initialization.py::TestHotSwapping::test_hotswap_different_peft_types_raises": _NAME,
    "test_tuners_utils.py::TestModelAndLayerStatus::test_module_type_small": _NAME,
    "test_tuners_utils.py::TestModelAndLayerStatus::test_adapter_model_type_small": _NAME,
    "test_tuners_utils.py::TestModelAndLayerStatus::test_peft_types_small": _NAME,
    "test_tuners_utils.py::TestModelAndLayerStatus::test_model_status_with_modules_to_save": _NAME,
    "test_tuners_utils.py::TestModelAndLayerStatus::test_model_status_with_trainable_tokens": _NAME,
    "test_helpers.py::TestDisableInputDtypeCasting::test_no_disable_input_dtype_casting": _HOOKS,
    "test_helpers.py::TestDisableInputDtypeCasting::test_disable_input_dtype_casting_inactive": _HOOKS,
    "test_helpers.py::TestDisableInputDtypeCasting::test_disable_input_dtype_casting_inactive_after_existing_context": (
        _HOOKS
    ),
    "test_lora_intruders.py::TestLoraIntruders::test_lora_intruders_linear": _INTRUDERS,
    "test_lora_intruders.py::TestLoraIntruders::test_lora_intruders_linear_bf16_no_autocast": _INTRUDERS,
    "test_hub_features.py::TestModelCard::test_model_card_has_expected_tags": (
        "expects the tag `lora`, which promises the hub a plain LoRA: ours is `sqft`"
    ),
    "test_initialization.py::TestHotSwapping::test_hotswap_works_different_ranks_alphas": (
        "swaps in an adapter of fewer modules, whose mask hash is another"
    ),
    "test_lora_conversion.py::TestLoraConversion::test_fixed_rank_lora_config": _NO_LORA,
    "test_lora_conversion.py::TestLoraConversion::test_converted_lora_to_lora_works_and_warns": _NO_LORA,
    "test_initialization.py::TestLoadPeftKeyMapping::test_key_mapping_save_old_load_new_lora": (
        "renames the base's modules, whose names are in the mask hash"
    ),
    "test_low_level_api.py::TestStateDictFsdpShapeValidation::test_save_pretrained_warns_for_unsharded_state_dict": (
        "PEFT looks for shards in its own types only"
    ),
    "test_custom_models.py::TestPeftCustomModel::test_add_weighted_adapter_with_different_scaling"
    "[ties-0.4-1.0-weights4]": _THRESHOLD,
    "test_custom_models.py::TestPeftCustomModel::test_add_weighted_adapter_with_different_scaling"
    "[dare_linear-0.2-None-weights4]": _THRESHOLD,
    "test_custom_models.py::TestPeftCustomModel::test_add_weighted_adapter_with_different_scaling"
    "[magnitude_prune-0.55-1.0-weights4]": _THRESHOLD,
}

TOLERANCES = {
    "test_custom_models.py::TestPeftFsdpStateDict::test_save_load_roundtrip_fsdp_wrapped_learnable_bias"
    "[bias_all-Vanilla MLP 1 LoRA with lora_b bias-MLP-LoraConfig-config_kwargs35]": (
        1e-4,
        "under FSDP the delta is a GEMM of its own: sums in another order, some 1e-5 of a log-probability of 3",
    ),
}

_DEAD = "so small a layer with half of its weights zero passes no gradient on"
_PACKAGE = "asserts the name of upstream's own package"
_SCIPY = "needs scipy"
_SIZE = "needs the size of the hub's opt-125m"

FAIL_FOR_LORA = {
    "test_custom_models.py::TestPeftCustomModel::test_only_params_are_updated"
    "[Embedding + transformers Conv1D 2 LoRA-EmbConv1D-LoraConfig-config_kwargs15]": _DEAD,
    "test_custom_models.py::TestPeftCustomModel::test_only_params_are_updated"
    "[Embedding + transformers Conv1D 1 LoRA trainable_tokens-EmbConv1D-LoraConfig-config_kwargs20]": _DEAD,
    "test_custom_models.py::TestDynamicDispatch::test_custom_lora_layer_issues_warning": _PACKAGE,
    "test_decoder_models.py::TestDecoderModels::test_lora_conversion"
    "[LoraConfig-config_kwargs0-peft-internal-testing/tiny-dummy-qwen2]": "its bound fits the hub's weights",
    "test_initialization.py::TestLoraInitialization::test_lora_with_bias_incompatible_arguments[extra_kwargs3]": _SCIPY,
    "test_trainable_tokens.py::TestTrainableTokens::test_weight_tying_applied_when_model_is_tied": _SIZE,
    "test_trainable_tokens.py::TestTrainableTokens::test_weight_tying_applied_when_model_is_tied_encoder_decoder": (
        "divides by the embedding of the pad token, which is zero in an untrained model"
    ),
    "test_trainable_tokens.py::TestTrainableTokens::test_save_pretrained_auto[peft_config0-True]": _SIZE,
}
if newer_peft_wanted() is not None:
    FAIL_FOR_LORA |= dict.fromkeys(
        [
            "test_helpers.py::TestScalingAdapters::test_transformers_pipeline",
            "test_low_level_api.py::TestInjectAdapterFromStateDict::test_inject_from_state_dict_transformers",
            "test_low_level_api.py::TestInjectAdapterFromStateDict"
            "::test_inject_from_state_dict_transformers_irregular_targets",
            "test_low_level_api.py::TestInjectAdapterFromStateDict::test_inject_from_state_dict_compiled_model",
            "test_initialization.py::TestNamingConflictWarning::test_no_warning_without_naming_conflict_save_and_load",
            "test_initialization.py::TestNamingConflictWarning::test_warning_naming_conflict_save_and_load",
        ],
        f"the adapter calls of this transformers want PEFT {newer_peft_wanted()} or newer",
    )

_COMPILE = "compiles with inductor, 5 to 65 s"

SLOW = {
    "test_initialization.py::TestHotSwapping::test_hotswap_works[True-config0]": _COMPILE,
    "test_initialization.py::TestHotSwapping::test_hotswap_works[True-config1]": _COMPILE,
}
