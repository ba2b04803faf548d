"""Pins beside the constraints of the user's own pip: `python install_allowed.py PINS CONSTRAINTS...` prints the pins,
each one that a constraint forbids replaced by that constraint.

Run by a lane's Python, which has `packaging`. A cap such as `torch<=2.14.1`, set for a whole machine, would otherwise
end the installation of the newest pins.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path


def allowed(pins: str, constraints: str) -> tuple[str, list[str]]:
    """The pins that the constraints leave → their text, and a sentence for each that was replaced."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    caps = []
    for line in constraints.splitlines():
        line = re.sub(r"(^|\s)#.*", "", line).strip()
        if not line or line.startswith("-") or "@" in line or "/" in line:
            continue  # an option, or a file: no cap
        cap = Requirement(line)
        if cap.marker is None or cap.marker.evaluate():
            caps.append(cap)

    lines, replaced = [], []
    for line in pins.splitlines():
        if line and not line.startswith("#"):
            pinned = Requirement(line)
            version = str(pinned.specifier).removeprefix("==")
            for cap in caps:
                same = canonicalize_name(cap.name) == canonicalize_name(pinned.name)
                if same and not cap.specifier.contains(version, prereleases=True):
                    replaced.append(f"{cap} in place of {line}, because your pip's constraints ask for it")
                    line = str(cap)
        lines.append(line)
    return "".join(f"{line}\n" for line in lines), replaced


if __name__ == "__main__":
    text, sentences = allowed(Path(sys.argv[1]).read_text(), "\n".join(Path(p).read_text() for p in sys.argv[2:]))
    print(text, end="")
    for sentence in sentences:
        print(sentence, file=sys.stderr)
