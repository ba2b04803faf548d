"""Value planes under tensor parallel, in vLLM's own processes: each worker cuts the plane as its weights are cut."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from helpers_planes import write_qa_adapter

pytest.importorskip("peft")

SCRIPT = """
import json, sys
from vllm import LLM, SamplingParams
from vllm_ext.adapters.offline import lora_request

if __name__ == "__main__":
    folder, adapter, prompts = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    llm = LLM(model=folder, dtype="float32", enforce_eager=True, max_model_len=256, max_num_seqs=4,
              tensor_parallel_size=2, enable_lora=True, max_loras=2, max_lora_rank=8)
    requests = [lora_request(f"{adapter}@r{rank}") for rank in (8, 4)]
    asked = [(prompt, request) for request in requests for prompt in prompts]
    outputs = llm.generate([{"prompt_token_ids": prompt} for prompt, _ in asked],
                           SamplingParams(temperature=0, max_tokens=6, logprobs=5, ignore_eos=True), use_tqdm=False,
                           lora_request=[request for _, request in asked])
    print("RESULT" + json.dumps([[[[token, entry.logprob] for token, entry in step.items()]
                                  for step in output.outputs[0].logprobs] for output in outputs]))
"""
PROMPTS = [[2, *range(20, 30)], [2, *range(300, 305)]]


@pytest.mark.slow  # 70 s
@pytest.mark.vllm
@pytest.mark.parametrize("bits", [4, 3])
def test_two_workers_answer_as_the_merged_folder_on_one(bits, engine, ask, tiny_int4, tmp_path, monkeypatch) -> None:
    from sqft_plugins.tune.merge import merge_folder

    # float32 throughout: the sparse kernel's fixed point makes 1e-4 of two workers' other order of sums
    monkeypatch.setenv("SQFT_VLLM_OPERATOR", "torch")
    int4 = tiny_int4("qwen2", 32, False, bits=bits)
    targets = ["q_proj", "v_proj", "o_proj", "gate_proj", "down_proj"]  # cut along `out`, fused, and along `in`
    adapter = write_qa_adapter(tmp_path / "math-qa", int4, target_modules=targets)
    expected = []
    for rank in (8, 4):
        merge_folder(int4, adapter, tmp_path / f"r{rank}", rank)
        expected += ask(engine(tmp_path / f"r{rank}"), PROMPTS)
    script = tmp_path / "serve.py"
    script.write_text(SCRIPT)
    settings = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "0|1",
        "OMP_NUM_THREADS": "1", "SQFT_PLANE_DIR": str(tmp_path / "store"),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, str(script), str(int4), str(adapter), json.dumps(PROMPTS)],
        capture_output=True, text=True, env={**os.environ, **settings}, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
    for found, wanted in zip(json.loads(line.removeprefix("RESULT")), expected, strict=True):
        for step, again in zip(found, wanted, strict=True):
            assert dict(map(tuple, step)) == pytest.approx(again, abs=1e-4)
