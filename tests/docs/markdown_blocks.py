"""Finds the fenced code blocks of a Markdown page, and why one is not run: `<!-- not run: reason -->` above it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

FENCE = re.compile(r"^```(\w*)$")
NOT_RUN = re.compile(r"^<!-- not run: (.+?) -->$")


@dataclass(frozen=True)
class Block:
    """One code block. line: where its first line of code stands. reason: why it is not run, empty where it is."""

    page: Path
    line: int
    language: str
    text: str
    reason: str

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks_of(page: Path) -> list[Block]:
    """The fenced blocks of a page, in their order."""
    lines = page.read_text().split("\n")
    found: list[Block] = []
    index = 0
    while index < len(lines):
        if fence := FENCE.match(lines[index].rstrip()):
            end = next(i for i in range(index + 1, len(lines)) if lines[i].strip() == "```")
            mark = NOT_RUN.match(lines[index - 1].strip()) if index else None
            text = "\n".join(lines[index + 1 : end])
            found.append(Block(page, index + 2, fence[1], text, mark[1] if mark else ""))
            index = end
        index += 1
    return found


def shell_commands(text: str) -> list[str]:
    """The commands of a shell block: continued lines joined, comments and empty lines left out."""
    joined = re.sub(r"\\\n\s*", "", text)
    return [line.strip() for line in joined.split("\n") if line.strip() and not line.strip().startswith("#")]
