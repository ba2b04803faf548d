"""What installs: uv, set up as the user's pip is; pip where uv cannot be had."""

from __future__ import annotations

import ast
import os
import re
import subprocess
from pathlib import Path

from install_common import ROOT, read_pyproject, say
from install_lanes import Lane
from install_pins import requirement_name, requirements

PLACES = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_EXTRA_INDEX_URL",
    "find-links": "UV_FIND_LINKS",
    "trusted-host": "UV_INSECURE_HOST",
    "cert": "SSL_CERT_FILE",
    "default-timeout": "UV_HTTP_TIMEOUT",
    "timeout": "UV_HTTP_TIMEOUT",
}
"""Setting of pip → what uv calls it."""
NO_MATTER = {
    *("constraint", "proxy", "cache-dir", "no-cache-dir"),
    *("disable-pip-version-check", "retries", "require-virtualenv"),
    *("progress-bar", "quiet", "verbose", "no-color", "no-input", "no-compile", "root-user-action"),
    "break-system-packages",
}
"""Settings of pip that uv need not know, or (the first four) is told in another way."""


def pip(python: Path, *arguments: str) -> list[str]:
    return [str(python), "-m", "pip", *arguments]


def uv() -> str:
    """The uv that installs, as pyproject.toml asks for it."""
    return next(each for each in requirements(read_pyproject()["project"], ["dev"]) if requirement_name(each) == "uv")


def pip_settings(listed: str) -> dict[str, list[str]]:
    """`pip config list` → setting: its values. A PIP_* variable wins over a file, as in pip."""
    found: dict[str, dict[str, list[str]]] = {"global": {}, "install": {}, ":env:": {}}
    for line in listed.splitlines():
        match = re.fullmatch(r"(global|install|:env:)\.([\w-]+)=(['\"].*['\"])", line.strip())
        if match:
            found[match[1]][match[2].replace("_", "-")] = str(ast.literal_eval(match[3])).split()
    return {**found["global"], **found["install"], **found[":env:"]}


def uv_environment(settings: dict[str, list[str]]) -> dict[str, str]:
    """What tells uv where the user's pip looks for packages. Of all indices the best version is taken, as by pip."""
    wanted = {"UV_INDEX_STRATEGY": "unsafe-best-match"}
    for setting, variable in PLACES.items():
        if setting in settings:
            wanted[variable] = ("," if variable == "UV_FIND_LINKS" else " ").join(settings[setting])

    if "cert" not in settings:
        wanted["UV_SYSTEM_CERTS"] = "true"  # as pip; uv on its own trusts only what it brings
    if "proxy" in settings:
        wanted |= dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), " ".join(settings["proxy"]))

    # The cache of pip is of no use to uv, but it says where one may be. Without any, each lane would fetch all anew.
    if "no-cache-dir" in settings:
        wanted["UV_CACHE_DIR"] = str(ROOT / ".cache" / "uv")
    elif "cache-dir" in settings:
        wanted["UV_CACHE_DIR"] = str(Path(" ".join(settings["cache-dir"])) / "uv")
    return wanted


def untold(settings: dict[str, list[str]]) -> str:
    """A clause with the settings that uv has no word for, empty where there are none."""
    unknown = sorted(set(settings) - {*PLACES, *NO_MATTER})
    return f"uv cannot be told your pip's {', '.join(unknown)}" if unknown else ""


def read_pip_settings(python: Path) -> dict[str, list[str]]:
    """What `python`'s pip is set to, nothing where it does not run."""
    try:
        return pip_settings(subprocess.run(pip(python, "config", "list"), capture_output=True, text=True).stdout)
    except OSError:
        return {}


class Tool:
    """Installs into a lane's environment by uv, or by pip: `why_pip` then says why."""

    def __init__(self, lane: Lane, settings: dict[str, list[str]], why_pip: str = ""):
        self.lane, self.why_pip = lane, why_pip
        self.users_constraints = settings.get("constraint", [])
        self.environment = {**uv_environment(settings), **os.environ}

    def install(self, *arguments: str, constraints: Path | None = None) -> list[str]:
        """The command that installs, held to the lane's pins or to other constraints."""
        arguments = ("-c", str(constraints or self.lane.allowed_pins), *arguments)
        if self.why_pip:
            # --no-compile: of 11,000 files, a program imports a part, and Python compiles it then.
            return pip(self.lane.python, "install", "--progress-bar=off", "--no-compile", *arguments)
        command = str(self.lane.venv / "bin" / "uv")
        more = [f"--constraints={each}" for each in self.users_constraints]  # pip knows them
        return [command, "pip", "install", "--no-progress", "--python", str(self.lane.python), *more, *arguments]


def get_tool(lane: Lane, settings: dict[str, list[str]]) -> Tool:
    """uv, put into the environment by pip, unless pip is set to something that uv has no word for."""
    why = untold(settings)
    if not why:
        got = subprocess.run(pip(lane.python, "install", "--quiet", uv()), capture_output=True, text=True)
        if got.returncode:
            why = f"uv cannot be had ({(got.stderr.strip().splitlines() or ['no message'])[-1][:200]})"
    if why:
        say(f"{why}: pip installs, which takes longer")
    return Tool(lane, settings, why)
