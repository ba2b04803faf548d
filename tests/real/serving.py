"""A real server, started as a user would: `sqft serve`, on loopback, and stock vLLM to compare with."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_ext.checks import has_int4_kernel

SQFT = [sys.executable, "-c", "from sqft_plugins.cli import main; main()"]
SMALL = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
START = 900
"""Seconds; 35 on an idle machine."""


@dataclass
class Served:
    """A running server. ready: what `sqft serve --json` printed. process: `sqft serve` itself."""

    process: subprocess.Popen
    ready: dict[str, Any]
    log: Path

    @property
    def url(self) -> str:
        return self.ready["url"]

    def client(self) -> Any:
        from openai import OpenAI

        return OpenAI(base_url=f"{self.url}/v1", api_key="none", timeout=600, max_retries=0)

    def metrics(self) -> dict[str, float]:
        """The counters of this plug-in, summed over their labels."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=60) as answer:
            lines = re.findall(r"^(sqft_\w+)(?:\{.*\})? (\S+)$", answer.read().decode(), re.MULTILINE)
        found: dict[str, float] = {}
        for name, value in lines:
            found[name] = found.get(name, 0.0) + float(value)
        return found

    def memory(self) -> int:
        """Bytes of all processes of the server: private pages and their share of shared ones."""
        total = 0
        for pid in descendants(self.process.pid):
            try:
                text = Path(f"/proc/{pid}/smaps_rollup").read_text()
            except OSError:
                continue
            total += 1024 * int(re.search(r"^Pss:\s+(\d+)", text, re.MULTILINE)[1])
        return total

    def stop(self) -> int:
        """As Ctrl-C does → the exit code; all processes of the server are gone."""
        pids = descendants(self.process.pid)
        self.process.send_signal(signal.SIGINT)
        code = self.process.wait(60)
        left = [pid for pid in pids if _runs(pid)]
        assert not left, f"processes {left} outlived the server"
        return code


@contextmanager
def serve(model: Path, log: Path, *options: str, passed: Sequence[str] = (), **environment: str) -> Iterator[Served]:
    """passed: words behind `--`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    words = ["serve", str(model), "--port", port, "--log", str(log), "--timeout", str(START), "--json", *options]
    small = ["--enforce-eager", "--max-model-len", "512"]
    process = subprocess.Popen(
        [*SQFT, *words, "--", *small, *passed], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, **SMALL, **environment},
    )  # fmt: skip
    try:
        yield Served(process, _ready(process), log)
    except BaseException:
        if log.is_file():
            print(log.read_text(errors="replace")[-6000:])
        raise
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()


def _ready(process: subprocess.Popen) -> dict[str, Any]:
    text = ""
    assert process.stdout is not None
    assert process.stderr is not None
    for line in process.stdout:
        text += line
        if line == "}\n":
            return json.loads(text)
    raise AssertionError(f"sqft serve ended with {process.wait()}: {process.stderr.read()[-3000:]}")


def descendants(pid: int) -> list[int]:
    """The process and all it started."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except OSError:
                continue
            parents.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(entry.name))
    found, rest = [], [pid]
    while rest:
        found.append(rest.pop())
        rest += parents.get(found[-1], [])
    return found


def _runs(pid: int) -> bool:
    for _ in range(100):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return False
        except OSError:
            return False
        time.sleep(0.1)
    return True


PEER = {"VLLM_PLUGINS": ""} if has_int4_kernel() else {"SQFT_VLLM_OPERATOR": "torch"}
"""Stock vLLM. Where the processor lacks what its INT4 kernel needs it cannot run: there vLLM with the float weights."""
OPERATOR = "vllm" if has_int4_kernel() else "torch"
"""What computes the same sums as that peer, to the last bit."""
STOCK = """
import gc, json, sys
from vllm import LLM, SamplingParams

if __name__ == "__main__":
    given = json.load(sys.stdin)
    for folder in given["folders"]:
        llm = LLM(model=folder, dtype=given["dtype"], enforce_eager=True, max_model_len=512, max_num_seqs=32)
        wanted = SamplingParams(temperature=0, max_tokens=given["tokens"], logprobs=5)
        outputs = [llm.generate([prompt], wanted, use_tqdm=False)[0].outputs[0] for prompt in given["prompts"]]
        found = [
            {"text": o.text, "tokens": [s[t].decoded_token for t, s in zip(o.token_ids, o.logprobs)],
             "logprobs": [s[t].logprob for t, s in zip(o.token_ids, o.logprobs)]}
            for o in outputs
        ]
        print("RESULT" + json.dumps(found), flush=True)
        llm.llm_engine.engine_core.shutdown()
        del llm
        gc.collect()
"""


def stock(folders: Sequence[Path], prompts: Sequence[str], tokens: int, tmp: Path) -> list[list[dict[str, Any]]]:
    """For each folder, for each prompt asked alone: text, tokens and logprobs of the peer."""
    script = tmp / "stock.py"
    script.write_text(STOCK)
    settings = {
        **SMALL,
        **PEER,
        "VLLM_CPU_INT4_W4A8": "0",  # as `sqft serve` sets it
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    }
    given = {"folders": list(map(str, folders)), "prompts": list(prompts), "tokens": tokens, "dtype": "bfloat16"}
    done = subprocess.run(
        [sys.executable, str(script)], input=json.dumps(given), capture_output=True, text=True, timeout=1200,
        env={**os.environ, **settings},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line[6:]) for line in done.stdout.splitlines() if line.startswith("RESULT")]
