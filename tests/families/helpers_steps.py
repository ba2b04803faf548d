"""The way of a family through this project, step by step: `walk(family, folder)` → what became of each step.

    python tests/families/helpers_steps.py [family ...]      prints the table

Each step is checked by what it promises, not by its end alone.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from helpers_families import DECODERS, buildable, model_of, tokenizer
from peft import get_peft_model
from transformers import logging

from peft_ext import SQFTConfig
from sqft_plugins.checkpoint import ModelFolder, load_model
from sqft_plugins.compress.fused import ends_of, fused_weights
from sqft_plugins.compress.prune import prune_folder
from sqft_plugins.compress.quantize import quantize_folder
from sqft_plugins.compress.skeleton import Skeleton
from sqft_plugins.errors import SQFTError
from sqft_plugins.mask import lost_zeros
from sqft_plugins.structure import find_blocks, structure_of, weight_of
from sqft_plugins.tune.merge import merge_folder

STEPS = ("build", "names", "prune", "gptq", "int4", "train", "merge", "qa train", "qa merge")
SMALL = {"sequences": 4, "length": 32}
TOKENS = torch.randint(4, 640, (2, 16), generator=torch.Generator().manual_seed(0))


class Walk:
    """One family; a step is a method, which raises where it fails. left_out: what the steps before left out."""

    def __init__(self, family: str, path: Path):
        self.family, self.path = family, path

    def __getattr__(self, name: str) -> Path:
        return self.path / name  # a folder of one of the steps

    def build(self) -> None:
        model = model_of(self.family)
        logits = logits_of(model)
        model.save_pretrained(self.source)
        tokenizer().save_pretrained(self.source)
        assert bool(torch.isfinite(logits).all()), "its own logits are not finite"
        self.exclude = ends_of(fused_weights(model))

    def names(self) -> None:
        """The skeleton computes what the model computes."""
        skeleton = Skeleton(ModelFolder(self.source))
        for index, block in enumerate(find_blocks(skeleton.model)[1]):
            skeleton.load_block(index, block)
        with torch.no_grad():
            ours = skeleton.model.base_model(input_ids=TOKENS, use_cache=False)[0]
            theirs = load_model(self.source, dtype=torch.float32).base_model(input_ids=TOKENS, use_cache=False)[0]
        assert torch.equal(ours, theirs), "other hidden states than transformers has"

    def prune(self) -> None:
        prune_folder(self.source, self.sparse, exclude=self.exclude, **SMALL)
        model, folder = load_model(self.sparse), ModelFolder(self.sparse)
        assert folder.stored_names.unknown == [], "names in the files that the model does not know"
        for name in folder.masks:
            mask = folder.mask(name)
            weight = weight_of(model.get_submodule(name))
            assert 1 - mask.float().mean() > 0.4, f"{name} is not half zeros"
            assert not lost_zeros(weight, mask), f"{name} has lost zeros"

    def gptq(self) -> None:
        quantize_folder(self.sparse, self.codes, method="gptq", exclude=self.exclude, **SMALL)

    def int4(self) -> None:
        """The INT4 folder is loaded, and computes what its codes are."""
        model, folder = load_model(self.sparse, dtype=torch.float32), ModelFolder(self.codes)
        assert set(folder.int4.modules) == set(folder.masks), "not all pruned layers are codes"
        for name in folder.int4.modules:
            layer = model.get_submodule(name)
            weight_of(layer).copy_(folder.quantized(name).dequantize())
        loaded = load_model(self.codes, dtype=torch.float32)
        assert torch.equal(logits_of(loaded), logits_of(model)), "other logits than its codes"

    def train(self) -> None:
        self._train(self.sparse, self.adapter)

    def merge(self) -> None:
        merge_folder(self.sparse, self.adapter, self.merged)
        self._compare(self.sparse, self.merged, changed=True)

    def qa_train(self) -> None:
        self._train(self.codes, self.qa_adapter, quantization_aware=True)

    def qa_merge(self) -> None:
        merge_folder(self.codes, self.qa_adapter, self.qa_merged)
        assert ModelFolder(self.qa_merged).grid == ModelFolder(self.codes).grid
        self._compare(self.codes, self.qa_merged, changed=False)

    def _train(self, base: Path, adapter: Path, **options: Any) -> None:
        torch.manual_seed(0)
        model = load_model(base, dtype=torch.float32)
        before = logits_of(model)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tuned = get_peft_model(model, SQFTConfig(r=4, target_modules="all-linear", **options))
        assert torch.allclose(logits_of(tuned), before, atol=1e-4, rtol=1e-3), "a new adapter changes the logits"
        trained = [parameter for parameter in tuned.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-2)
        losses = []
        for _ in range(3):
            loss = tuned(input_ids=TOKENS, labels=TOKENS, use_cache=False).loss
            losses.append(float(loss))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        assert losses[-1] < losses[0], f"the loss does not fall: {losses}"
        tuned.save_pretrained(adapter)

    def _compare(self, base: Path, merged: Path, changed: bool) -> None:
        """Zeros are kept, and weights did change."""
        model, folder = load_model(merged, dtype=torch.float32), ModelFolder(base)
        before = load_model(base, dtype=torch.float32)
        others = 0
        for name in folder.masks:
            weight = weight_of(model.get_submodule(name))
            assert not lost_zeros(weight, folder.mask(name)), f"{name} has lost zeros"
            others += not torch.equal(weight, weight_of(before.get_submodule(name)))
        assert others or not changed, "the merge has changed nothing"
        assert bool(torch.isfinite(logits_of(model)).all())


def walk(family: str, path: Path) -> dict[str, str]:
    """Step → "ok", "refused: …" (our own error), "crash: …", or "-" where a step before it failed."""
    way = Walk(family, path)
    result = dict.fromkeys(STEPS, "-")
    needs = {"names": "build", "prune": "names", "gptq": "prune", "int4": "gptq", "train": "prune", "merge": "train"}
    needs |= {"qa train": "int4", "qa merge": "qa train"}
    for step in STEPS:
        if result[needs[step]] == "ok" if step in needs else True:
            result[step] = outcome(getattr(type(way), step.replace(" ", "_")).__get__(way))
    return result


def outcome(step: Callable[[], None]) -> str:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            step()
    except SQFTError as error:
        return f"refused: {error}"
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        text = str(error).splitlines()[0] if str(error) else ""
        return f"crash: {type(error).__name__} {text} ({Path(where.filename).name}:{where.lineno})"
    return "ok"


@torch.no_grad()
def logits_of(model: Any) -> torch.Tensor:
    return model(input_ids=TOKENS, use_cache=False).logits


def coverage(family: str) -> float:
    """The share of the weights of the blocks' matrices that are in linear layers which compression reaches."""
    with torch.device("meta"):
        model = model_of(family)
    reached = sum(rows * columns for rows, columns in structure_of(model).shapes.values())
    return reached / (reached + sum(torch.Size(shape).numel() for shape in fused_weights(model).values()))


def main() -> None:
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    for family in sys.argv[1:] or DECODERS:
        if not buildable(family):
            print(f"{family}: not built", flush=True)
            continue
        with tempfile.TemporaryDirectory() as folder:
            result = walk(family, Path(folder))
        marks = " ".join("ok" if text == "ok" else text[0].upper() for text in result.values())
        said = [f"{step} {re.sub('/tmp/[^ ]*', 'M', text)}" for step, text in result.items() if text not in ("ok", "-")]
        print(f"{family}: {marks} {'; '.join(said)}", flush=True)


if __name__ == "__main__":
    main()
