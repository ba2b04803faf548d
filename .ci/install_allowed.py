"""Pins beside the constraints of the user's own pip: `python install_allowed.py PINS CONSTRAINTS...` prints the pins,
each one that a constraint forbids replaced by that constraint.

Run by a lane's Python. A cap such as `torch<=2.14.1`, set for a whole machine, would otherwise end the installation of
the newest pins. The constraints hold beside the pins, too: so what is not read here (a file that a file names, one on
the web) is obeyed, and where it contradicts a pin, the installation ends with the message of pip or uv.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

try:
    from packaging.requirements import InvalidRequirement, Requirement
    from packaging.utils import canonicalize_name
except ImportError:  # a new environment has pip alone, which brings its own
    from pip._vendor.packaging.requirements import InvalidRequirement, Requirement
    from pip._vendor.packaging.utils import canonicalize_name


def allowed(pins: str, constraints: str) -> tuple[str, list[str]]:
    """The pins that the constraints leave → their text, and a sentence for each that was replaced."""
    caps = []
    for line in constraints.replace("\\\n", " ").splitlines():
        try:
            cap = Requirement(re.sub(r"(^|\s)(#|--hash).*", "", line).strip())
        except InvalidRequirement:
            continue  # nothing, or an option
        if cap.marker is None or cap.marker.evaluate():
            caps.append(cap)

    lines, replaced = [], []
    for line in pins.splitlines():
        if line and not line.startswith("#"):
            pinned = Requirement(line)
            version = str(pinned.specifier).removeprefix("==")
            for cap in caps:
                same = canonicalize_name(cap.name) == canonicalize_name(pinned.name)
                if same and (cap.url or not cap.specifier.contains(version, prereleases=True)):
                    replaced.append(f"{cap} in place of {line}, because your pip's constraints ask for it")
                    line = str(cap)
        lines.append(line)
    return "".join(f"{line}\n" for line in lines), replaced


if __name__ == "__main__":
    here = [Path(name).read_text() for name in sys.argv[2:] if "://" not in name]
    text, sentences = allowed(Path(sys.argv[1]).read_text(), "\n".join(here))
    print(text, end="")
    for sentence in sentences:
        print(sentence, file=sys.stderr)
