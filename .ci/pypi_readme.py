"""Writes README.md, in place, with whole addresses in place of its relative links, which are dead on PyPI.

    python .ci/pypi_readme.py OWNER/NAME COMMIT

The release workflow does it before it builds; in the repository they stay relative, so that they work in a clone and a
fork. Exit status 1 for a link to a file that is not there.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(!?)(\[[^]]*\]\()(?![a-z]+:|#)([^)#\s]+)")
"""`[text](docs/page.md#part)`: whether it is a picture, its text, the file."""


def whole(text: str, repository: str, commit: str) -> str:
    """The text with whole addresses, but for blocks of code. Raises FileNotFoundError for a file that is not there."""

    def address(link: re.Match[str]) -> str:
        picture, words, file = link.groups()
        if not (ROOT / file).exists():
            raise FileNotFoundError(f"README.md links to {file}, which is not there: correct the link")
        site = "https://raw.githubusercontent.com" if picture else "https://github.com"
        return f"{picture}{words}{site}/{repository}/{'' if picture else 'blob/'}{commit}/{file}"

    parts = re.split(r"(^```.*?^```)", text, flags=re.DOTALL | re.MULTILINE)
    return "".join(part if part.startswith("```") else LINK.sub(address, part) for part in parts)


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repository", help="OWNER/NAME on GitHub")
    parser.add_argument("commit", help="whose files the links lead to")
    given = parser.parse_args(words)

    readme = ROOT / "README.md"
    try:
        readme.write_text(whole(readme.read_text(encoding="utf-8"), given.repository, given.commit), encoding="utf-8")
    except FileNotFoundError as error:
        print(f"pypi_readme: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
