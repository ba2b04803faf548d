"""What installs: uv, set up as the user's pip is, in a third of pip's time; pip where uv cannot be had."""

from __future__ import annotations

import ast
import os
import re
import subprocess
from pathlib import Path

from install_common import say
from install_lanes import Lane

UV = "uv==0.13.9"

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
    *("constraint", "disable-pip-version-check", "cache-dir", "no-cache-dir", "retries", "require-virtualenv"),
    *("progress-bar", "quiet", "verbose", "no-color", "no-input", "no-compile", "root-user-action"),
    "break-system-packages",
}
"""Settings of pip that uv need not know; `constraint` is install_allowed.py's."""


def pip(python: Path, *arguments: str) -> list[str]:
    return [str(python), "-m", "pip", *arguments]


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
    return wanted


def read_pip_settings(python: Path) -> dict[str, list[str]]:
    return pip_settings(subprocess.run(pip(python, "config", "list"), capture_output=True, text=True).stdout)


class Tool:
    """Installs into a lane's environment by uv, or by pip: `why_pip` then says why."""

    def __init__(self, lane: Lane, settings: dict[str, list[str]], why_pip: str = ""):
        self.lane, self.why_pip = lane, why_pip
        self.environment = {**uv_environment(settings), **os.environ}

    def install(self, *arguments: str, constraints: Path | None = None) -> list[str]:
        """The command that installs, held to the lane's pins or to other constraints."""
        arguments = ("-c", str(constraints or self.lane.allowed_pins), *arguments)
        if self.why_pip:
            # --no-compile: of 11,000 files, a program imports a part, and Python compiles it then.
            return pip(self.lane.python, "install", "--progress-bar=off", "--no-compile", *arguments)
        uv = str(self.lane.venv / "bin" / "uv")
        return [uv, "pip", "install", "--no-progress", "--python", str(self.lane.python), *arguments]


def get_tool(lane: Lane, settings: dict[str, list[str]]) -> Tool:
    """uv, put into the environment by pip, unless pip is set to something that uv has no word for."""
    unknown = sorted(set(settings) - {*PLACES, *NO_MATTER})
    why = f"uv cannot be told your pip's {', '.join(unknown)}" if unknown else ""
    # `packaging` is what install_allowed.py reads pins with.
    wanted = ["packaging"] if unknown else ["packaging", UV]
    got = subprocess.run(pip(lane.python, "install", "--quiet", *wanted), capture_output=True, text=True)
    if got.returncode and not why:
        why = f"uv cannot be had ({(got.stderr.strip().splitlines() or ['no message'])[-1][:200]})"
        subprocess.run(pip(lane.python, "install", "--quiet", "packaging"), capture_output=True)
    if why:
        say(f"{why}: pip installs, which takes longer")
    return Tool(lane, settings, why)
