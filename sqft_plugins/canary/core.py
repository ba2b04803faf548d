"""What the core touches in transformers, torch, compressed-tensors, accelerate and lm-eval beyond what they document,
and what breaks where it moves. Imports nothing of theirs; what the sources show by themselves is found there."""

from __future__ import annotations

from sqft_plugins.plugins.protocols import Probe, Touch, Upstream, touches

LAYERS = "linear layers are not recognised"
INT4 = "INT4 folders cannot be written, or are read otherwise than transformers reads them"
FAST = "`accelerate` replaces a layer that does more than it seems, or none"
BLOCKS = "compression cannot load a model block by block"
TRAIN = "`sqft train` runs otherwise than it was measured"
EVAL = "an evaluation is not judged as lm-eval judges it"
NAMES = "compression refuses a family whose files name its weights otherwise than transformers does"
DTYPE = "the fast dtype of this machine cannot be told"

TOUCHES = (
    # transformers
    *touches(LAYERS, "pytorch_utils", "pytorch_utils.Conv1D", owner="transformers"),
    *touches("progress bars of transformers stay on", "utils.logging", owner="transformers"),
    *touches(TRAIN, "integrations.integration_utils", owner="transformers"),
    *touches(TRAIN, "_n_gpu", "n_gpu", owner="transformers.training_args.TrainingArguments"),
    Touch("transformers.trainer.Trainer._get_train_sampler", TRAIN, "self, ..."),
    Touch(
        "transformers.trainer.Trainer.compute_loss", TRAIN, "self, model, inputs, return_outputs, num_items_in_batch",
    ),
    Touch("transformers.configuration_utils.PreTrainedConfig.name_or_path", INT4),
    *touches(NAMES, "conversion_mapping", "core_model_loading", owner="transformers"),
    Touch("transformers.conversion_mapping.get_model_conversion_mapping", NAMES, "model, ..."),
    Touch(
        "transformers.core_model_loading.rename_source_key", NAMES,
        "source_key, weight_renamings, weight_converters, base_model_prefix=, meta_state_dict=, ...",
    ),
    Touch(
        "transformers.core_model_loading.WeightConverter.convert", NAMES, "self, layer_name, model=, config=, ...",
    ),
    *touches(NAMES, "add_tensor", "reverse_transform", owner="transformers.core_model_loading.WeightConverter"),
    *touches(
        NAMES, "Concatenate", "MergeModulelist", "Transpose", "WeightRenaming", "dot_natural_key",
        owner="transformers.core_model_loading",
    ),

    *touches(
        "experts of mixtures count as weights that are not reached, or are read in another order",
        "use_experts_implementation", "_default_apply_gate", owner="transformers.integrations.moe",
    ),
    Touch(
        "transformers.models.gpt_oss.modeling_gpt_oss.GptOssExperts._apply_gate",
        "experts of mixtures cannot be pruned and quantized by their inputs", "self, gate_up",
    ),

    # torch
    *touches(
        FAST, "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_apply", "_save_to_state_dict",
        owner="torch.nn.Module",
    ),
    *touches(BLOCKS, "_parameters", "_buffers", "register_parameter", owner="torch.nn.Module"),
    *touches(LAYERS, "_ConvNd", owner="torch.nn.modules.conv"),
    *touches("a Hessian that was changed is taken for the same", "_version", owner="torch.Tensor"),
    *touches(DTYPE, "_is_amx_tile_supported", owner="torch.cpu"),

    # compressed-tensors
    *touches(INT4, "compressors.pack_quantized.helpers", "quantization", owner="compressed_tensors"),
    Touch(
        "compressed_tensors.compressors.pack_quantized.helpers.pack_to_int32", INT4,
        "value, num_bits, packed_dim=, ...",
    ),
    Touch(
        "compressed_tensors.compressors.pack_quantized.base", INT4,
        says=('"weight_packed"', '"weight_scale"', '"weight_zero_point"', '"weight_shape"'),
    ),
    *touches(INT4, "DECOMPRESSED", owner="compressed_tensors.quantization.QuantizationStatus"),
    *touches(INT4, "config_groups", "ignore", "format", owner="compressed_tensors.quantization.QuantizationConfig"),

    # accelerate
    Touch("accelerate.hooks.add_hook_to_module", FAST, says=("_hf_hook",)),

    # lm-eval
    *touches(EVAL, "_metric_fn_list", "multiple_input", "eval_docs", owner="lm_eval.api.task.ConfigurableTask"),
)  # fmt: skip

CACHE = "options and long texts are not scored, and a generating adapter looks at the whole base for every token"
RESTORED = "checkpoint/restore.py takes both from the folder"
PROBES = (
    Probe(
        "an INT4 folder that transformers has read gets its grid and its exact weights", INT4,
        "sqft_plugins.canary.probes:int4_is_restored", ("transformers", "compressed_tensors"),
    ),
    Probe(
        "transformers reads an INT4 folder to the floats that its codes and scales are", INT4,
        "sqft_plugins.canary.probes:int4_is_read_exactly", ("transformers", "compressed_tensors"), copes=RESTORED,
    ),
    Probe(
        "a layer that transformers dequantized keeps its `weight_scale`", INT4,
        "sqft_plugins.canary.probes:int4_keeps_its_scale", ("transformers", "compressed_tensors"), copes=RESTORED,
    ),
    Probe(
        "the output of a forward has one of the names of the cache that we know", CACHE,
        "sqft_plugins.evaluate.probes:cache_is_named", ("transformers",),
    ),
)  # fmt: skip

UPSTREAM = Upstream(
    code="sqft_plugins",
    seen={
        "transformers": ">=5.16.1,<5.25", "torch": ">=2.10,<2.16", "compressed_tensors": ">=0.15,<0.21",
        "accelerate": ">=1.10,<1.16", "lm_eval": ">=0.4.13,<0.5", "huggingface_hub": ">=1,<2.5",
    },
    touches=TOUCHES,
    probes=PROBES,
    public=("torch", "huggingface_hub", "lm_eval"),
)  # fmt: skip
