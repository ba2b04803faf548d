"""Writes one small sample of every kind of file that this version writes, into a new folder.

    python tests/samples/make.py v0.2        # → tests/samples/v0.2

v0.1 was written by commit 66ea700. What a release has written is never written again: a later version gets a folder of
its own, and tests/sqft_plugins/test_samples.py opens all of them. README.md lists the samples.

Everything is made by the verbs, from a random Llama of two layers; what a killed verb leaves is made by ending it after
its first block or checkpoint. `expected.json` holds what the version that wrote the samples read in them.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from glob import glob
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", CUDA_VISIBLE_DEVICES="")

import torch

sys.path.insert(0, str(Path(__file__).parent))
from sample_content import gguf_content, model_content, tensors_in

PLACE = Path("/tmp/samples")
"""Where they are written, for paths stand in some: they belong to no machine."""
TEXT = "bees make honey wax and a hive in old trees near water where flowers grow"
WORDS = TEXT.split()
ADAPTER = ["--rank", "4", "--rank-choices", "4,3,2", "--alpha", "8", "--learning-rate", "0.02", "--batch-size", "4"]
RECIPE = """\
model: base
prune: {sparsity: 0.5, calibration: text.txt, sequences: 2, length: 16}
train:
  data: train.jsonl
  rank: 4
  rank_choices: [4, 3, 2]
  alpha: 8
  learning_rate: 0.02
  steps: 4
  batch_size: 4
  target_modules: [q_proj, v_proj, down_proj]
