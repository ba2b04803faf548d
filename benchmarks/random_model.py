"""Random Llamas of any size as folders, float and INT4, written with one tensor in memory."""

from __future__ import annotations

from pathlib import Path
from pydoc_data.topics import topics

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from sqft_plugins.checkpoint.shards import ShardFile, TensorSpec
from sqft_plugins.compress.quantize import quantize_folder


def write_model(path: Path, layers: int, *, tied: bool = True, sparse: bool = True, **size: int) -> int:
    """A random Llama in bf16 → its number of parameters.

    tied: whether the embedding is the output head, too. sparse: every second weight of a linear is 0. size:
    hidden_size, intermediate_size, num_attention_heads, and whatever else a LlamaConfig has.
    """
    config = LlamaConfig(
        **{"vocab_size": 32000, "num_key_value_heads": size["num_attention_heads"], **size},
        num_hidden_layers=layers, tie_word_embeddings=tied, max_position_embeddings=2048,
        bos_token_id=1, eos_token_id=2, pad_token_id=0, dtype="bfloat16", architectures=["LlamaForCausalLM"],
    )  # fmt: skip
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config)
    config.save_pretrained(path)
    specs = {name: TensorSpec(torch.bfloat16, tuple(p.shape)) for name, p in skeleton.named_parameters()}
    shard = ShardFile(path / "model.safetensors", specs)
    generator = torch.Generator().manual_seed(0)
    for name, spec in specs.items():
        norm = len(spec.shape) == 1
        tensor = torch.ones(spec.shape) if norm else torch.randn(spec.shape, generator=generator) * 0.02
        if sparse and "_proj" in name:
            tensor[:, ::2] = 0
        shard.write(name, tensor.to(torch.bfloat16))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=2000, special_tokens=["<pad>", "<bos>", "<eos>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(sorted(topics.values())[:20], trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>").save_pretrained(path)
    return sum(spec.nbytes // 2 for spec in specs.values())


def write_int4_model(source: Path, target: Path, group_size: int = 32) -> None:
    """`source` rounded to nearest on the symmetric INT4 grid; its zeros are the mask."""
    quantize_folder(source, target, group_size=group_size)
