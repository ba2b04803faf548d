"""Tensor and pipeline parallel through vLLM's own executor, in real processes: only entry points, variables and files
reach them. What they hold and answer is compared with one engine in this process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers_quantization import held

pytestmark = [pytest.mark.vllm, pytest.mark.slow]
PROMPTS = [[2, 300, 310, 320], [2, *range(100, 140)]]
SCRIPT = """
import json, sys
from helpers_quantization import held

if __name__ == "__main__":
    from vllm import LLM, SamplingParams

    folder, prompts, options = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
    llm = LLM(model=folder, dtype="float32", max_model_len=256, max_num_seqs=4, **options)
    outputs = llm.generate([{"prompt_token_ids": prompt} for prompt in prompts],
                           SamplingParams(temperature=0, max_tokens=4, logprobs=5, ignore_eos=True), use_tqdm=False)
    answers = [[[[token, entry.logprob] for token, entry in step.items()] for step in output.outputs[0].logprobs]
               for output in outputs]
    print("RESULT" + json.dumps([answers, llm.apply_model(held)]))
"""


def serve(folder: Path, script: Path, **options):
    """(answers, what each worker holds) of an engine with two workers."""
    script.write_text(SCRIPT)
    settings = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "1", "VLLM_ALLOW_INSECURE_SERIALIZATION": "1", "OMP_NUM_THREADS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "0|1", "SQFT_VLLM_OPERATOR": "torch",
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, str(script), str(folder), json.dumps(PROMPTS), json.dumps(options)],
        capture_output=True, text=True, env={**os.environ, **settings}, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
    return json.loads(line.removeprefix("RESULT"))


@pytest.fixture
def alone(tiny_int4, engine, ask, monkeypatch):
    """(folder, answers, module → (codes, mask)) of one rank. Asymmetric, with bias, two heads of keys and values."""
    monkeypatch.setenv("SQFT_VLLM_OPERATOR", "torch")
    folder = tiny_int4("qwen2", 32, False)
    llm = engine(folder)
    return folder, ask(llm, PROMPTS, 4), llm.apply_model(held)[0]


def check_answers(answers, expected) -> None:
    for one, two in zip(expected, answers, strict=True):
        for step, again in zip(one, two, strict=True):
            assert dict(map(tuple, again)) == pytest.approx(step, abs=1e-4)


def joined(name: str, first: list, second: list) -> list:
    """The whole weight from its two shards: cut along `in`, or each fused module by itself along `out`."""
    if name.endswith(("o_proj", "down_proj")):
        return [one + two for one, two in zip(first, second, strict=True)]
    rows = len(first)
    sizes = {"qkv_proj": [rows // 2, rows // 4, rows // 4], "gate_up_proj": [rows // 2] * 2}[name.rpartition(".")[2]]
    whole, start = [], 0
    for size in sizes:
        whole += first[start : start + size] + second[start : start + size]
        start += size
    return whole


def test_two_ranks_hold_and_answer_what_one_does(alone, tmp_path):
    folder, expected, whole = alone
    answers, ranks = serve(folder, tmp_path / "serve.py", tensor_parallel_size=2, enforce_eager=True)
    check_answers(answers, expected)
    assert len(ranks) == 2
    assert whole.keys() == ranks[0].keys() == ranks[1].keys()
    for name, own in whole.items():
        for field in (0, 1):  # codes, mask
            assert joined(name, ranks[0][name][field], ranks[1][name][field]) == own[field], name


@pytest.mark.slow  # 55 s
def test_two_stages_hold_and_answer_what_one_does(alone, tmp_path):
    folder, expected, whole = alone
    # Not eager: vLLM 0.32's CPU workers make the buffer between stages only while they warm up for torch.compile, and
    # die at the first token without (`assert self.intermediate_tensors is not None`). Here torch.compile only traces.
    traced = {"mode": 2, "backend": "eager"}  # DYNAMO_TRACE_ONCE
    answers, stages = serve(folder, tmp_path / "serve.py", pipeline_parallel_size=2, compilation_config=traced)
    check_answers(answers, expected)
    assert all(len(stage) == len(whole) // 2 for stage in stages)
    held = {name: own for stage in stages for name, own in stage.items()}
    assert held == {name: list(own) for name, own in whole.items()}
