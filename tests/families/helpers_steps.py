"""The way of a family through this project, step by step: `walk(family, folder)` → what became of each step.

    python tests/families/helpers_steps.py [family ...]      prints what became of each, with what is said
    python tests/families/helpers_steps.py --page            docs/models.md, of all (half an hour)

Each step is checked by what it promises, not by its end alone.
"""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Mapping
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


PAGE = Path(__file__).parents[2] / "docs" / "models.md"
HEAD = """# Models

Every decoder family of transformers {version} that is built tiny (two blocks, random weights, widths that 32 divides)
goes through the steps below. `tests/families` builds and checks it, and a slow test fails where a cell got worse.
Experts that transformers joins are left out here (`--exclude`).

ok: the step did what it promises. refused: one line said why not. fails: an error that is not ours, or a wrong result.
-: a step before it did not end.

| step | what is checked |
|---|---|
| build | transformers' own logits are finite |
| names | read block by block from its files, it computes transformers' hidden states, bit for bit |
| prune | `sqft prune` with Wanda to 50 %: every mask holds in what transformers loads |
| gptq | `sqft quantize --method gptq`, INT4 in groups of 32, runs to its end |
| int4 | the INT4 folder is loaded, and its logits are those of its codes, bit for bit |
| train | `SQFTConfig(target_modules="all-linear")`: the loss falls in three steps |
| merge | `sqft merge` of it: no zero is lost |
| qa train, qa merge | the same through the INT4 grid |

"""


def page(results: Mapping[str, Mapping[str, str]]) -> str:
    """The page of these results, by family."""
    from transformers import __version__

    lines = [f"| family | {' | '.join(STEPS)} |", "|---" * (len(STEPS) + 1) + "|"]
    lines += [f"| {name} | {' | '.join(map(mark, result.values()))} |" for name, result in sorted(results.items())]
    return HEAD.format(version=__version__) + "\n".join(lines) + "\n"


def mark(text: str) -> str:
    return "fails" if text.startswith("crash") else text.partition(":")[0]


def promised() -> dict[str, dict[str, str]]:
    """Family → step → mark, as docs/models.md has it."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in PAGE.read_text().splitlines()]
    table = [row for row in rows if len(row) == len(STEPS) + 1 and row[0] not in ("family", "---")]
    return {name: dict(zip(STEPS, marks, strict=True)) for name, *marks in table}


def main() -> None:
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    results = {}
    for family in [name for name in sys.argv[1:] if name != "--page"] or DECODERS:
        if not buildable(family):
            print(f"{family}: not built", file=sys.stderr, flush=True)
            continue
        with tempfile.TemporaryDirectory() as folder:
            results[family] = walk(family, Path(folder))
        said = [f"{step} {text}" for step, text in results[family].items() if text not in ("ok", "-")]
        print(
            f"{family}: {' '.join(map(mark, results[family].values()))} {'; '.join(said)}", file=sys.stderr, flush=True
        )
    if "--page" in sys.argv:
        PAGE.write_text(page(results))


if __name__ == "__main__":
    main()
