"""Licence, languages, tags and base of a model from the head of its model card (README.md), for `general.*`."""

from __future__ import annotations

from typing import Any

from huggingface_hub import ModelCard

from gguf_ext.arch import Entry
from gguf_ext.memory import ModelInMemory
from sqft_plugins.checkpoint import ModelFolder
from sqft_plugins.progress import say

CARD = "README.md"
HUB = "https://huggingface.co"


def card_entries(folder: ModelFolder) -> list[Entry]:
    """What llama.cpp and hubs show of a model beside its name. Nothing where it has no card; a card that cannot be read
    is left out with a warning. A base that the stamp names comes before that of the card."""
    read = _read(folder)
    entries = [
        Entry(f"general.{key}", str(read[field]), "string")
        for key, field in (("license", "license"), ("license.name", "license_name"), ("license.link", "license_link"))
        if isinstance(read.get(field), str)
    ]

    for key, field in (("tags", "tags"), ("languages", "language")):
        if values := _texts(read.get(field)):
            entries.append(Entry(f"general.{key}", values, "strings"))

    stamped = folder.stamp.base if folder.stamp else None
    bases = [stamped] if stamped else _texts(read.get("base_model"))
    if bases:
        entries.append(Entry("general.base_model.count", len(bases), "uint32"))

    for index, base in enumerate(bases):
        name = base.rstrip("/").rpartition("/")
        entries.append(Entry(f"general.base_model.{index}.name", name[2], "string"))
        if not stamped and name[0] and "/" not in name[0]:  # OWNER/NAME, as hubs have it
            entries.append(Entry(f"general.base_model.{index}.organization", name[0], "string"))
            entries.append(Entry(f"general.base_model.{index}.repo_url", f"{HUB}/{base}", "string"))
    return entries


def _texts(value: Any) -> list[str]:
    """A card has one text or several."""
    values = value if isinstance(value, list) else [value]
    return [item for item in values if isinstance(item, str)]  # YAML takes Norwegian, `no`, for False


def _read(folder: ModelFolder) -> dict[str, Any]:
    place = folder.like if isinstance(folder, ModelInMemory) else folder
    if place is None or not (place.path / CARD).is_file():
        return {}
    try:
        head: dict[str, Any] = ModelCard.load(place.path / CARD, ignore_metadata_errors=True).data.to_dict()
    except Exception as error:  # YAML's and the hub's own kinds
        say(f"{place.path}/{CARD} has no head that can be read ({type(error).__name__}): licence and tags are left out")
        return {}
    return head
