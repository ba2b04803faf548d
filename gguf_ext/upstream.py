"""What this package touches in llama-cpp-python, gguf and transformers beyond what they document, and what breaks where
it moves. Imports nothing of theirs; what the sources show by themselves is found there."""

from __future__ import annotations

from sqft_plugins.plugins.protocols import Touch, Upstream, touches

RUN = "no GGUF file can be run"
LOG = "llama.cpp's log is printed, and its errors have no reason"
SWITCHED = "adapters cannot be switched between requests"
CHAT = "a chat is not rendered as transformers renders it"
EXPORT = "no GGUF file can be written"

QUANTIZED = "no GGUF file can be quantized by llama.cpp"

FUNCTIONS = {
    "adapter_lora_free": "adapter",
    "adapter_lora_init": "model, path_lora",
    "backend_init": "",
    "batch_free": "batch",
    "batch_get_one": "tokens, n_tokens",
    "batch_init": "n_tokens, embd, n_seq_max",
    "context_default_params": "",
    "decode": "ctx, batch",
    "free": "ctx",
    "get_logits": "ctx",
    "get_memory": "ctx",
    "init_from_model": "model, params",
    "log_set": "log_callback, user_data",
    "memory_clear": "mem, data",
    "memory_seq_cp": "mem, seq_id_src, seq_id_dst, p0, p1",
    "memory_seq_rm": "mem, seq_id, p0, p1",
    "model_default_params": "",
    "model_free": "model",
    "model_get_vocab": "model",
    "model_load_from_file": "path_model, params",
    "model_load_from_file_ptr": "file, params",
    "model_quantize": "fname_inp, fname_out, params",
    "model_quantize_default_params": "",
    "print_system_info": "",
    "set_adapters_lora": "ctx, adapters, n_adapters, scales",
    "token_to_piece": "vocab, token, buf, length, lstrip, special",
    "tokenize": "vocab, text, text_len, tokens, n_tokens_max, add_special, parse_special",
    "vocab_is_eog": "vocab, token",
    "vocab_n_tokens": "vocab",
}
"""llama.cpp's C functions without `llama_` → parameters: a wrong call ends the process."""

LLAMA = (
    *(Touch(f"llama_cpp.llama_{name}", RUN, parameters) for name, parameters in FUNCTIONS.items()),
    *touches(RUN, "llama_adapter_lora_p_ctypes", "llama_token", "llama_log_callback", owner="llama_cpp"),
    Touch("llama_cpp.llama_cpp.llama_model_params", RUN, says=("vocab_only", "n_gpu_layers", "load_mode")),
    Touch(
        "llama_cpp.llama_cpp.llama_context_params", RUN,
        says=(
            "n_ctx", "n_batch", "n_ubatch", "n_seq_max", "n_threads", "n_threads_batch", "type_k", "type_v",
            "flash_attn_type", "kv_unified",
        ),
    ),
    Touch("llama_cpp.llama_cpp.llama_batch", RUN, says=("n_tokens", "token", "pos", "n_seq_id", "seq_id", "logits")),
    Touch(
        "llama_cpp.llama_cpp.llama_model_quantize_params", QUANTIZED,
        says=("nthread", "ftype", "imatrix", "kv_overrides"),
    ),
    Touch("llama_cpp.llama_cpp.llama_model_imatrix_data", QUANTIZED, says=("name", "data", "size")),
    Touch("llama_cpp.llama_cpp.llama_model_kv_override", QUANTIZED, says=("tag", "key", "value")),

    # its Python side
    Touch("llama_cpp.llama_cpp", "no compact GGUF file can be opened by gguf_ext.load"),
    *touches(LOG, "_logger", "_logger.llama_log_callback", "_logger.logger", owner="llama_cpp"),
    *touches(SWITCHED, "llama_cache", owner="llama_cpp"),
    *touches(SWITCHED, "_ctx", "_stack", "ctx", "model", "n_tokens", "context_params", owner="llama_cpp.Llama"),
    Touch("llama_cpp._internals.LlamaContext.kv_cache_clear", SWITCHED, "self"),
    *touches(CHAT, "llama_chat_format", "llama_tokenizer", owner="llama_cpp"),
    *touches(CHAT, "chat_handler", "chat_format", "_chat_handlers", "tokenizer_", "metadata", owner="llama_cpp.Llama"),
    *touches(CHAT, "_model", owner="llama_cpp.llama_tokenizer.LlamaTokenizer"),
    *touches(CHAT, "vocab", "token_bos", owner="llama_cpp._internals.LlamaModel"),
)  # fmt: skip

GGUF = (
    *touches(
        EXPORT, "MODEL_ARCH_NAMES", "get_tensor_name_map", "GGUFWriter", "GGUFValueType", "GGMLQuantizationType",
        "GGML_QUANT_SIZES", "quants.quantize", "quants.dequantize", owner="gguf",
    ),
)  # fmt: skip

TRANSFORMERS = (
    *touches("a saved class is not known", "models.auto.modeling_auto", owner="transformers"),
    *touches(CHAT, "utils.chat_template_utils", owner="transformers"),
    Touch("transformers.utils.chat_template_utils._compile_jinja_template", CHAT, "chat_template"),
    Touch(
        "transformers.integrations.peft.PeftAdapterMixin._hf_peft_config_loaded",
        "a model that still holds an adapter is exported without it",
    ),
)  # fmt: skip

UPSTREAM = Upstream(
    code="gguf_ext",
    seen={"llama_cpp": ">=0.3.36,<0.4", "gguf": ">=0.19,<0.20", "transformers": ">=5.16.1,<5.25"},
    touches=(*LLAMA, *GGUF, *TRANSFORMERS),
)
