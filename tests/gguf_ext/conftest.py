"""Tiny models and tokenizers, made here: nothing is downloaded."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from gguf_ext.tokenizer.pretokenizer import LLAMA3
from sqft_plugins.checkpoint import ModelFolder
from sqft_plugins.checkpoint.stamp import write_stamp
from sqft_plugins.compress.prune import prune_folder
from sqft_plugins.compress.quantize import quantize_folder

# importlib mode keeps test folders off the path
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "sqft_plugins")]
torch.set_num_threads(1)
CORPUS = """The quick brown fox jumps over the lazy dog, and the dog doesn't mind. I'll say it's fine: we're done!
Ünïcödé, naïve café, straße; Здравствуй, мир! こんにちは世界、お元気ですか？ 你好，世界。
안녕하세요 مرحبا بالعالم नमस्ते สวัสดี שלום
Emoji 😀🎉👩‍👩‍👧‍👦🇩🇪 ❤️ 🤷🏽‍♀️ and digits 0 12 345 6789 3.14159 1,000,000 ٣٤٥ Ⅷ ½ 2024-11-05
def f(x):
    if x > 0:
\t\treturn {'a': [1, 2, 3]}   # comment   \n\n\n\n        deep = x ** 2  \n
   leading   spaces\tand\t\ttabs    trailing     \r\n CRLF\n \n  \n   x\u00a0nbsp <b>bold</b> DON'T 'sup
"""
TEXTS = [
    CORPUS,
    *CORPUS.split("\n"),
    *[
        "",
        " ",
        "  ",
        "a",
        " a",
        "  a",
        "\n",
        "\n\n\n",
        " \n",
        "\t",
        "    x",
        "x    ",
        "é",
        "e\u0301",
        "▁",
        " ▁ ",
        "<0x41>",
    ],
    *[
        "word" * 40,
        " " * 70 + "x",
        "\n" * 40,
        "1234567890" * 5,
        "()[]{}<>!@#$%^&*",
        "http://www.example.com/a?b=c&d=1#x",
    ],
    *["<tool>call</tool>", "a<tool> b", "one<eos>two", "<unk>"],
]


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """Multilingual, emoji, digits, code, whitespace runs, special and added tokens inside a text."""
    return TEXTS


TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"


def _wrap(tokenizer: Tokenizer, bos: bool) -> PreTrainedTokenizerFast:
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", tokenizer.token_to_id("<bos>"))]
        )
    tokenizer.add_tokens([AddedToken("<tool>", normalized=False), AddedToken("</tool>", normalized=False)])
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", unk_token="<unk>", pad_token="<pad>"
    )
    wrapped.chat_template = TEMPLATE
    return wrapped


SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>"]


def make_byte_level(
    pattern: str | tuple[str, ...] | None = LLAMA3, ignore_merges: bool = True, bos: bool = True
) -> PreTrainedTokenizerFast:
    """Byte-level BPE as Llama 3 has it; with several patterns one after the other; None is GPT-2's own."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    patterns = (pattern,) if isinstance(pattern, str) else pattern or ()
    split = [pre_tokenizers.Split(Regex(one), "isolated") for one in patterns]
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*split, last])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([CORPUS] * 3, trainer)
    return _wrap(tokenizer, bos)


