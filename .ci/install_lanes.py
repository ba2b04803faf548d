"""The lanes: environments with a file of pins each, in which the same tests run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from install_common import ROOT

CUDA_GB = 5
"""What PyPI's build of torch needs beyond the CPU build."""


@dataclass(frozen=True)
class Lane:
    """An environment, and what belongs into it."""

    name: str
    venv: Path
    pins: Path
    extras: tuple[str, ...]
    """Of pyproject.toml."""
    disk_gb: int
    """What it needs with the CPU build of torch."""
    vllm: bool = False

    @property
    def python(self) -> Path:
        return self.venv / "bin" / "python"

    @property
    def log(self) -> Path:
        return self.venv / "install.log"

    @property
    def allowed_pins(self) -> Path:
        """The pins as the user's own constraints leave them (install_allowed.py)."""
        return self.venv / "pins.txt"


def lane(name: str, venv: str, pins: str, extras: tuple[str, ...], disk_gb: int, vllm: bool = False) -> Lane:
    return Lane(name, ROOT / venv, ROOT / "pins" / f"{pins}.txt", extras, disk_gb, vllm)


LANES = {
    each.name: each
    for each in (
        lane("demo", ".venv", "vllm", ("demo",), 2),
        lane("vllm", ".venv", "vllm", ("demo", "dev"), 5, vllm=True),
        lane("newest", ".venv-newest", "newest", ("demo", "dev"), 3),
        lane("oldest", ".venv-oldest", "oldest", ("demo", "dev"), 3),
    )
}
"""By name. Of two in one folder, the later one has everything of the earlier one."""
