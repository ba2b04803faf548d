"""One llama.cpp in a process of its own, for llama_cpp_speed.py: `FILE stock|sparse [DENSITY]`; orders on stdin, JSON.

An order is {"kind": "decode" | "prefill", "tokens": N, "threads": T}; the answer has its seconds, and
those of the processor, which another process on the machine changes less.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import llama_cpp as c


def memory() -> dict[str, int]:
    """MiB resident, of it mapped files, and the peak."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    found = {line[0].rstrip(":"): int(line[1]) // 1024 for line in lines if line and line[0][:-1] in KEYS}
    return {KEYS[key]: value for key, value in found.items()}


KEYS = {"VmRSS": "resident_mib", "RssAnon": "anonymous_mib", "RssFile": "mapped_mib", "VmHWM": "peak_mib"}


def main() -> None:
    file, mode, *more = sys.argv[1:]
    c.llama_backend_init()
    state: dict[str, Any] = {}
    if mode == "sparse":
        from gguf_ext.backend import enable

        enabled = enable(density=float(more[0]) if more else None)
        state = {"why": enabled.why, "kernel": enabled.kernel}
    start = time.perf_counter()
    model = c.llama_model_load_from_file(file.encode(), c.llama_model_default_params())
    state |= {"load": time.perf_counter() - start, "info": c.llama_print_system_info().decode()}

    settings = c.llama_context_default_params()
    settings.n_ctx, settings.n_batch, settings.n_ubatch = 1024, 512, 512
    context = c.llama_init_from_model(model, settings)
    batch = c.llama_batch_init(512, 0, 1)

    def decode(first: int, count: int) -> None:
        batch.n_tokens = count
        for i in range(count):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = 10 + (first + i) * 37 % 900, first + i, 1
            batch.seq_id[i][0], batch.logits[i] = 0, i == count - 1
        if c.llama_decode(context, batch):
            raise SystemExit("llama_decode failed")

    decode(0, 8)
    if mode == "sparse":
        from gguf_ext.backend import held

        state["held"] = held()
    print(json.dumps({**state, **memory()}), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        c.llama_set_n_threads(context, order["threads"], order["threads"])
        c.llama_memory_clear(c.llama_get_memory(context), True)
        if order["kind"] == "decode":
            decode(0, 16)
            start, busy = time.perf_counter(), time.process_time()
            for i in range(order["tokens"]):
                decode(16 + i, 1)
        else:
            start, busy = time.perf_counter(), time.process_time()
            decode(0, order["tokens"])
        seconds, cpu = time.perf_counter() - start, time.process_time() - busy
        print(json.dumps({"seconds": seconds, "cpu_seconds": cpu, **memory()}), flush=True)


if __name__ == "__main__":
    main()