merge:
quantize:
export:
eval: {model: [prune, train, merge, export], data: test.jsonl, limit: 3, perplexity: false}
"""


def main(name: str) -> None:
    target = Path(__file__).resolve().parent / name
    if target.exists():
        raise SystemExit(f"{target} is there: samples are written once, give the name of a new version")
    PLACE.mkdir()
    os.chdir(PLACE)
    os.environ["SQFT_EVAL_CACHE"] = str(PLACE / "eval-cache")
    write_inputs()
    write_run()
    write_models()
    write_split()
    write_adapters()
    write_search()
    write_killed()
    Path("expected.json").write_text(json.dumps(expected(), indent=1, sort_keys=True) + "\n")
    tidy()
    shutil.move(PLACE, target)


class VerbError(Exception):
    """A verb ended with another exit code than 0."""


def sqft(*words: str) -> Any:
    """What the verb prints with --json."""
    from sqft_plugins.cli import main

    printed, code = StringIO(), None
    with redirect_stdout(printed):
        try:
            main([*words, "--json"])
        except SystemExit as end:
            code = end.code
    if code:
        raise VerbError(f"sqft {' '.join(words)}: {printed.getvalue()}")
    return json.loads(printed.getvalue())


def write_inputs() -> None:
    """The dense model, text and questions."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=288,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([" ".join(WORDS)] * 3, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", 2)]
    )
    names = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained("base")
    config = LlamaConfig(
        vocab_size=288, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=128, tie_word_embeddings=True, initializer_range=0.2,
        pad_token_id=0, eos_token_id=1, bos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    for weight in model.parameters():
        weight.data.mul_(32).round_().div_(32)  # few different numbers: the files compress to a third
    model.to(torch.bfloat16).save_pretrained("base")
    Path("text.txt").write_text("\n\n".join(" ".join(WORDS[n:] + WORDS[:n]) for n in range(len(WORDS))) + "\n")
    for name, numbers in (("train", range(24)), ("test", range(24, 48))):
        lines = [{"prompt": f"{WORDS[n % 15]} {n}:", "completion": f" {WORDS[(n + 1) % 15]}"} for n in numbers]
        Path(f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_run() -> None:
    """A recipe and its run: pruned, tuned, merged, INT4, GGUF, scores; and what the evaluation remembers."""
    Path("recipe.yaml").write_text(RECIPE)
    sqft("run", "recipe.yaml", "--out", "run")
    scores = sqft(
        "eval", "run/merge", "--data", "test.jsonl", "--limit", "3", "--no-perplexity", "--samples", "a.jsonl"
    )
    os.rename("a.jsonl", "eval-samples.jsonl")
    Path("eval.json").write_text(json.dumps(scores, indent=2) + "\n")


def write_models() -> None:
    """INT4 without and, in several files, with zero points, and the compact form of both."""
    calibration = ("--calibration", "text.txt", "--sequences", "2", "--length", "16")
    sqft("quantize", "run/prune", "--method", "gptq", *calibration, "--out", "int4")
    save_sharded(Path("run/prune"), Path("sharded"))
    sqft("quantize", "sharded", "--asymmetric", "--out", "int4-asymmetric")
    shutil.rmtree("sharded")
    sqft("compact", "int4", "--out", "compact")
    sqft("compact", "int4-asymmetric", "--out", "compact-asymmetric")


def write_split() -> None:
    """The GGUF file of the run in two parts."""
    sqft("export", "gguf", "run/quantize", "--split-max-size", "24K", "--out", "split.gguf")


def save_sharded(source: Path, target: Path) -> None:
    """The same folder with its weights in several files, as transformers writes a large model."""
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    shutil.copytree(source, target, ignore=lambda _, names: [n for n in names if n == "model.safetensors"])
    model = AutoModelForCausalLM.from_pretrained(source, dtype="auto")
    model.save_pretrained(target, max_shard_size="40KB", state_dict=load_file(source / "model.safetensors"))
    shutil.copyfile(source / "config.json", target / "config.json")


def write_adapters() -> None:
    """Quantization-aware over float and over INT4, with planes and merged; dense, extracted, as a GGUF LoRA."""
    how = ["--data", "train.jsonl", "--steps", "4", "--target-modules", "q_proj,v_proj,down_proj", *ADAPTER]
    aware = [*how, "--quantization-aware"]
    sqft("train", "run/prune", *aware, "--grid", "int4", "--out", "adapter-qa")
    sqft("train", "int4-asymmetric", *aware, "--out", "adapter-qa-int4")
    ranks = ("--rank", "heuristic", "--rank", "max")
    sqft("export", "plane", "int4", "adapter-qa", "--base", "run/prune", *ranks)
    sqft("export", "plane", "int4-asymmetric", "adapter-qa-int4", *ranks)
    sqft("merge", "run/prune", "adapter-qa", "--rank", "heuristic", "--out", "merged-qa")
    sqft("merge", "int4-asymmetric", "adapter-qa-int4", "--rank", "heuristic", "--out", "merged-qa-int4")
    sqft("train", "run/prune", *how, "--dense", "--out", "adapter-dense")
    sqft("extract", "adapter-dense", "--rank", "heuristic", "--out", "extracted-dense")
    sqft("extract", "run/train", "--rank", "heuristic", "--out", "extracted")
    Path("ranks.json").write_text(json.dumps({".*layers.0.*": 4, ".*layers.1.*": 2}) + "\n")
    sqft("extract", "adapter-dense", "--rank", "ranks.json", "--out", "extracted-mixed")
    sqft("export", "gguf-lora", "extracted-dense", "--base", "run/prune", "--out", "lora.gguf")


def write_search() -> None:
    """A search of two evaluations with its study; the ranks saved in a copy of the adapter."""
    shutil.copytree("run/train", "adapter-searched")
    budget = ("--evaluations", "2", "--subset", "8", "--fresh", "12", "--dtype", "float32", "--save", "searched")
    how = ("--method", "nsga2", "--against", "parameters", *budget)
    sqft("search", "run/prune", "adapter-searched", "--data", "test.jsonl", *how, "--out", "search")


def write_killed() -> None:
    """What prune, quantize and train leave when they are ended: the same commands go on from there."""
    from sqft_plugins.compress.job import Job
    from sqft_plugins.tune.resume import Checkpoints

    os.mkdir("killed")
    calibration = ("--calibration", "text.txt", "--sequences", "2", "--length", "16")
    ending(Job, "save", lambda: sqft("prune", "base", "--sparsity", "0.5", *calibration, "--out", "killed/prune"))
    ending(
        Job,
        "save",
        lambda: sqft("quantize", "run/prune", "--method", "gptq", *calibration, "--out", "killed/quantize"),
    )
    how = ["--data", "train.jsonl", "--steps", "4", "--target-modules", "q_proj,v_proj,down_proj", *ADAPTER]
    ending(
        Checkpoints,
        "on_save",
        lambda: sqft("train", "run/prune", *how, "--checkpoint-every", "2", "--out", "killed/train"),
    )
    best = ["--eval-data", "test.jsonl", "--eval-every", "1", "--keep", "best"]
    ending(
        Checkpoints,
        "on_save",
        lambda: sqft("train", "run/prune", *how, *best, "--checkpoint-every", "2", "--out", "killed/train-best"),
    )


def ending(owner: type, method: str, command: Callable[[], Any]) -> None:
    """Ends the command, as Ctrl-C does, after the first call of a method."""
    original = getattr(owner, method)

    def once(*inner: Any, **options: Any) -> None:
        original(*inner, **options)
        raise KeyboardInterrupt

    with patch.object(owner, method, once):
        try:
            command()
        except (KeyboardInterrupt, VerbError):
            return
    raise AssertionError("it was not ended")


def tidy() -> None:
    """Locks go, and pictures, which nothing reads; of the remembered answers those of run/merge stay."""
    from sqft_plugins.identity import content_hash

    merged = content_hash(PLACE / "run/merge").encode()
    others = [file for file in PLACE.glob("eval-cache/*.sqlite") if merged not in file.read_bytes()]
    for file in {*others, *PLACE.rglob("lock"), *PLACE.rglob("*.lock"), *PLACE.rglob("*.png")}:
        file.unlink()


def expected() -> dict[str, Any]:
    """What this version reads, by sample."""
    models = ["base", "run/prune", "run/merge", "run/quantize", "int4", "int4-asymmetric", "compact",
              "compact-asymmetric", "merged-qa", "merged-qa-int4"]  # fmt: skip
    adapters = ["run/train", "adapter-searched", "adapter-qa", "adapter-qa-int4", "adapter-dense", "extracted",
                "extracted-dense", "extracted-mixed"]  # fmt: skip
    return {
        "models": {name: model_content(name) for name in models},
        "adapters": {name: tensors_in(Path(name, "adapter_model.safetensors")) for name in adapters},
        "planes": {
            str(file): tensors_in(file)
            for name in ("adapter-qa", "adapter-qa-int4")
            for file in sorted(Path(name, "planes").glob("*.safetensors"))
        },
        "gguf": {
            name: gguf_content(Path(name)) for name in ("run/export/model.gguf", "lora.gguf", *sorted(glob("split-*")))
        },
    }


if __name__ == "__main__":
    main(sys.argv[1])