def make_fallback(prefix: bool = False, closed: bool = True, bos: bool = True) -> PreTrainedTokenizerFast:
    """BPE with byte fallback as Gemma (prefix=False) and Llama 2 (prefix=True) have it: every cut of a token is a
    merge, as transformers makes them from sentencepiece, unless `closed` is False."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(split=True)
    # the trainer drops rare letters in the order of a hash: named one by one they are the same in every process
    count = Counter("▁".join(["", *CORPUS.split()]))
    letters = sorted(count, key=lambda letter: (-count[letter], letter))[:120]
    trainer = trainers.BpeTrainer(vocab_size=330, show_progress=False, limit_alphabet=120, initial_alphabet=letters)
    trained.train_from_iterator([CORPUS] * 3, trainer)
    learnt = sorted(trained.get_vocab().items(), key=lambda item: item[1])
    names = SPECIAL + [f"<0x{byte:02X}>" for byte in range(256)] + [name for name, _ in learnt]
    vocab = {name: index for index, name in enumerate(names)}
    merges = []
    for name, _ in learnt:
        cuts = [(name[:cut], name[cut:]) for cut in range(1, len(name))]
        pairs = [pair for pair in cuts if pair[0] in vocab and pair[1] in vocab]
        merges += pairs if closed else pairs[:1]
    tokenizer = Tokenizer(models.BPE(vocab, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    replace = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace]) if prefix else replace
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(SPECIAL)
    return _wrap(tokenizer, bos)


def _randomize(model: torch.nn.Module) -> None:
    """Weights large enough that the logits tell a right mapping from a wrong one; norms that are not all one."""
    for name, parameter in model.named_parameters():
        parameter.data = torch.randn_like(parameter) * (0.3 if "norm" in name else 0.25)
        if "norm" in name and "Gemma" not in type(model).__name__:
            parameter.data += 1


def make_llama(tokenizer: PreTrainedTokenizerFast, folder: Path, **options) -> Path:
    """Grouped queries, head size apart from hidden / heads, untied unless asked for, three rows without a token."""
    torch.manual_seed(0)
    settings = {
        "vocab_size": len(tokenizer) + 3,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 512,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    model = LlamaForCausalLM(LlamaConfig(**{**settings, **options}))
    _randomize(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_gemma3(tokenizer: PreTrainedTokenizerFast, folder: Path, **options) -> Path:
    """Seven layers, so that one sees the whole context; a window that the tests' texts are longer than."""
    torch.manual_seed(0)
    settings = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 7,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "query_pre_attn_scalar": 32,
        "sliding_window": 8,
        "max_position_embeddings": 512,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    model = Gemma3ForCausalLM(Gemma3TextConfig(**{**settings, **options}))
    _randomize(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def byte_level() -> PreTrainedTokenizerFast:
    return make_byte_level()


@pytest.fixture(scope="session")
def fallback() -> PreTrainedTokenizerFast:
    return make_fallback()


@pytest.fixture(scope="session")
def llama(tmp_path_factory, byte_level) -> Path:
    return make_llama(byte_level, tmp_path_factory.mktemp("llama") / "model")


@pytest.fixture(scope="session")
def gemma3(tmp_path_factory, fallback) -> Path:
    return make_gemma3(fallback, tmp_path_factory.mktemp("gemma3") / "model")


def make_int4(source: Path, target: Path, group_size: int = 32, symmetric: bool = True, sparsity: float = 0.5) -> Path:
    """`source` pruned by magnitude and rounded to INT4, every linear but lm_head, with its mask and stamp."""
    pruned = target.with_name(f"{target.name}-pruned")
    prune_folder(source, pruned, "magnitude", sparsity)
    quantize_folder(pruned, target, group_size=group_size, symmetric=symmetric)
    stamp = ModelFolder(target).stamp
    assert stamp is not None
    write_stamp(target, stamp.model_copy(update={"base": "tiny"}))
    return target


@pytest.fixture(scope="session")
def llama_int4(tmp_path_factory, llama) -> Path:
    return make_int4(llama, tmp_path_factory.mktemp("llama-int4") / "model")


@pytest.fixture(scope="session")
def gemma3_int4(tmp_path_factory, gemma3) -> Path:
    return make_int4(gemma3, tmp_path_factory.mktemp("gemma3-int4") / "model")


@pytest.fixture(scope="session")
def make() -> dict[str, Callable]:
    """The makers, for tests that need other options."""
    makers = [make_byte_level, make_fallback, make_llama, make_gemma3, make_int4]
    return {maker.__name__.removeprefix("make_"): maker for maker in makers}


@pytest.fixture(scope="session")
def make_folder(tiny_model, tiny_tokenizer):
    """`make_folder(family, folder, **config changes)`: weights and biases large enough that logits tell a wrong place
    from a right one."""

    def make(family, folder, **changes):
        model = tiny_model(family, **changes)
        torch.manual_seed(1)
        for name, parameter in model.named_parameters():
            parameter.data = torch.randn_like(parameter) * 0.25
            if parameter.ndim == 1 and name.endswith("weight"):
                parameter.data += 1
        model.save_pretrained(folder)
        tiny_tokenizer("byte-level").save_pretrained(folder)
        return folder

    return make


SMALL = {"num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 32}


@pytest.fixture
def folder_of(make, tmp_path):
    """`folder_of(tokenizer, name)`: a model folder with this tokenizer, as it stands."""

    def folder(tokenizer, name="model", **changes):
        return make["llama"](tokenizer, tmp_path / name, **{**SMALL, **changes})

    return folder
