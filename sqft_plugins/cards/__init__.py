"""Model cards: the README.md that the hub shows of a folder.

    model.py     a model folder of `sqft prune`, `quantize` and `merge`; the card of its base stays below
    adapter.py   an adapter of `sqft train`, or one that PEFT saves

Both say facts that their callers hand over or that lie in the folder; templates/ holds the words.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

if TYPE_CHECKING:
    from jinja2 import Environment

CARD = "README.md"


def render(template: str, **values: Any) -> str:
    """The text of a card without its YAML head. template: a file in templates/. A value that the template lacks is an
    error, not an empty cell."""
    return _environment().get_template(template).render(values)


def hub_id(name: str | None) -> str | None:
    """The name of a base model as the hub takes it, OWNER/NAME or NAME; None for a folder, for the hub refuses a card
    that names a path. A folder in the hub's own cache has the name that it was downloaded by."""
    cached = re.search(r"models--([\w.-]+?)--([\w.-]+)/snapshots/", name or "")
    if cached:
        return f"{cached[1]}/{cached[2]}"

    if not name or name.startswith((".", "/", "~")) or Path(name).exists():
        return None
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(  # Markdown, not HTML: nothing is escaped
        loader=PackageLoader(__name__),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
