"""At which tokens a text ends: what transformers' `generate` stops at, and what llama.cpp does.

transformers takes the list of generation_config.json, or of config.json. llama.cpp has no list: it ends a text at
`eos`, `eot` and `eom`, at three tokens of infilling, and at every token whose text it knows
(llama-vocab.cpp, `special_eog_ids`). So what a model names beyond that gets one of its free places.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gguf_ext.arch import Config
from gguf_ext.memory import ModelInMemory
from gguf_ext.tokenizer.keys import DEFAULT_IDS, MODEL, TOKENS, id_key
from sqft_plugins.checkpoint import ModelFolder
from sqft_plugins.checkpoint.json_object import read_object

END_TOKENS = "end_token_ids"
"""Where the configuration of an export keeps `end_tokens`."""
ENDS = frozenset({
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>",
    "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>", "<end_of_utterance>",
    "<eos>", "<turn|>", "<|tool_response>", "<｜end▁of▁sentence｜>", "[e~[",
})  # fmt: skip
"""Texts of tokens that end a text in llama.cpp, whatever the file says."""
INFILL = {
    "fim_pad": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    "fim_rep": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    "fim_sep": ("<|file_sep|>",),
}
"""Tokens of infilling, which end a text too, and the texts by which llama.cpp finds one where no key names it."""
PLACES = ("eot", "eom", "fim_pad")
"""Keys for end tokens beside `eos`, in the order they are filled: llama.cpp does nothing else with them."""


def end_tokens(folder: ModelFolder, config: Config) -> list[int]:
    """The token ids at which `generate` ends a text, in the order of the model; [] where it names none."""
    if isinstance(folder, ModelInMemory):
        found = getattr(folder.model.generation_config, "eos_token_id", None)
    else:
        file = folder.path / "generation_config.json"
        settings = read_object(file, "copy it again, or remove it") if file.is_file() else {}
        found = settings.get("eos_token_id")
    ids = config.get("eos_token_id") if found is None else found
    ids = ids if isinstance(ids, list) else [ids]
    return [token for token in dict.fromkeys(ids) if isinstance(token, int) and not isinstance(token, bool)]


def place_ends(wanted: Sequence[int], tokens: Sequence[str], special: Mapping[str, int]) -> dict[str, int]:
    """`special` (names → ids, `eos` among them) with places for those of the `wanted` end tokens that llama.cpp would
    not stop at. `limits.end_limits` names what does not fit."""
    placed = dict(special)
    for token in wanted:
        free = [name for name in PLACES if name not in placed]
        there = [placed.get(name) for name in ("eos", *PLACES)]
        if free and 0 <= token < len(tokens) and token not in there and tokens[token] not in ENDS:
            placed[free[0]] = token
    return placed


def file_ends(metadata: Mapping[str, Any]) -> set[int]:
    """The token ids at which llama.cpp ends a text, by the `tokenizer.*` of a file."""
    ids = {text: token for token, text in enumerate(metadata[TOKENS])}
    ends = {ids[text] for text in ENDS if text in ids}

    # the tokens that keys name, or that llama.cpp finds by their texts
    named = {name: metadata.get(id_key(name)) for name in ("eos", "eot", "eom", *INFILL)}
    for name, texts in INFILL.items():
        if named[name] is None:  # of several it takes one, nobody knows which
            named[name] = next((ids[text] for text in texts if text in ids), None)
    if named["eos"] is None:
        named["eos"] = DEFAULT_IDS.get(str(metadata.get(MODEL)), {}).get("eos")
    ends |= {token for token in named.values() if isinstance(token, int) and 0 <= token < len(ids)}

    # exceptions of single models
    there = {text for text in ids if ids[text] in ends}
    if {"<|return|>", "<|call|>"} <= there or ("<|flush|>" in there and there & {"<|call|>", "<|calls|>"}):
        ends -= {ids.get("<|end|>", -1)}  # gpt-oss and Solar go on after it
    if there & {"<|tool_response>", "<|plamo:eos|>"}:
        ends -= {ids.get("</s>", -1)}  # an ordinary token in Gemma 4 and PLaMo
    return ends
