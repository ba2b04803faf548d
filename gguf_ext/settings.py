"""The options of `sqft export gguf`, described once: the command, `export_gguf` and `export_model` take these."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationInfo, field_validator, model_validator

from gguf_ext.errors import GGUFError
from gguf_ext.parts import check_file
from sqft_plugins.errors import nearest
from sqft_plugins.settings import Settings, option
from sqft_plugins.settings.checked import CheckedPath, parse_bytes

GGUF_FILE = CheckedPath(check_file)
CHOICES = {
    "float_type": ("auto", "f32", "f16", "bf16"),
    "embedding_type": ("auto", "f32", "f16", "bf16", "q8_0"),
    "rounding": ("refuse", "allow"),
}


class Options(Settings):
    """How to export. Raises GGUFError for an unknown value."""

    pre: str | None = option(
        None, "llama.cpp's name of the pre-tokenizer, where sqft does not know the tokenizer.", metavar="NAME"
    )
    float_type: str = option(
        "auto", "Of matrices that are not INT4: auto (the narrowest that is exact), f32, f16 or bf16.", metavar="TYPE"
    )
    embedding_type: str = option(
        "auto",
        "Of the token embedding and the output head: auto (as --float-type), f32, f16, bf16 or q8_0.",
        metavar="TYPE",
    )
    rounding: str = option(
        "refuse",
        "Of INT4 scales that fp16 does not hold exactly; the largest error is reported.",
        metavar="refuse|allow",
    )
    split_max_size: int | str | None = option(None, "Write a larger file in parts, such as 2G or 500M.", metavar="SIZE")
    template_gguf: str | Path | None = option(
        None,
        "A file of the same base: its tokenizer and, where sqft has no table for the model, its names and metadata.",
        GGUF_FILE,
        metavar="BASE.gguf",
    )

    @field_validator(*CHOICES)
    @classmethod
    def _known(cls, value: str, info: ValidationInfo) -> str:
        check_choice(str(info.field_name), value)
        return value

    @model_validator(mode="after")
    def _together(self) -> Options:
        if self.pre is not None and self.template_gguf is not None:
            raise GGUFError(f"--pre {self.pre}: the template has a tokenizer with its own: leave one of both out")
        if self.split_max_size is not None and not self.limit:
            raise GGUFError(f"--split-max-size {self.split_max_size} is no size: write such as 2G or 500M")
        return self

    @property
    def limit(self) -> int | None:
        """Bytes of a file, None where there is no limit. G and M are thousands, as llama.cpp counts."""
        return None if self.split_max_size is None else parse_bytes(self.split_max_size)


def check_choice(option: str, value: str) -> None:
    """Raises GGUFError for a value that the option does not have."""
    if value not in CHOICES[option]:
        hint = "; for INT4 run `sqft quantize` first" if value.startswith(("q4", "q5")) else ""
        raise GGUFError(f"{option}={value!r} is unknown: {nearest(value, CHOICES[option])}{hint}")
