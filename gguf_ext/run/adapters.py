"""LoRA files over a loaded model of llama.cpp: read once, then switched, mixed and scaled.

llama.cpp adds `scale * (alpha / r) * B @ A` of every active file to the output of a layer, whatever type the layer's
weight has; the files that `sqft export gguf-lora` writes have alpha / r folded in.
"""

from __future__ import annotations

import ctypes
import math
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gguf_ext.errors import AdapterMismatchError, GGUFError, RuntimeFailedError, UnknownAdapterError
from gguf_ext.reader import GGUFFile
from gguf_ext.run.backend import forget_errors, last_error, library
from gguf_ext.run.loadable import check_lora
from sqft_plugins.errors import nearest
from sqft_plugins.identity import file_hash

ALORA = "adapter.alora.invocation_tokens"


class Adapters:
    """The LoRA files of one model and one context. files: name → file. active: name → scale, of those that are on."""

    def __init__(self, model: Any, context: Any, base: GGUFFile):
        """model, context: llama.cpp's pointers; the owner calls `close` before it frees them. base: their file, whose
        metadata (all tokens) is not kept."""
        self._c, self._model, self._context = library(), model, context
        self._path, self._architecture = base.path, base.metadata.get("general.architecture")
        self._handles: dict[str, Any] = {}
        self._identities: dict[str, str] = {}
        self.files: dict[str, Path] = {}
        self.active: dict[str, float] = {}

    def add(self, name: str, file: str | Path) -> None:
        """Reads a file; it is off. Raises GGUFError for a name that is taken and a missing or damaged file,
        AdapterMismatchError for a file that is no LoRA of this model, UnloadableFileError for a file that llama.cpp
        would die of."""
        if name in self.files:
            raise GGUFError(f"adapter {name!r} is there already ({self.files[name]}): give {file} another name")
        if not Path(file).is_file():
            raise GGUFError(f"adapter {file} is not a file: give a LoRA file that `sqft export gguf-lora` wrote")

        read = GGUFFile(file)
        self._check(read.metadata, file)
        check_lora(read)

        forget_errors()
        content = file_hash(Path(file))  # before llama.cpp reads it: what is written meanwhile is another file
        handle = self._c.llama_adapter_lora_init(self._model, os.fsencode(file))
        if not handle:
            raise AdapterMismatchError(
                f"llama.cpp cannot add {file} to {self._path} ({last_error()}): export it for this base"
            )
        self._handles[name], self.files[name], self._identities[name] = handle, Path(file), content

    def set(self, scales: Mapping[str, float]) -> bool:
        """Makes these (name → scale) the active ones, and no others; a scale of 0 is off. → whether anything changed:
        then what the context remembers of a text is stale. Raises UnknownAdapterError, GGUFError for a scale that is
        no finite number."""
        for name, scale in scales.items():
            if name not in self._handles:
                raise UnknownAdapterError(f"adapter {name!r} is unknown: {nearest(name, self.files)}")
            if not math.isfinite(scale):
                raise GGUFError(f"scale={scale} of adapter {name!r} is no finite number: give one such as 1.0")

        wanted = {name: float(scale) for name, scale in scales.items() if scale}
        if wanted == self.active:
            return False

        count = len(wanted)
        forget_errors()
        handles = (self._c.llama_adapter_lora_p_ctypes * count)(*(self._handles[name] for name in wanted))
        if code := self._c.llama_set_adapters_lora(
            self._context, handles, count, (ctypes.c_float * count)(*wanted.values())
        ):
            raise RuntimeFailedError(f"llama.cpp cannot use {', '.join(wanted)} (code {code}, {last_error()})")
        self.active = wanted
        return True

    @property
    def signature(self) -> tuple[int, ...]:
        """Tells one setting from another, in any process: () for the bare model, else one negative number, which is no
        token."""
        if not self.active:
            return ()
        parts = [(self._identities[name], scale) for name, scale in self.active.items()]
        return (-1 - zlib.crc32(repr(sorted(parts)).encode()),)

    def close(self) -> None:
        """Switches all off and frees them; a second call does nothing."""
        if self._handles:
            self._c.llama_set_adapters_lora(self._context, None, 0, None)
            for handle in self._handles.values():
                self._c.llama_adapter_lora_free(handle)
        for held in (self._handles, self._identities, self.files, self.active):
            held.clear()

    def _check(self, metadata: Mapping[str, Any], file: str | Path) -> None:
        if metadata.get("general.type") != "adapter":
            raise AdapterMismatchError(
                f"{file} is no LoRA file (general.type {metadata.get('general.type')!r}): write one with "
                "`sqft export gguf-lora`"
            )
        if metadata.get(ALORA):
            raise AdapterMismatchError(
                f"{file} has {ALORA}: llama.cpp's library would have it always on, not from these tokens on; run it in "
                "llama-server, or in PEFT"
            )

        if (found := metadata.get("general.architecture")) != self._architecture:
            raise AdapterMismatchError(
                f"adapter {file} is for {found}, {self._path} is {self._architecture}: export it for this base"
            )
