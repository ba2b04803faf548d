"""A sentencepiece `tokenizer.model` → the `llama` tokenizer of llama.cpp, scores and all.

The file is one protocol buffer, whose definition the sentencepiece package brings along. Its `SentencePieceProcessor`
does not distinguish user-defined pieces from normal ones, nor whether a text gets a space in front.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gguf_ext.arch import Config
from gguf_ext.errors import UnsupportedTokenizerError, missing_package
from gguf_ext.tokenizer.chat_templates import DEFAULT, named_templates
from gguf_ext.tokenizer.vocabulary import SPACE, TokenKind, Vocabulary
from sqft_plugins.checkpoint.json_object import read_object

SPECIAL = ("unk", "bos", "eos", "pad")


def read_sentencepiece(folder: Path, config: Config) -> Vocabulary:
    """The tokenizer of a folder whose only tokenizer is `tokenizer.model`, with the tokens added to it in JSON files.
    Raises UnsupportedTokenizerError for a damaged file or one that is not BPE, DependencyError."""
    file = folder / "tokenizer.model"
    model = _parsed(file)
    if model.trainer_spec.model_type != model.trainer_spec.BPE:
        raise UnsupportedTokenizerError(
            f"{file} is a unigram model, which llama.cpp's `llama` tokenizer is not: only BPE is supported"
        )

    # the pieces of the model
    tokens = [piece.piece for piece in model.pieces]
    scores = [piece.score for piece in model.pieces]
    kinds = [int(piece.type) for piece in model.pieces]
    for token, kind in enumerate(kinds):
        if kind == TokenKind.USER_DEFINED:
            tokens[token] = tokens[token].replace(SPACE, " ")

    # the tokens that JSON files add to them, or rename
    settings = _json(folder / "tokenizer_config.json")
    added = _added_tokens(folder, settings)
    for token in sorted(token for token in added if 0 <= token < int(config["vocab_size"])):
        while len(tokens) <= token:
            tokens.append(f"[UNUSED{len(tokens)}]")
            scores.append(-1000.0)
            kinds.append(int(TokenKind.UNUSED))
        if kinds[token] not in (TokenKind.UNKNOWN, TokenKind.BYTE):
            tokens[token] = added[token]["content"]
            kinds[token] = int(TokenKind.CONTROL if added[token].get("special") else TokenKind.USER_DEFINED)

    return Vocabulary(
        model="llama",
        tokens=tokens,
        kinds=kinds,
        scores=scores,
        special=_special(config, model.trainer_spec, len(tokens)),
        add_bos=bool(settings.get("add_bos_token", True)),
        add_eos=bool(settings.get("add_eos_token", False)),
        space_prefix=model.normalizer_spec.add_dummy_prefix,
        chat_templates=_chat_templates(folder, settings),
        json={"added_tokens": [{**entry, "id": token} for token, entry in added.items()]},
    )


def _special(config: Config, trainer: Any, size: int) -> dict[str, int]:
    """Name → token id: by config.json, else by the model."""
    special = {}
    for name in SPECIAL:
        wanted = config.get(f"{name}_token_id")
        wanted = next(iter(wanted), None) if isinstance(wanted, list) else wanted
        found = int(wanted) if wanted is not None else getattr(trainer, f"{name}_id")
        if 0 <= found < size:
            special[name] = found
    return special


def _chat_templates(folder: Path, settings: Mapping[str, Any]) -> dict[str, str]:
    """As transformers finds them: in files, else in tokenizer_config.json."""
    files = {DEFAULT: folder / "chat_template.jinja"}
    files |= {file.stem: file for file in sorted((folder / "additional_chat_templates").glob("*.jinja"))}
    found = {name: file.read_text(encoding="utf-8") for name, file in files.items() if file.is_file()}
    return found or named_templates(settings.get("chat_template"))


def _added_tokens(folder: Path, settings: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    """Token → its text (`content`) and its flags (`special`, `lstrip`, …)."""
    named = _json(folder / "added_tokens.json")
    try:
        added: dict[int, dict[str, Any]] = {int(token): {"content": str(name)} for name, token in named.items()}
        for token, entry in settings.get("added_tokens_decoder", {}).items():
            added[int(token)] = {**entry, "content": str(entry["content"])}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UnsupportedTokenizerError(
            f"added tokens of {folder} are damaged ({error!r}): copy tokenizer_config.json and added_tokens.json again"
        ) from error
    return added


def _parsed(file: Path) -> Any:
    """The `ModelProto` of a file. Raises UnsupportedTokenizerError for a damaged file, DependencyError."""
    try:
        from google.protobuf.message import DecodeError
        from sentencepiece import sentencepiece_model_pb2
    except ImportError as error:
        raise missing_package("sentencepiece or protobuf") from error

    definition: Any = sentencepiece_model_pb2
    model = definition.ModelProto()
    try:
        model.ParseFromString(file.read_bytes())
    except DecodeError as error:
        raise _damaged(file, str(error)) from error
    if not model.pieces:
        raise _damaged(file, "no pieces")
    if any(isinstance(piece.piece, bytes) for piece in model.pieces):
        raise _damaged(file, "a piece that is not UTF-8")
    return model


def _damaged(file: Path, why: str) -> UnsupportedTokenizerError:
    return UnsupportedTokenizerError(f"{file} is no sentencepiece model ({why}): copy it again, or give tokenizer.json")


def _json(file: Path) -> dict[str, Any]:
    return read_object(file, "copy it again") if file.is_file() else {}
