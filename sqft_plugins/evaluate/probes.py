"""Behaviours of transformers that evaluation relies on, tried out. Each returns why it does not hold, or None."""

from __future__ import annotations

import torch

from sqft_plugins.key_values import cache_in


def cache_is_named() -> str | None:
    """Whether the keys and values in the output of a model go back into it, and are used there."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 1, "num_key_value_heads": 1}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        # weights so wide that the tokens before the last one show in its logits
        model = LlamaForCausalLM(LlamaConfig(**shape, **heads, initializer_range=1.0)).eval()  # type: ignore[arg-type]

    tokens = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        output = model(input_ids=tokens[:, :2], use_cache=True)
        cache = cache_in(output)
        if not cache:
            return f"it has {', '.join(output)}"
        last = model(input_ids=tokens[:, 2:], **cache).logits[0, -1]
        whole = model(input_ids=tokens).logits[0, -1]
    return (
        None if torch.allclose(last, whole, atol=1e-4) else f"the model computes otherwise with its {', '.join(cache)}"
    )
