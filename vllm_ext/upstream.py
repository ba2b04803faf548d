"""What this package touches in vLLM beyond what vLLM documents, and what breaks where it moves.

The sources show the replaced methods, the overridden ones, and the attributes of annotated objects; `python -m
sqft_plugins.canary` finds those by itself. Here stand the modules that are imported, with what is lost without them,
and what objects have whose class the sources do not tell. Imports nothing of vLLM.
"""

from __future__ import annotations

from sqft_plugins.plugins.protocols import Touch, Upstream, touches

FOLDERS = "INT4 folders of ours are not served, or as dense INT4"
COMPACT = "compact folders are refused"
ADAPTERS = "no adapter can be served at a rank"
NAMES = "adapters are not found by name"
ENGINE = "an adapter that cannot be loaded, or is replaced while requests run, ends the engine"
SPOILED = "a NaN may spoil later answers"
CPU = "LoRA on the CPU stays slow, and wrong for requests without an adapter beside others with one"
PLANES = "quantization-aware adapters are refused"

MODULES = (
    *touches(
        FOLDERS, "config", "logger", "scalar_type", "model_executor.layers.attention", "model_executor.layers.linear",
        "model_executor.layers.quantization", "model_executor.layers.quantization.base_config",
        "model_executor.layers.quantization.compressed_tensors.compressed_tensors",
        "model_executor.layers.quantization.compressed_tensors.schemes", "model_executor.kernels.linear",
        "model_executor.kernels.linear.mixed_precision.cpu", "model_executor.parameter", owner="vllm",
    ),
    *touches(COMPACT, "model_executor.model_loader.default_loader", owner="vllm"),
    *touches(
        ADAPTERS, "platforms", "lora.layers", "lora.lora_model", "lora.lora_weights", "lora.peft_helper",
        "lora.request", "lora.utils", "lora.worker_manager", "model_executor.models.utils", owner="vllm",
    ),
    *touches(
        NAMES, "exceptions", "engine.protocol", "entrypoints.openai.models.protocol",
        "entrypoints.openai.models.serving", "entrypoints.serve", "entrypoints.serve.engine.protocol",
        "entrypoints.serve.engine.serving", "entrypoints.serve.lora.protocol", "lora.resolver", "v1.engine.exceptions",
        "v1.engine.input_processor", owner="vllm",
    ),
    *touches(
        ENGINE, "distributed", "outputs", "entrypoints.generate.base.serving", "v1.core.sched.output",
        "v1.core.sched.scheduler", "v1.engine", "v1.engine.output_processor", "v1.outputs", "v1.request",
        "v1.worker.gpu_worker", owner="vllm",
    ),
    *touches(SPOILED, "v1.kv_cache_interface", "v1.worker.cpu_model_runner", owner="vllm"),
    *touches(
        CPU, "lora.model_manager", "lora.punica_wrapper.punica_cpu", "v1.worker.gpu_model_runner", owner="vllm",
    ),
)  # fmt: skip

