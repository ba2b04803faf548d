"""The options of `sqft recover`."""

from __future__ import annotations

from pydantic import field_validator

from sqft_plugins.compress.calibration import check_texts
from sqft_plugins.compress.settings import TEXTS
from sqft_plugins.settings import Settings, option

BUILTIN = "builtin"
"""The name of the text that Python ships."""


class RecoverSettings(Settings):
    calibration: list[str] = option(
        list,
        "Text to learn on: a file or data set as for `sqft prune`, or builtin, the language reference that Python "
        "ships, which is the default. Of several the sequences come alike. Repeatable.",
        TEXTS,
        "name or file",
        metavar="FILE|DATASET|builtin",
    )
    sequences: int = option(640, "Sequences to learn on, each of them once.", ge=1)
    length: int = option(128, "Tokens of each sequence.", ge=2)
    batch_size: int = option(8, "Sequences a step.", ge=1)
    learning_rate: float = option(2e-4, "The largest: it rises in ten steps and falls as a cosine.", gt=0)
    seed: int = option(0, "Of the order of the sequences.", ge=0)

    @field_validator("calibration")
    @classmethod
    def _check_calibration(cls, value: list[str]) -> list[str]:
        for text in value:
            if text != BUILTIN:
                check_texts(text)
        return value

    @property
    def texts(self) -> list[str | None]:
        """As `calibration_texts` takes them."""
        return [None if text == BUILTIN else text for text in self.calibration or [BUILTIN]]

    @property
    def steps(self) -> int:
        return -(-self.sequences // self.batch_size)
