"""HTML out of calls, so that nothing gets into the page unescaped."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from typing import Any

VOID = frozenset({"br", "meta"})
"""Elements that have no end tag."""
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")


class Markup(str):
    """Text that is HTML already: `tag` made it."""

    __slots__ = ()


def text(value: Any) -> Markup:
    """Any text as HTML. Control characters and bytes of a file name that are no UTF-8 are shown as U+FFFD."""
    return value if isinstance(value, Markup) else Markup(html.escape(_CONTROL.sub("�", str(value))))


def tag(name: str, /, *children: Any, **attributes: Any) -> Markup:
    """One element. children: Markup, texts, numbers, or iterables of them; None is left out. attributes: `class_` is
    class, `stroke_width` is stroke-width; None is left out, True stands alone."""
    parts = [name]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        parts.append(key if value is True else f'{key}="{text(_number(value))}"')
    opened = f"<{' '.join(parts)}>"
    return Markup(opened if name in VOID else f"{opened}{join(children)}</{name}>")


def join(children: Iterable[Any]) -> Markup:
    """The children one after the other."""
    out = []
    for child in children:
        if child is None:
            continue
        if isinstance(child, str | int | float):
            out.append(text(child))
        else:
            out.append(join(child))
    return Markup("".join(out))


def _number(value: Any) -> Any:
    """Coordinates with two decimals at most: they are most of a chart's bytes."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else value
