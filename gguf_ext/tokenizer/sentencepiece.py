"""A sentencepiece `tokenizer.model` → the `llama` tokenizer of llama.cpp, scores and all.

The file is one protocol buffer (sentencepiece_model.proto); its few fields are read here, so that neither protobuf nor
sentencepiece need be installed.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gguf_ext.arch import Config
from gguf_ext.errors import UnsupportedTokenizerError
from gguf_ext.tokenizer.chat_templates import DEFAULT, named_templates
from gguf_ext.tokenizer.vocabulary import SPACE, TokenKind, Vocabulary
from sqft_plugins.checkpoint.json_object import read_object
from sqft_plugins.errors import SQFTError

PIECES, TRAINER, NORMALIZER = 1, 2, 3  # fields of ModelProto
MODEL_TYPE = 3  # of TrainerSpec
SPECIAL_FIELDS = {"unk": 40, "bos": 41, "eos": 42, "pad": 43}  # of TrainerSpec; the defaults are the proto's
SPECIAL_DEFAULTS = {"unk": 0, "bos": 1, "eos": 2, "pad": -1}
ADD_DUMMY_PREFIX = 3  # of NormalizerSpec
BPE = 2


def read_sentencepiece(folder: Path, config: Config) -> Vocabulary:
    """The tokenizer of a folder whose only tokenizer is `tokenizer.model`, with the tokens added to it in JSON files.
    Raises UnsupportedTokenizerError for a damaged file or one that is not BPE."""
    file = folder / "tokenizer.model"
    try:
        pieces, trainer, normalizer = _model(file.read_bytes())
    except (IndexError, KeyError, TypeError, ValueError, AttributeError, struct.error) as error:
        raise UnsupportedTokenizerError(
            f"{file} is no sentencepiece model ({error}): copy it again, or give tokenizer.json"
        ) from error
    if trainer.get(MODEL_TYPE, 1) != BPE:
        raise UnsupportedTokenizerError(
            f"{file} is a unigram model, which llama.cpp's `llama` tokenizer is not: only BPE is supported"
        )
    settings = _json(folder / "tokenizer_config.json")
    added = _added_tokens(folder, settings, int(config["vocab_size"]))
    tokens = [text for text, _, _ in pieces]
    scores = [score for _, score, _ in pieces]
    kinds = [kind for _, _, kind in pieces]
    for token, kind in enumerate(kinds):
        if kind == TokenKind.USER_DEFINED:
            tokens[token] = tokens[token].replace(SPACE, " ")
    for token, (name, special) in sorted(added.items()):
        while len(tokens) <= token:
            tokens.append(f"[UNUSED{len(tokens)}]")
            scores.append(-1000.0)
            kinds.append(TokenKind.UNUSED)
        if kinds[token] not in (TokenKind.UNKNOWN, TokenKind.BYTE):
            tokens[token] = name
            kinds[token] = TokenKind.CONTROL if special else TokenKind.USER_DEFINED
    special_ids = {}
    for name, field in SPECIAL_FIELDS.items():
        wanted = config.get(f"{name}_token_id")
        wanted = next(iter(wanted), None) if isinstance(wanted, list) else wanted
        found = int(wanted) if wanted is not None else _signed(trainer.get(field, SPECIAL_DEFAULTS[name]))
        if 0 <= found < len(tokens):
            special_ids[name] = found
    return Vocabulary(
        model="llama",
        pre="default",
        tokens=tokens,
        kinds=[int(kind) for kind in kinds],
        scores=scores,
        merges=[],
        special=special_ids,
        add_bos=bool(settings.get("add_bos_token", True)),
        add_eos=bool(settings.get("add_eos_token", False)),
        space_prefix=bool(normalizer.get(ADD_DUMMY_PREFIX, 1)),
        chat_templates=_chat_templates(folder, settings),
        json={"added_tokens": [{"id": token, **entry} for token, entry in _flags(settings).items()]},
    )


def _chat_templates(folder: Path, settings: Mapping[str, Any]) -> dict[str, str]:
    """As transformers finds them: in files, else in tokenizer_config.json."""
    files = {DEFAULT: folder / "chat_template.jinja"}
    files |= {file.stem: file for file in sorted((folder / "additional_chat_templates").glob("*.jinja"))}
    found = {name: file.read_text(encoding="utf-8") for name, file in files.items() if file.is_file()}
    return found or named_templates(settings.get("chat_template"))


def _flags(settings: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    """Token → its entry in tokenizer_config.json, with the flags of added tokens; checked by `_added_tokens`."""
    return {int(token): dict(entry) for token, entry in settings.get("added_tokens_decoder", {}).items()}


def _added_tokens(folder: Path, settings: Mapping[str, Any], size: int) -> dict[int, tuple[str, bool]]:
    """Token → (text, whether it is special), of those that have a row in the embedding."""
    try:
        added = {int(token): (str(name), False) for name, token in _json(folder / "added_tokens.json").items()}
        for token, entry in settings.get("added_tokens_decoder", {}).items():
            added[int(token)] = (str(entry["content"]), bool(entry.get("special")))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, SQFTError):
            raise
        raise UnsupportedTokenizerError(
            f"added tokens of {folder} are damaged ({error!r}): copy tokenizer_config.json and added_tokens.json again"
        ) from error
    return {token: entry for token, entry in added.items() if 0 <= token < size}


def _model(data: bytes) -> tuple[list[tuple[str, float, int]], dict[int, int], dict[int, int]]:
    """Pieces (text, score, type), the fields of the trainer and those of the normalizer that are numbers."""
    pieces: list[tuple[str, float, int]] = []
    trainer: dict[int, int] = {}
    normalizer: dict[int, int] = {}
    for field, value in _fields(data):
        if field == PIECES:
            piece = dict(_fields(value))
            pieces.append((piece[1].decode(), float(piece.get(2, 0.0)), TokenKind(piece.get(3, TokenKind.NORMAL))))
        elif field == TRAINER:
            trainer = {name: number for name, number in _fields(value) if isinstance(number, int)}
        elif field == NORMALIZER:
            normalizer = {name: number for name, number in _fields(value) if isinstance(number, int)}
    if not pieces:
        raise ValueError("no pieces")
    return pieces, trainer, normalizer


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """(field number, value) of one protocol buffer: int for varints, float for 32 bits, bytes for the rest."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield tag >> 3, value
            continue
        if kind == 2:
            length, at = _varint(data, at)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise ValueError(f"wire type {kind}")
        if at + length > len(data):
            raise ValueError("cut off")
        piece = data[at : at + length]
        at += length
        yield tag >> 3, struct.unpack("<f", piece)[0] if kind == 5 else piece


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at
        if shift > 63:
            raise ValueError("number too long")


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def _json(file: Path) -> dict[str, Any]:
    return read_object(file, "copy it again") if file.is_file() else {}
