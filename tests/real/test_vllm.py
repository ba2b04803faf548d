"""Stock vLLM, no plug-in of ours, on the INT4 folder of the real model; with the plug-in where the processor lacks what
stock vLLM's INT4 kernel needs."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys

import pytest
import torch
from helpers_prompts import PROMPTS

from sqft_plugins.checkpoint import load_model, load_tokenizer
from vllm_ext.checks import has_int4_kernel

NEAR_TIE = 0.5
"""vLLM computes in bfloat16 with 8 significant bits, the reference in float32: of two tokens whose log-probabilities
are closer than this, either may win. A wrong scale, group or code misses by several units."""

SCRIPT = """
import json, sys
from vllm import LLM, SamplingParams

if __name__ == "__main__":
    prompts = json.load(sys.stdin)
    llm = LLM(model=sys.argv[1], dtype="bfloat16", enforce_eager=True, max_model_len=256, max_num_seqs=32)
    outputs = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=8), use_tqdm=False)
    print("RESULT" + json.dumps([list(o.outputs[0].token_ids) for o in outputs]))
"""


@pytest.mark.vllm
@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
def test_vllm_answers_as_transformers_does(demo, tmp_path) -> None:
    out, _ = demo
    script = tmp_path / "serve.py"
    script.write_text(SCRIPT)
    settings = {
        "VLLM_CPU_INT4_W4A8": "0",  # 1, the default, quantizes activations to 8 bits
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_PLUGINS": "" if has_int4_kernel() else "sqft",
        "OMP_NUM_THREADS": str(os.cpu_count()),
    }
    done = subprocess.run(
        [sys.executable, str(script), str(out / "int4")], input=json.dumps(PROMPTS), capture_output=True, text=True,
        env={**os.environ, **settings}, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
    answers = json.loads(line.removeprefix("RESULT"))
    assert len(answers) == 20
    tokenizer = load_tokenizer(out / "int4")
    model = load_model(out / "int4", dtype=torch.float32)
    exact = total = 0
    for prompt, tokens in zip(PROMPTS, answers, strict=True):
        start = tokenizer(prompt).input_ids
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([start + tokens])).logits[0, len(start) - 1 : -1]
        chosen = logits.gather(1, torch.tensor(tokens)[:, None]).squeeze(1)
        behind = logits.amax(1) - chosen
        assert float(behind.max()) < NEAR_TIE, (prompt, tokenizer.decode(tokens))
        exact, total = exact + int((behind == 0).sum()), total + len(tokens)
    assert exact > 0.9 * total
