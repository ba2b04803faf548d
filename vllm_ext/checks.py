"""The rows of `sqft doctor` about vLLM. Imports nothing of vLLM."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import sys
from collections.abc import Mapping

from sqft_plugins.errors import SQFTError
from sqft_plugins.hardware import nvidia_gpus, processor
from sqft_plugins.plugins.packages import asked_range, why_not_imported
from sqft_plugins.plugins.protocols import Check
from vllm_ext import version
from vllm_ext.variables import OPERATOR, VLLM_PLUGINS, forced_operator
from vllm_ext.version import INSTALL

GROUP = "vllm.general_plugins"
NAME = "sqft"
AVX512 = ("avx512f", "avx512bw", "avx512dq", "avx512vl", "fma")
"""What torch.cpu._is_avx512_supported() asks for, as Linux names it."""
LET_IN = f"unset {VLLM_PLUGINS}, or add {NAME} to it"


def vllm_check() -> Check:
    """Whether vLLM is there, in the supported range."""
    found = version.installed()
    if not found:
        where = "not installed" if sys.platform == "linux" else f"not installed; it needs Linux, this is {sys.platform}"
        return Check("vllm", "missing", where, INSTALL)
    problem = version.why_unsupported(found)
    if problem is None:
        text = ", ".join(f"{name} {number}" for name, number in found.items())
        name, versions = version.TESTED
        return Check("vllm", "ok", text + ("" if version.is_tested(found) else f" (the tests run {name}{versions})"))
    remedy = f"pip uninstall {' '.join(found)}, then {INSTALL}" if len(found) > 1 else INSTALL
    return Check("vllm", "wrong", problem, remedy)


def plugin_check() -> list[Check]:
    """Whether the processes of vLLM would load our plug-in; each of them asks the same entry point and variable. No row
    without vLLM."""
    if not version.installed():
        return []

    # would vLLM load it?
    name = "vllm plug-in"
    points = [point for point in importlib.metadata.entry_points(group=GROUP) if point.name == NAME]
    if not points:
        return [Check(name, "wrong", f"no entry point {NAME} in {GROUP}", "install sqft-plugins again")]
    hidden = left_out(os.environ)
    if hidden is not None:
        return [Check(name, "wrong", hidden, LET_IN)]
    problem = version.why_unsupported(version.installed())
    if problem is not None:
        return [Check(name, "wrong", f"refuses this vLLM: {problem}", INSTALL)]

    # does it load?
    try:
        points[0].load()
        operators = operator_text()
    except (ImportError, SQFTError) as error:
        return [Check(name, "wrong", f"{type(error).__name__}: {error}", "correct it; vLLM itself would only log it")]
    return [Check(name, "ok", f"loaded in the API server, the engine core and each worker; {operators}")]


def has_int4_kernel() -> bool:
    """Whether the CPU build of vLLM has its dense INT4 kernel, `cpu_gemm_wna16`, on this processor: its builds for
    AVX-512 have it, the one for AVX2 has not. CpuPlatform.import_kernels of vLLM asks torch, which asks for AVX512."""
    flags = processor().get("flags", "").split()
    return platform.machine().lower() not in ("x86_64", "amd64") or set(AVX512) <= set(flags)


def processor_check() -> list[Check]:
    """What vLLM lacks on this processor. No row without its CPU build."""
    if not version.is_cpu_build(version.installed()):
        return []
    name = "vllm INT4 kernel"
    if has_int4_kernel():
        return [Check(name, "ok", "cpu_gemm_wna16")]
    found = "no AVX-512: vLLM has no INT4 kernel here, dense INT4 layers run on the sparse kernel, at 5 bits a weight"
    return [Check(name, "missing", found, f"serve INT4 folders with {NAME} (stock vLLM fails), or a float folder")]


def left_out(environment: Mapping[str, str]) -> str | None:
    """What in the environment keeps vLLM from loading the plug-in (the remedy is LET_IN), None where nothing does."""
    allowed = environment.get(VLLM_PLUGINS)
    return None if allowed is None or NAME in allowed.split(",") else f"{VLLM_PLUGINS}={allowed!r} leaves it out"


def operator_text() -> str:
    """Which operator computes sparse INT4 linears here. Raises SQFTError for a variable with an unknown value."""
    from sqft_plugins.kernels.library import choose

    forced = forced_operator()
    if forced is not None:
        return f"operator {forced} ({OPERATOR})"
    if not version.is_cpu_build(version.installed()) and nvidia_gpus():
        return "operator vllm (dense; the sparse kernels are for the CPU)"
    found = choose()
    if found.handle is None:
        return f"operator vllm (dense; {found.why})"
    return f"operator sparse ({found.path}: {found.why})"


def torchvision_check(deep: bool = False) -> list[Check]:
    """A torchvision built for another torch breaks vLLM and transformers: `operator torchvision::nms does not exist`.
    Its metadata names the torch that it was built for. Nothing here needs it, so without it there is no row.

    deep: import it, too, in a process of its own: a failed import leaves half-registered operators behind.
    """
    if importlib.util.find_spec("torchvision") is None:
        return []
    name, remedy = "torchvision", "pip uninstall torchvision torchaudio torchcodec"
    number = version.version_of(name) or "unknown version"
    wanted, torch = asked_range("torch", by=name), version.version_of("torch") or ""
    if torch and not wanted.contains(torch, prereleases=True):
        return [Check(name, "wrong", f"{number}: built for torch{wanted}, this is {torch}", remedy)]
    if torch.endswith("+cpu") != number.endswith("+cpu") and number[0].isdigit():
        return [Check(name, "wrong", f"{number}: not built as torch {torch} is, for the CPU alone", remedy)]

    reason = why_not_imported(name) if deep else None
    return [Check(name, "wrong", f"{number}: {reason}", remedy) if reason else Check(name, "ok", number)]
