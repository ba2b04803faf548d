"""Adapters on the output head and the embedding: in a mixed batch everyone gets the numbers of its own adapter."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from helpers_adapters import change, write_adapter
from safetensors.torch import load_file

pytest.importorskip("vllm", reason="vLLM is not installed")

from vllm import SamplingParams
from vllm.exceptions import VLLMValidationError
from vllm.lora.request import LoRARequest
from vllm.sampling_params import StructuredOutputsParams

from sqft_plugins.errors import SQFTError
from vllm_ext.adapters.names import Variant
from vllm_ext.adapters.offline import lora_request

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
    kept = load_file(base / "model.safetensors")["lm_head.weight"]  # PEFT saves the base's own head along
    change(root / "head", lambda tensors: tensors.update({f"base_model.model.{HEAD}.base_layer.weight": kept}))
    write_adapter(root / "body", ATTENTION, r=16, choices=(16, 8, 4), seed=2)
    write_adapter(root / "plain", {HEAD: (128, VOCABULARY), **ATTENTION}, r=8, choices=None, peft_type="LORA", seed=3)
    with_embedding(root / "plain")
    return base, root


def with_embedding(folder) -> None:
    """Adds a LoRA of the embedding, as PEFT saves it."""
    generator, name = torch.Generator().manual_seed(5), f"base_model.model.{EMBEDDING}.lora_embedding_"
    A, B = torch.randn(8, VOCABULARY, generator=generator), torch.randn(128, 8, generator=generator) * 0.05
    targets = ["lm_head", "q_proj", "embed_tokens"]
    change(folder, lambda tensors: tensors.update({f"{name}A": A, f"{name}B": B}), target_modules=targets)


def requests(root):
    return [lora_request(root / name) if name else None for name in NAMES]


def numbers(llm, prompts, loras, **sampling):
    """For each request the prompt's scores, and for each of its answers the tokens with their scores."""
    params = SamplingParams(**{"temperature": 0, "max_tokens": 3, "logprobs": 5, "ignore_eos": True, **sampling})
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


CHOICE = StructuredOutputsParams(regex="[a-z]{3}")
CASES = {
    "scores of the answer": ({}, {}),
    "scores of the prompt": ({}, {"prompt_logprobs": 3}),
    "an answer of a choice": ({}, {"prompt_logprobs": 3, "structured_outputs": CHOICE}),
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


def test_a_mixed_batch_gives_each_its_own_embedding(adapters, engine):
    base, root = adapters
    llm, loras = engine(base, **LORA, runner="pooling", convert="embed"), requests(root)

    def embeddings(prompts, loras):
        given = [{"prompt_token_ids": prompt} for prompt in prompts]
        outputs = llm.embed(given, lora_request=loras, use_tqdm=False)
        return torch.tensor([output.outputs.embedding for output in outputs])

    together = embeddings(PROMPTS, loras)
    alone = torch.cat([embeddings([prompt], [lora]) for prompt, lora in zip(PROMPTS, loras, strict=True)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
    assert not torch.allclose(embeddings(PROMPTS[:1], [None]), embeddings(PROMPTS[:1], loras[1:2]), atol=1e-2)


@pytest.mark.parametrize("how", ["NaN", "infinite", "too large", "another rank"])
@pytest.mark.parametrize("door", ["add_lora", "generate", "a plain LoRARequest"])
def test_an_adapter_of_bad_numbers_is_refused_and_spoils_nobodys_answers(how, door, adapters, engine, tmp_path):
    base, _ = adapters
    llm = engine(base, **LORA)
    before = numbers(llm, PROMPTS[:2], [None, None])
    value = {"NaN": float("nan"), "infinite": float("inf"), "too large": 3e38, "another rank": 1.0}[how]
    folder = write_adapter(tmp_path / "bad", ATTENTION, r=8, choices=None, peft_type="LORA")
    change(folder, lambda tensors: next(iter(tensors.values())).view(-1)[3:4].fill_(value))
    if how == "another rank":
        change(folder, r=4)
    if how == "too large":  # for float32, by its scaling
        change(folder, lambda tensors: tensors[f"base_model.model.{next(iter(ATTENTION))}.lora_B.weight"].fill_(value))
    request = LoRARequest("bad", 77, str(folder if door == "a plain LoRARequest" else Variant(folder)))
    ask = llm.llm_engine.add_lora if door == "add_lora" else lambda lora: numbers(llm, PROMPTS[:1], [lora])
    with pytest.raises((SQFTError, VLLMValidationError), match=r"^adapter bad"):
        ask(request)
    assert_equal(numbers(llm, PROMPTS[:2], [None, None]), before)


@pytest.mark.parametrize("family", ["llama", "gemma3"])  # full attention; a sliding window beside it
def test_an_adapter_whose_products_overflow_spoils_nobody_elses_answers(family, tiny_float, engine, tmp_path):
    """Each number is finite, so nothing tells beforehand. Its requests leave NaN in the cache's blocks."""
    base = tiny_float(family)
    shapes = {name.removesuffix(".weight"): t.shape for name, t in load_file(base / "model.safetensors").items()}
    values = {name: (shape[1], shape[0]) for name, shape in shapes.items() if name.endswith("v_proj")}
    folder = write_adapter(tmp_path / "loud", values, r=8, choices=None, peft_type="LORA")
    change(folder, lambda tensors: [tensor.mul_(1e30) for tensor in tensors.values()])
    llm, loud = engine(base, **LORA, num_gpu_blocks_override=24, max_model_len=64), lora_request(folder)
    before = numbers(llm, PROMPTS[:2], [None, None])
    for _ in range(4):  # every block of the cache was its own once
        numbers(llm, PROMPTS, [loud] * len(PROMPTS))
        assert_equal(numbers(llm, PROMPTS[:2], [None, None]), before)


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
