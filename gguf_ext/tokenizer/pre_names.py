"""Which names of pre-tokenizers mean the same to llama.cpp 0.3.36 (llama-vocab.cpp, `load` and `llm_tokenizer_bpe`).

Converters choose a name by the model, this package by the expressions: a StarCoder file says `starcoder`, ours of the
same tokenizer `smollm`. Two names are one where the expressions are, and where a word of the vocabulary skips the
merges under both or neither. Whether a text begins with `bos` where no key says so differs too, see `adds_bos`.
"""

from __future__ import annotations

SKIPS = frozenset({
    "minicpm5", "llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2",
    "jina-v5-nano", "youtu", "glm4", "glm5", "tekken", "granite-embed-multi-97m",
})  # fmt: skip
"""Names under which a whole word of the vocabulary needs no merges."""
BEGINS = frozenset({
    "llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano", "tekken",
    "chameleon",
})  # fmt: skip
"""Names under which `bos` is put in front of a text where `add_bos_token` is missing."""
ALIKE = (
    SKIPS - {"minicpm5", "youtu", "tekken", "granite-embed-multi-97m"} | {"dbrx", "smaug-bpe", "chatglm-bpe"},
    {"deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"},
    {"starcoder", "refact", "command-r", "smollm", "codeshell", "exaone", "minerva-7b", "mellum2"},
    {"gpt-2", "phi-2", "jina-es", "jina-de", "gigachat", "jina-v2-es", "jina-v2-de", "a.x-4.0", "mellum", "modern-bert",
     "exaone4", "mpt", "olmo", "jais", "trillion", "granite-docling", "jina-v1-en", "jina-v2-code", "roberta-bpe"},
    {"stablelm2", "qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "megrez", "hunyuan", "solar-open", "grok-2"},
    {"poro-chat", "bloom", "gpt3-finnish"},
    {"gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"},
    {"tiny_aya", "cohere2moe"},
    {"bailingmoe", "bailingmoe2", "llada-moe"},
    {"default", ""},
)  # fmt: skip
"""Sets of names with the same expressions; a name in none stands alone."""


def cuts_alike(one: str, other: str) -> bool:
    """Whether llama.cpp cuts texts alike under both names."""
    expressions = any(one in names and other in names for names in ALIKE)
    return one == other or (expressions and (one in SKIPS) == (other in SKIPS))


def adds_bos(model: str, pre: str) -> bool:
    """Whether llama.cpp puts `bos` in front of a text where the file does not say."""
    return model == "llama" or pre in BEGINS
