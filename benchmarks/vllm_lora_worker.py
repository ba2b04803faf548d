"""The process that benchmarks/vllm_lora.py asks: an engine, and its own clock.

vllm_lora_worker.py MODEL ADAPTER...      questions as JSON lines on stdin, `RESULT{...}` lines on stdout
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any


def main() -> None:
    from vllm import LLM
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU
    from vllm.lora.request import LoRARequest

    from vllm_ext.patching import MARK

    model, *adapters = sys.argv[1:]
    llm = LLM(
        model=model, dtype="bfloat16", enforce_eager=True, max_model_len=1024, max_num_seqs=8, enable_lora=True,
        max_loras=4, max_lora_rank=64, enable_prefix_caching=False, disable_log_stats=True,
    )  # fmt: skip
    loras = [LoRARequest(f"adapter-{n}", n + 1, path) for n, path in enumerate(adapters)]
    answer(plugin=hasattr(PunicaWrapperCPU.add_lora_linear, MARK))
    for line in sys.stdin:
        question = json.loads(line)
        chosen = [None if number is None else loras[number] for number in question["adapters"]]
        if question["what"] == "decode":
            answer(seconds=decode(llm, chosen, question["steps"]))
        else:
            answer(seconds=prefill(llm, chosen[0], question["tokens"]))


def answer(**result: Any) -> None:
    print("RESULT" + json.dumps(result), flush=True)


def decode(llm: Any, adapters: list[Any], steps: int) -> float:
    """Seconds of one step of all requests together, the prompts already read."""
    from vllm import SamplingParams

    engine = llm.llm_engine
    parameters = SamplingParams(temperature=0, max_tokens=steps + 2, ignore_eos=True)
    for number, adapter in enumerate(adapters):
        prompt = {"prompt_token_ids": [1, 5 + number, 6, 7]}
        engine.add_request(f"{time.monotonic_ns()}-{number}", prompt, parameters, lora_request=adapter)
    written = 0
    while written < len(adapters):  # until each has its first token
        written = sum(len(output.outputs[0].token_ids) > 0 for output in engine.step())
    begin = time.perf_counter()
    for _ in range(steps):
        engine.step()
    seconds = (time.perf_counter() - begin) / steps
    while engine.has_unfinished_requests():
        engine.step()
    return seconds


def prefill(llm: Any, adapter: Any, tokens: int) -> float:
    """Seconds from the request to its first token."""
    from vllm import SamplingParams

    prompt = {"prompt_token_ids": [1 + index % 1000 for index in range(tokens)]}
    begin = time.perf_counter()
    llm.generate(
        [prompt], SamplingParams(temperature=0, max_tokens=1, ignore_eos=True), use_tqdm=False, lora_request=adapter
    )
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
