"""One runtime of benchmarks/decode.py in a process of its own: `python decode_worker.py RUNTIME MODEL THREADS`.

Says {"weight_bytes", "rss_mib", "peak_mib"} once it is loaded. Then answers each line {"requests", "tokens"} with
{"seconds"}: so long it took to decode that many tokens for each of so many requests side by side, the prompt not
counted; and a line that also has {"breakdown": true} with the share of the time by operator.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

PROMPT = list(range(10, 26))
CONTEXT = 256


def rss_mib() -> int:
    """Resident anonymous memory and files, in MiB."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) // 1024 for line in file if line.startswith("VmRSS"))


def unique_bytes(model: Any) -> int:
    """Bytes of all tensors that hang on the modules of `model`, each storage once; the states of vllm_ext's operators
    and of `sqft_plugins.accelerate` among them."""
    import torch

    seen: dict[int, int] = {}

    def visit(value: Any, depth: int) -> None:
        if isinstance(value, torch.Tensor):
            if value.device.type != "meta":
                seen[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        elif isinstance(value, (list, tuple)):
            for item in value:
                visit(item, depth)
        elif depth and hasattr(value, "__dict__") and not isinstance(value, (torch.nn.Module, type)):
            for item in vars(value).values():
                visit(item, depth - 1)

    for module in model.modules():
        for name, value in vars(module).items():
            if name == "_modules" or name == "kv_cache":
                continue
            if name in ("_parameters", "_buffers"):
                for tensor in value.values():
                    visit(tensor, 0)
            else:
                visit(value, 4)
    return sum(seen.values())


def shares(events: Any) -> dict[str, float]:
    """Operator → share of the CPU time of a profile, the twelve largest."""
    rows = sorted(((row.key, row.self_cpu_time_total) for row in events), key=lambda row: -row[1])
    total = sum(value for _, value in rows)
    return {key: round(value / total, 4) for key, value in rows[:12]}


def profiled(call: Callable[[], object]) -> dict[str, float]:
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        call()
    return shares(recorded.key_averages())


def vllm(model: str, threads: int) -> tuple[Any, ...]:
    """vLLM in this process, eager: the Python of a step is part of what a user waits for."""
    import torch
    from vllm import LLM, SamplingParams
    from vllm.inputs import TokensPrompt

    eager = os.environ.get("DECODE_EAGER", "1") == "1"
    engine = LLM(
        model,
        dtype="bfloat16",
        max_model_len=CONTEXT,
        max_num_seqs=8,
        enforce_eager=eager,
        enable_prefix_caching=False,
        disable_log_stats=True,
    )
    torch.set_num_threads(threads)
    inner = engine.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner.model

    def decode(requests: int, tokens: int) -> None:
        settings = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
        prompts = [TokensPrompt(prompt_token_ids=[10 + i, *PROMPT[1:]]) for i in range(requests)]
        engine.generate(prompts, settings, use_tqdm=False)

    return decode, lambda: unique_bytes(inner), "vllm"


def transformers(model: str, threads: int, accelerated: bool) -> tuple[Any, ...]:
    """transformers' own greedy generation; `accelerated` swaps the linears of an INT4 folder."""
    import torch

    import sqft_plugins
    from sqft_plugins.checkpoint import load_model

    torch.set_num_threads(threads)
    loaded = load_model(model, dtype=torch.bfloat16)
    if accelerated:
        sqft_plugins.accelerate(loaded)

    def decode(requests: int, tokens: int) -> None:
        ids = torch.tensor([[10 + i, *PROMPT[1:]] for i in range(requests)])
        loaded.generate(ids, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, pad_token_id=0)

    return decode, lambda: unique_bytes(loaded), "transformers"


def llama_cpp(model: str, threads: int) -> tuple[Any, ...]:
    """llama.cpp, all requests in one batch."""
    import llama_cpp as c

    c.llama_backend_init()
    loaded = c.llama_model_load_from_file(model.encode(), c.llama_model_default_params())
    settings = c.llama_context_default_params()
    settings.n_ctx = CONTEXT * 8
    settings.n_seq_max = 8
    settings.n_threads = settings.n_threads_batch = threads
    context = c.llama_init_from_model(loaded, settings)
    batch = c.llama_batch_init(len(PROMPT) * 8, 0, 8)
    vocabulary = c.llama_vocab_n_tokens(c.llama_model_get_vocab(loaded))

    def step(rows: list[tuple[int, int, int, bool]]) -> None:
        batch.n_tokens = len(rows)
        for index, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[index], batch.pos[index], batch.n_seq_id[index] = token, position, 1
            batch.seq_id[index][0] = sequence
            batch.logits[index] = wanted
        if c.llama_decode(context, batch):
            raise RuntimeError("llama_decode failed")

    def decode(requests: int, tokens: int) -> None:
        import numpy as np

        c.llama_memory_clear(c.llama_get_memory(context), True)
        last = len(PROMPT) - 1
        step([(t if p else 10 + s, p, s, p == last) for s in range(requests) for p, t in enumerate(PROMPT)])
        places = [s * len(PROMPT) + last for s in range(requests)]
        for number in range(tokens - 1):
            rows = [np.ctypeslib.as_array(c.llama_get_logits_ith(context, place), (vocabulary,)) for place in places]
            chosen = [int(row.argmax()) for row in rows]
            step([(token, len(PROMPT) + number, s, True) for s, token in enumerate(chosen)])
            places = list(range(requests))

    return decode, lambda: int(c.llama_model_size(loaded)), "llama.cpp"


def main() -> None:
    runtime, model, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
    answers = os.fdopen(os.dup(1), "w")  # the libraries print to stdout as well
    os.dup2(2, 1)
    decode: Callable[[int, int], None]
    if runtime == "llama.cpp":
        decode, weight_bytes, _ = llama_cpp(model, threads)
    elif runtime.startswith("transformers"):
        decode, weight_bytes, _ = transformers(model, threads, runtime.endswith("accelerate"))
    else:
        decode, weight_bytes, _ = vllm(model, threads)
    decode(1, 2)

    def say(**answer: Any) -> None:
        print(json.dumps(answer), file=answers, flush=True)

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    say(weight_bytes=weight_bytes(), rss_mib=rss_mib(), peak_mib=peak)
    for line in sys.stdin:
        order = json.loads(line)
        requests, tokens = order["requests"], order["tokens"]
        if order.get("breakdown"):
            say(breakdown=profiled(partial(decode, requests, tokens)))
            continue
        start = time.perf_counter()
        decode(requests, 1)
        first = time.perf_counter()
        decode(requests, tokens + 1)
        say(seconds=(time.perf_counter() - first) - (first - start))


if __name__ == "__main__":
    main()
