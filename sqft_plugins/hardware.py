"""What this machine computes fast in, and where. torch is imported when it is asked, `sqft doctor` does without."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqft_plugins.errors import SQFTError

if TYPE_CHECKING:
    import torch


def processor() -> dict[str, str]:
    """The first processor's fields in /proc/cpuinfo, such as "model name" and "flags"; empty where there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return {}
    fields = (line.partition(":") for line in lines)
    return {key.strip(): value.strip() for key, _, value in fields}


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


def parse_dtype(name: str) -> torch.dtype | str:
    """ "fast" (fast_dtype), "auto" (as stored) or the name of a dtype. Raises SQFTError for a name that is none."""
    import torch

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


def release_memory() -> None:
    """Gives freed memory back to the system. glibc keeps what lies between pieces in use, so that a process which works
    on one block of a model after the other would grow by some MB a block. Does nothing where the C library is another.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