OBJECTS = (
    # layers and their quantization
    *touches(
        FOLDERS, "input_size", "tp_rank", "tp_size", "params_dtype", "quant_method",
        owner="vllm.model_executor.layers.linear.LinearBase",
    ),
    *touches(
        FOLDERS, "input_size_per_partition", "output_partition_sizes", "weight_loader_v2",
        owner="vllm.model_executor.layers.linear.ColumnParallelLinear",
    ),
    Touch(
        "vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors.CompressedTensorsConfig"
        ".get_quant_method", FOLDERS, "self, layer, prefix", says=("layer.scheme = ",),
    ),
    *touches(
        FOLDERS, "num_bits", "group_size", "symmetric",
        owner="vllm.model_executor.layers.quantization.compressed_tensors.schemes.CompressedTensorsWNA16",
    ),
    Touch(
        "vllm.model_executor.layers.quantization.compressed_tensors.schemes.CompressedTensorsWNA16.create_weights",
        FOLDERS, says=('"weight_packed"', '"weight_scale"', '"weight_shape"', '"weight_zero_point"'),
    ),
    *touches(
        FOLDERS, "packed_modules_mapping",
        owner="vllm.model_executor.layers.quantization.base_config.QuantizationConfig",
    ),
    *touches(FOLDERS, "apply_dict", "get_rename_mapper", owner="vllm.model_executor.models.utils.WeightsMapper"),
    *touches(
        FOLDERS, "process_weights_after_loading", "apply_weights",
        owner="vllm.model_executor.kernels.linear.mixed_precision.MPLinearKernel.MPLinearKernel",
    ),
    *touches(
        FOLDERS, "full_weight_shape", "partition_weight_shape", "weight_type", "act_type", "group_size", "zero_points",
        owner="vllm.model_executor.kernels.linear.MPLinearLayerConfig",
    ),
    Touch("vllm.model_executor.kernels.linear.mixed_precision.cpu", FOLDERS, says=("use_w4a8",)),
    Touch("vllm._custom_ops", "without an INT4 kernel the first request ends", says=("torch.ops._C.cpu_gemm_wna16",)),
    *touches(FOLDERS, "additional_config", "lora_config", "compilation_config", owner="vllm.config.VllmConfig"),
    *touches(COMPACT, "quantization", "model", owner="vllm.config.ModelConfig"),
    *touches(PLANES, "mode", "cudagraph_mode", "static_forward_context", owner="vllm.config.CompilationConfig"),

    # LoRA in the worker
    *touches(
        ADAPTERS, "_adapter_manager", "lora_config", "list_adapters", "remove_adapter",
        owner="vllm.lora.worker_manager.WorkerLoRAManager",
    ),
    *touches(
        ADAPTERS, "model", "modules", "packed_modules", "list_adapters", "capacity", "lora_slots", "add_adapter",
        "activate_adapter", "lora_index_to_id", "punica_wrapper_mapping", "__len__",
        owner="vllm.lora.model_manager.LoRAModelManager",
    ),
    *touches(ENGINE, "remove_oldest_adapter", owner="vllm.lora.model_manager.LRUCacheLoRAModelManager"),
    *touches(CPU, "indices_len", "token_lora_indices", "sampler_indices",
             owner="vllm.lora.punica_wrapper.punica_base.PunicaWrapperBase"),
    *touches(ADAPTERS, "loras", owner="vllm.lora.lora_model.LoRAModel"),
    *touches(ADAPTERS, "lora_a", "lora_b", owner="vllm.lora.lora_weights.LoRALayerWeights"),
    *touches(ADAPTERS, "from_dict", "validate_legal", owner="vllm.lora.peft_helper.PEFTHelper"),
    Touch("vllm.lora.utils.parse_fine_tuned_lora_name", ADAPTERS, "name, weights_mapper=, ..."),
    *touches(ADAPTERS, "hidden_size", owner="vllm.lora.layers.LogitsProcessorWithLoRA"),
    *touches(
        ADAPTERS, "total_num_heads", "total_num_kv_heads", "head_size", "v_head_size", "output_sizes",
        owner="vllm.model_executor.layers.linear.QKVParallelLinear",
    ),
    *touches(
        ADAPTERS, "org_vocab_size", "embedding_dim",
        owner="vllm.model_executor.layers.vocab_parallel_embedding.VocabParallelEmbedding",
    ),
    *touches(ENGINE, "model_runner", owner="vllm.v1.worker.gpu_worker.Worker"),
    *touches(ENGINE, "lora_manager", owner="vllm.v1.worker.gpu_model_runner.GPUModelRunner"),

    # the engine core
    *touches(ENGINE, "get_block_ids", "evict_blocks", "coordinator",
             owner="vllm.v1.core.kv_cache_manager.KVCacheManager"),
    *touches(
        ENGINE, "request_id", "lora_request", "take_events", "trace_headers", "client_index",
        owner="vllm.v1.request.Request",
    ),
    *touches(ENGINE, "world_size", "cpu_group", owner="vllm.distributed.parallel_state.GroupCoordinator"),
    *touches(SPOILED, "single_type_managers", owner="vllm.v1.core.kv_cache_coordinator.KVCacheCoordinator"),
    *touches(
        SPOILED, "_record_new_block_ids", "kv_cache_spec",
        owner="vllm.v1.core.single_type_kv_cache_manager.SingleTypeKVCacheManager",
    ),
    *touches(SPOILED, "kv_cache_spec", "layer_names", owner="vllm.v1.kv_cache_interface.KVCacheGroupSpec"),

    # the API server
    *touches(
        NAMES, "lora_id_counter", "base_model_paths", "lora_requests", "lora_resolvers", "lora_resolver_lock",
        "engine_client", "model_config", owner="vllm.entrypoints.openai.models.serving.OpenAIServingModels",
    ),
    *touches(NAMES, "_get_message_types", "models", owner="vllm.entrypoints.serve.engine.serving.BaseServing"),
    *touches(NAMES, "resolvers", "register_resolver", owner="vllm.lora.resolver.LoRAResolverRegistry"),
)  # fmt: skip

HEARD = (
    Touch(
        "vllm.entrypoints.openai.models.serving.OpenAIServingModels.load_lora_adapter", ADAPTERS,
        "self, request, base_model_name",
    ),
    Touch("vllm.v1.engine.input_processor.InputProcessor._validate_lora", ADAPTERS, "self, lora_request"),
    Touch("vllm.v1.core.sched.scheduler.Scheduler.add_request", ADAPTERS, "self, request"),
    Touch("vllm.lora.worker_manager.WorkerLoRAManager.set_active_adapters", PLANES, "self, requests, mapping"),
    Touch("vllm.lora.worker_manager.WorkerLoRAManager._load_adapter", ADAPTERS, "self, lora_request"),
)  # fmt: skip
"""The places of listeners.py: there an adapter of ours is met in an engine that knew nothing of it."""

STARTED = (
    Touch(
        "vllm.envs", "`sqft serve` sets or reads variables that vLLM does not know",
        says=("VLLM_PLUGINS", "VLLM_API_KEY", "VLLM_CPU_INT4_W4A8", "VLLM_ALLOW_RUNTIME_LORA_UPDATING",
              "VLLM_SKIP_MODEL_NAME_VALIDATION", "VLLM_RPC_BASE_PATH", "VLLM_USE_V2_MODEL_RUNNER"),
    ),
    *touches("`sqft serve` does not start", "entrypoints.cli.main", "entrypoints.openai.api_server", owner="vllm"),
    Touch("vllm.plugins", "vLLM does not load this plug-in", says=("vllm.general_plugins",)),
)  # fmt: skip

UPSTREAM = Upstream(
    code="vllm_ext",
    seen={"vllm": ">=0.32,<0.34", "model_hosting_container_standards": ">=0.1.16,<0.2"},
    touches=(*MODULES, *OBJECTS, *HEARD, *STARTED),
    public=("model_hosting_container_standards",),
)
