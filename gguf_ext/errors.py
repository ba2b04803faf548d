"""What can go wrong on the way to a GGUF file: one class a case, all raised before a byte is written.

Where the core has a class for the same case, ours is one of both: either name catches it.
"""

from __future__ import annotations

from pathlib import Path

from sqft_plugins.errors import CheckpointError, DependencyError, GridError, MismatchError, OutputExistsError, SQFTError

INSTALL = "pip install 'sqft-plugins[gguf]'"


class GGUFError(SQFTError):
    """Base of every error of gguf_ext."""


class UnsupportedArchitectureError(GGUFError):
    """The model is of a kind that has no table here, or uses an option that llama.cpp lacks."""


class UnmappedTensorError(GGUFError):
    """A tensor of the model has no place in the GGUF file, or one that the file needs is missing."""


class AdapterError(GGUFError):
    """An adapter that no LoRA file can hold: masked, quantization-aware, elastic, or of a kind that llama.cpp lacks."""


class MissingTokenizerError(GGUFError):
    """The model folder has no tokenizer."""


class UnsupportedTokenizerError(GGUFError):
    """llama.cpp has no tokenizer that would give the same token ids."""


class UnknownPreTokenizerError(GGUFError):
    """The pre-tokenizer of a byte-level BPE tokenizer is none that llama.cpp is known to have."""


class NonFiniteWeightError(GGUFError):
    """A weight is NaN or infinite, or becomes so in the wanted type."""


class ScaleRangeError(GGUFError, GridError):
    """A scale is outside fp16, where the blocks of a GGUF keep it."""


class ScaleNotExactError(GGUFError):
    """A scale is not exact in fp16."""


class BlockSizeError(GGUFError):
    """A row or a group is not a multiple of 32, the block of Q4_0 and Q5_0."""


class ActOrderError(GGUFError, CheckpointError):
    """The columns of an INT4 weight are not grouped in order, as the blocks of a GGUF are."""


class TargetExistsError(GGUFError, OutputExistsError):
    """The file to write, or a part of its split form, is there and `overwrite` was not asked for."""


class TemplateError(GGUFError):
    """A template GGUF does not fit the model: another base, another shape, or weights in an order that nobody knows."""


class ModelInMemoryError(GGUFError):
    """A model in memory that no folder could hold as it is: with an adapter, off its grid, or not loaded."""


class DamagedFileError(GGUFError):
    """A GGUF file is cut off or corrupt."""


class VerificationError(GGUFError):
    """The written file does not hold the weights of the model."""


class RuntimeFailedError(GGUFError):
    """llama.cpp could not load or run a file."""


class UnloadableFileError(RuntimeFailedError):
    """A file that llama.cpp would refuse, or end the process at: it is not given to it."""


class AdapterMismatchError(RuntimeFailedError, MismatchError):
    """A LoRA file belongs to another base than the loaded model, or is no LoRA file."""


class ContextError(GGUFError):
    """More tokens than the context of a loaded file holds. tokens: their number."""

    def __init__(self, tokens: int, context: int, path: str | Path):
        super().__init__(
            f"{tokens} tokens do not fit context={context} of {path}: shorten the text or its answer, or open the file "
            "with a larger context"
        )
        self.tokens = tokens


class UnknownAdapterError(GGUFError):
    """No adapter of that name is loaded."""


def missing_package(package: str) -> DependencyError:
    """The error for an optional package that is not installed."""
    return DependencyError(f"package {package} is not installed: {INSTALL}")
