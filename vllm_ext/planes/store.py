"""Where a server finds the file of a value plane (the codes of one rank): exported into the adapter's folder, or built
on first use.

Both end in one private folder, under a name that follows from the contents (`format.plane_key`), written once and never
changed: workers read there while adapters come and go.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock

from sqft_plugins.checkpoint import ModelFolder
from sqft_plugins.errors import CheckpointError, SQFTError
from sqft_plugins.identity import is_settled, state_of
from vllm_ext.planes.build import FOLDER
from vllm_ext.planes.format import SUFFIX, PlaneFile, adapter_identity, base_identity, plane_key
from vllm_ext.private import make_private
from vllm_ext.variables import PLANE_DIR

BUILD_SECONDS = 3600


def store_folder() -> Path:
    """The private folder, made at the first call; processes that this one starts get the same."""
    given = os.environ.get(PLANE_DIR)
    if given:
        folder = Path(given)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SQFTError(f"{PLANE_DIR}={given} cannot be made ({error.strerror}): name another folder") from error
        return folder
    folder = make_private("sqft-planes-")
    os.environ[PLANE_DIR] = str(folder)
    return folder


def find_plane(
    base: ModelFolder, adapter: Path, ranks: Mapping[str, int], kind: str | None, exported: Path | None = None
) -> PlaneFile:
    """The plane of `adapter` at `ranks` over the INT4 folder `base`, built in a process of its own where it is missing.

    base: the folder that is served.
    adapter: the adapter's folder.
    ranks: module → rank.
    kind: what the adapter was trained over, "int4" or "float" (`grid_stamp` in its configuration).
    exported: the folder with the planes that were exported, where `adapter` is a copy without them.

    Raises SQFTError, with the way out, where the plane is neither there nor can be built: it is exact only with the
    weights that the adapter was trained over.
    """
    key = plane_key(known_identity(base), adapter_identity(adapter), ranks)
    file = store_folder() / f"{key}{SUFFIX}"
    with _lock(file):
        if _key_of(file) != key:
            file.unlink(missing_ok=True)

            # exported, or made here
            files = (path for path in _planes_of(exported or adapter) if not path.is_symlink())
            found = next((path for path in files if _key_of(path) == key), None)
            if found is not None:
                _copy(found, file)
            elif kind == "int4":
                _build(base.path, adapter, ranks, file)
            else:
                raise SQFTError(
                    f"adapter {adapter.name} was trained over a float base, which this server does not have: write its "
                    f"plane once with `sqft export plane {base.path} {exported or adapter} --base FLOAT --rank "
                    f"{_shown(ranks)}`{_stale(exported or adapter)}"
                )
    return PlaneFile(file)


def known_identity(base: ModelFolder) -> dict[str, Any]:
    """`base_identity`, whose hash of all codes takes seconds for a large model: made by the API server, and remembered
    in the private folder for the workers, which ask between two steps of the engine."""
    now, state = time.time_ns(), state_of(base.path)
    file = store_folder() / f"base-{hashlib.sha256(repr(state).encode()).hexdigest()[:32]}.json"
    if not is_settled(state, now):
        return base_identity(base)
    with suppress(OSError, ValueError):
        known: dict[str, Any] = json.loads(file.read_text())
        return known

    found = base_identity(base)
    partial = file.with_suffix(f".{os.getpid()}")
    with suppress(OSError):
        partial.write_text(json.dumps(found))
        if state_of(base.path) == state:
            partial.rename(file)
        partial.unlink(missing_ok=True)
    return found


def _key_of(file: Path) -> str | None:
    """The key of the plane in a file. None where there is none, or a damaged one: half copied, or tidied meanwhile."""
    try:
        return PlaneFile(file).stamp.key
    except SQFTError:
        return None


def _planes_of(adapter: Path) -> list[Path]:
    return sorted((adapter / FOLDER).glob(f"*{SUFFIX}"))


def _stale(adapter: Path) -> str:
    found = [file.name for file in _planes_of(adapter)]
    return f"; {', '.join(found[:5])} in {FOLDER}/ is of another base, other weights or other ranks" if found else ""


def _build(base: Path, adapter: Path, ranks: Mapping[str, int], file: Path) -> None:
    """Makes the plane in a process of its own: what that loads is gone afterwards, and whoever asked can answer others
    meanwhile."""
    what = {"model": str(base), "adapter": str(adapter), "ranks": [dict(ranks)], "out": str(file)}
    command = [sys.executable, "-m", "vllm_ext.planes.build", json.dumps(what)]

    # not the preloaded libraries of vLLM's workers, and not on a GPU that is full
    inherited = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    inherited["CUDA_VISIBLE_DEVICES"] = ""
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=inherited, timeout=BUILD_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise SQFTError(
            f"the plane of {adapter.name} took more than {BUILD_SECONDS} s: export it beforehand"
        ) from error
    if done.returncode:
        last = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise SQFTError(f"the plane of adapter {adapter.name} cannot be built: {last}")


def _copy(source: Path, file: Path) -> None:
    """A copy, not a link: the file it came from may be written to."""
    partial = file.with_suffix(".partial")
    try:
        shutil.copyfile(source, partial)
        if PlaneFile(partial).stamp.key != file.stem:
            raise CheckpointError(f"{source} changed while it was read: ask again when it is written")
        partial.rename(file)
    except OSError as error:
        raise SQFTError(f"{source} cannot be copied to {file.parent} ({error}): see {PLANE_DIR}") from error
    finally:
        partial.unlink(missing_ok=True)


def _lock(file: Path) -> Any:
    """One process at a time makes a plane; the others then find it. A context manager."""
    try:
        return FileLock(file.with_suffix(".lock")).acquire()
    except OSError as error:
        raise SQFTError(f"planes cannot be written to {file.parent} ({error.strerror}): see {PLANE_DIR}") from error


def _shown(ranks: Mapping[str, int]) -> str:
    numbers = set(ranks.values())
    return f"r{numbers.pop()}" if len(numbers) == 1 else "FILE.json"
