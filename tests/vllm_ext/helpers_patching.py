"""vLLM's own methods again, for a comparison in one process."""

from __future__ import annotations

from vllm_ext.patching import Replacement


def restore(*replacements: Replacement) -> None:
    for replacement in replacements:
        if replacement.is_applied:
            setattr(replacement.owner, replacement.name, replacement.original)
