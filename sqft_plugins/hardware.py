"""What this machine is, and what it computes fast in. Only what asks torch imports it; `sqft doctor` does without."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqft_plugins.errors import SQFTError

if TYPE_CHECKING:
    import torch


CPU_FLAGS = ("avx2", "fma", "f16c", "avx512f", "avx512vbmi", "avx512_vbmi2", "avx512_vnni", "avx512_bf16", "amx_int8")
"""What the kernels of llama.cpp, vLLM and this project ask for."""


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine_facts() -> dict[str, str]:
    """Python, system, CPU, cores and memory, in words for a report."""
    return {
        "Python": f"{platform.python_version()} ({sys.executable})",
        "system": platform.platform(),
        "CPU": _cpu(),
        "cores": f"{cores()}{variable('OMP_NUM_THREADS')}",
        "memory": _memory(),
    }


def processor() -> dict[str, str]:
    """The first processor's fields in /proc/cpuinfo, such as "model name" and "flags"; empty where there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return {}
    fields = (line.partition(":") for line in lines)
    return {key.strip(): value.strip() for key, _, value in fields}


def memory() -> tuple[int, int] | None:
    """(bytes of memory, those that Linux calls available). Elsewhere all are; None where nothing is known."""
    try:
        lines = (line.partition(":") for line in Path("/proc/meminfo").read_text().splitlines())
        kib = {name: int(value.split()[0]) for name, _, value in lines}
        return kib["MemTotal"] << 10, kib["MemAvailable"] << 10
    except (OSError, KeyError):
        pass
    if not hasattr(os, "sysconf"):
        return None
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return total, total


def nvidia_gpus() -> list[str]:
    """The names of the GPUs that NVIDIA's driver lists."""
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True)
    return re.findall(r"^GPU \d+: (.*?)(?: \(UUID.*)?$", listed.stdout, re.MULTILINE) if not listed.returncode else []


def fast_dtype() -> torch.dtype:
    """bfloat16 on GPUs that have it and on CPUs with AMX; float32 elsewhere.

    On a CPU with AVX-512 but without AMX a bf16 GEMM takes 1.7 times as long as a float32 one (512x640 by 640x2048,
    torch 2.13, one thread), so such a machine tunes and evaluates in float32.
    """
    import torch

    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if torch.cpu._is_amx_tile_supported() else torch.float32


def check_dtype(name: str) -> None:
    """Raises SQFTError for a name that cannot be a float type of torch, without asking torch."""
    if not re.fullmatch(r"fast|auto|half|double|b?float\w*", name):
        raise SQFTError(f"--dtype {name!r} is no float type: use fast, auto, float32, bfloat16 or float16")


def parse_dtype(name: str) -> torch.dtype | str:
    """ "fast" (fast_dtype), "auto" (as stored) or the name of a dtype. Raises SQFTError for a name that is none."""
    import torch

    check_dtype(name)
    if name == "fast":
        return fast_dtype()
    found = "auto" if name == "auto" else getattr(torch, name, None)
    if found != "auto" and not (isinstance(found, torch.dtype) and found.is_floating_point):
        raise SQFTError(f"--dtype {name!r} is no float type: use fast, auto, float32, bfloat16 or float16")
    return found


def fast_device() -> torch.device:
    """The first GPU where there is one, else the CPU. CUDA_VISIBLE_DEVICES chooses, as everywhere; empty: the CPU."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def on_fast_device(model: Any) -> Any:
    """The model, moved there. Raises SQFTError where it does not fit."""
    import torch

    device = fast_device()
    try:
        return model.to(device)
    except torch.OutOfMemoryError as error:
        raise SQFTError(
            f"the model does not fit on {device} ({error}): set CUDA_VISIBLE_DEVICES= for the CPU, or a smaller --dtype"
        ) from error


def matmul_speed(seconds: float = 0.3) -> float:
    """GFLOP/s of float32 matrix products on the fast device, with all threads of torch: the best of those that fit into
    the time."""
    import torch

    device = fast_device()
    left, right = torch.randn(512, 1024, device=device), torch.randn(1024, 1024, device=device)
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        float((left @ right)[0, 0])  # waits for the product
        best = min(best, time.perf_counter() - start)
    return 2 * left.numel() * right.shape[1] / best / 1e9


def release_memory() -> None:
    """Gives freed memory back to the system. glibc keeps what lies between pieces in use, so that a process which works
    on one block of a model after the other would grow by some MB a block. Does nothing where the C library is another.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


@contextmanager
def uncollected() -> Iterator[None]:
    """Within it Python does not look for cycles of garbage: a vocabulary is a million small objects that all stay, and
    the collector would go over them again and again (Gemma's tokenizer loads in 3.1 s with it, in 1.8 s without)."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def _cpu() -> str:
    fields = processor()
    model = fields.get("model name", platform.processor() or platform.machine())
    has = [flag for flag in CPU_FLAGS if flag in fields.get("flags", "").split()]
    shown = f": {' '.join(has) or 'no vector extensions'}" if "flags" in fields else ""
    return f"{model}, {platform.machine()}{shown}"


def variable(name: str) -> str:
    """An environment variable and its value where it is set, to follow what it decides."""
    return f" ({name}={os.environ[name]})" if name in os.environ else ""


def _memory() -> str:
    known = memory()
    if known is None:
        return "unknown"
    total, free = (size / 2**30 for size in known)
    return f"{total:.1f} GiB" + (f", {free:.1f} GiB free" if free < total else "")
