"""Adapters on the output head and the embedding: in a mixed batch everyone gets the numbers of its own adapter."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
import torch
from helpers_adapters import write_adapter
from safetensors.torch import load_file, save_file

pytest.importorskip("vllm", reason="vLLM is not installed")

from vllm import SamplingParams

from vllm_ext.adapters import lora_request

pytestmark = pytest.mark.vllm
LORA = {"enable_lora": True, "max_loras": 4, "max_lora_rank": 16, "max_cpu_loras": 4, "block_size": 32}
VOCABULARY = 640
HEAD, EMBEDDING = "lm_head", "model.embed_tokens"
ATTENTION = {f"model.layers.{layer}.self_attn.q_proj": (128, 128) for layer in (0, 1)}
NAMES = [None, "head@r16", "body@r8", "head@r4", "plain", None, "plain"]
"""A batch: the base, an elastic adapter of the head at two ranks, one that leaves the head alone, a LoRA of the head
and of the embedding; the base and that one twice."""
PROMPTS = [[2, *(7 * n + k * k % 97 for k in range(5 + 4 * n))] for n in range(len(NAMES))]


@pytest.fixture(scope="module")
def adapters(tiny_float, tmp_path_factory):
    """(base, folder of the adapters)."""
    base, root = tiny_float("llama"), tmp_path_factory.mktemp("heads")
    write_adapter(root / "head", {HEAD: (128, VOCABULARY), **ATTENTION}, r=16, choices=(16, 8, 4), seed=1)
    write_adapter(root / "body", ATTENTION, r=16, choices=(16, 8, 4), seed=2)
    write_adapter(root / "plain", {HEAD: (128, VOCABULARY), **ATTENTION}, r=8, choices=None, peft_type="LORA", seed=3)
    with_embedding(root / "plain")
    return base, root


def with_embedding(folder) -> None:
    """Adds a LoRA of the embedding, as PEFT saves it."""
    file, generator = folder / "adapter_model.safetensors", torch.Generator().manual_seed(5)
    tensors = load_file(file)
    name = f"base_model.model.{EMBEDDING}.lora_embedding_"
    tensors[f"{name}A"] = torch.randn(8, VOCABULARY, generator=generator)
    tensors[f"{name}B"] = torch.randn(128, 8, generator=generator) * 0.05
    save_file(tensors, file)
    config = json.loads((folder / "adapter_config.json").read_text())
    config["target_modules"] = [*config["target_modules"], "embed_tokens"]
    (folder / "adapter_config.json").write_text(json.dumps(config))


def requests(root):
    return [lora_request(root / name) if name else None for name in NAMES]


def numbers(llm, prompts, loras, **sampling):
    """For each request the prompt's scores, and for each of its answers the tokens with their scores."""
    params = SamplingParams(temperature=0, max_tokens=3, logprobs=5, ignore_eos=True, **sampling)
    outputs = llm.generate(
        [{"prompt_token_ids": prompt} for prompt in prompts], params, lora_request=loras, use_tqdm=False
    )
    return [
        (
            [{token: entry.logprob for token, entry in step.items()} for step in (output.prompt_logprobs or [])[1:]],
            [
                (list(answer.token_ids), [{t: e.logprob for t, e in step.items()} for step in answer.logprobs])
                for answer in output.outputs
            ],
        )
        for output in outputs
    ]


def assert_equal(ours, expected) -> None:
    for number, ((prompt, answers), (other_prompt, other_answers)) in enumerate(zip(ours, expected, strict=True)):
        for step, other in zip(prompt, other_prompt, strict=True):
            assert step == pytest.approx(other, abs=2e-4), (number, NAMES[number])
        for (tokens, scores), (other_tokens, other_scores) in zip(answers, other_answers, strict=True):
            assert tokens == other_tokens, (number, NAMES[number])
            for step, other in zip(scores, other_scores, strict=True):
                assert step == pytest.approx(other, abs=2e-4), (number, NAMES[number])


def reference(base, root, name, prompt):
    """The log-probabilities [tokens - 1, vocabulary] that transformers and PEFT give the tokens of the prompt."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from sqft_plugins.tune.extract import extract_adapter

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if name is not None:
        folder, _, rank = name.partition("@")
        extracted = root.parent / f"{root.name}-extracted" / (rank or "plain") / folder
        if rank and not extracted.exists():
            extract_adapter(root / folder, extracted, rank)
        model = PeftModel.from_pretrained(model, str(extracted if rank else root / folder))
    with torch.no_grad():
        return model(torch.tensor([prompt])).logits[0, :-1].log_softmax(-1)


CASES = {
    "scores of the answer": ({}, {}),
    "scores of the prompt": ({}, {"prompt_logprobs": 3}),
    "several answers": ({}, {"prompt_logprobs": 3, "n": 1}),
    "a prompt in pieces": ({"max_num_batched_tokens": 24, "max_num_seqs": 8}, {"prompt_logprobs": 3}),
    "a cached prefix": ({"enable_prefix_caching": True}, {"prompt_logprobs": 3}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_mixed_batch_gives_each_its_own_numbers(case, adapters, engine):
    options, sampling = CASES[case]
    base, root = adapters
    llm, loras = engine(base, **LORA, **options), requests(root)
    together = numbers(llm, PROMPTS, loras, **sampling)
    alone = [numbers(llm, [prompt], [lora], **sampling)[0] for prompt, lora in zip(PROMPTS, loras, strict=True)]
    again = numbers(llm, PROMPTS[::-1], loras[::-1], **sampling)[::-1]
    assert_equal(together, alone)
    assert_equal(again, alone)


def test_the_scores_of_a_prompt_are_those_of_peft(adapters, engine):
    base, root = adapters
    llm = engine(base, **LORA)
    found = numbers(llm, PROMPTS, requests(root), prompt_logprobs=3)
    expected = [reference(base, root, name, prompt) for name, prompt in zip(NAMES, PROMPTS, strict=True)]
    for (prompt, _), scores in zip(found, expected, strict=True):
        assert len(prompt) == scores.shape[0]
        for step, row in zip(prompt, scores, strict=True):
            assert step == pytest.approx({token: row[token].item() for token in step}, abs=1e-3)
    same_prompt = [reference(base, root, name, PROMPTS[3]) for name in (None, "head@r16", "head@r4", "plain")]
    assert all((one - other).abs().max() > 0.1 for one, other in pairwise(same_prompt))
