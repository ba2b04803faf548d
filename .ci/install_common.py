"""What the scripts of the install share: places, the one-line error, pip's command line."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
PIP_LOG = VENV / "install.log"
CONSTRAINTS = ROOT / "constraints.txt"


class InstallError(Exception):
    """One clear line for the user."""


def say(text: str) -> None:
    print(f"install: {text}", flush=True)


def pip(*arguments: str) -> list[str]:
    return [str(PYTHON), "-m", "pip", *arguments]


def pip_install(*arguments: str, constraints: Path = CONSTRAINTS) -> list[str]:
    return pip("install", "--progress-bar=off", "-c", str(constraints), *arguments)
