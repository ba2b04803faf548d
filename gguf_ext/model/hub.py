"""Models by the names that users write: a path, or org/name-GGUF:Q4_K_M, which is a file of a repository on the hub."""

from __future__ import annotations

import re
from pathlib import Path

from gguf_ext.errors import GGUFError
from gguf_ext.parts import MAGIC, part_name
from sqft_plugins.errors import first_line
from sqft_plugins.progress import say

NAME = re.compile(r"(?P<repository>[\w-][\w.-]*/[\w.-]+):(?P<tag>[\w.-]+)")
END = ".gguf"


def is_gguf(model: str | Path) -> bool:
    """Whether a path or name is that of a GGUF file: it ends so or begins so, or names a repository and a type."""
    path = Path(model)
    if not path.is_file():
        return path.suffix == END or (not path.exists() and NAME.fullmatch(str(model)) is not None)
    with open(path, "rb") as file:
        return path.suffix == END or file.read(len(MAGIC)) == MAGIC


def locate(model: str | Path) -> Path:
    """The file of a path or a name, of several parts the first. A file of the hub is downloaded into its cache first,
    as llama.cpp does it: the one whose name has the type, in small or capital letters, as a word of its own.

    Raises GGUFError for a file that is not there, a repository that the hub does not have, and where no file or more
    than one is meant.
    """
    named = NAME.fullmatch(str(model))
    if named is None or Path(model).exists():
        if not Path(model).is_file():
            raise GGUFError(f"model {model} is not there: check the path")
        return Path(model)
    return _of_hub(str(model), named["repository"], named["tag"])


def _of_hub(model: str, repository: str, tag: str) -> Path:
    from huggingface_hub import snapshot_download

    say(f"{model}: asking the hub")
    patterns = [f"*{spelled}*{END}" for spelled in dict.fromkeys((tag, tag.upper(), tag.lower()))]
    patterns += [f"*{spelled}*/*{END}" for spelled in dict.fromkeys((tag, tag.upper(), tag.lower()))]
    try:
        folder = Path(snapshot_download(repository, allow_patterns=patterns))
    except (OSError, ValueError) as error:  # what the hub's package raises is one of them
        raise GGUFError(
            f"model {model} is not to be had from the hub: check the name, or give the path of a file "
            f"({first_line(error, 120)})"
        ) from error

    # of parts the first; a projector of images is no language model
    word = re.compile(rf"(^|[^A-Za-z0-9]){re.escape(tag)}($|[^A-Za-z0-9_])", re.IGNORECASE)
    files = sorted(file for file in folder.rglob(f"*{END}") if word.search(str(file.relative_to(folder))))
    files = [file for file in files if not file.name.startswith("mmproj") and _is_first(file)]
    if len(files) != 1:
        found = ", ".join(str(file.relative_to(folder)) for file in files) or "no file"
        raise GGUFError(f"model {model} means {found} of {repository}: give the path of one of its files")
    return files[0]


def _is_first(file: Path) -> bool:
    part = part_name(file.name)
    return part is None or part.index == 0
