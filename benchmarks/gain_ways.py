"""The ways from a LoRA to a grid that gain_kept.py compares; each is made when its scores are asked for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft.utils import set_peft_model_state_dict
from safetensors.torch import load_file

from gguf_ext.quantize.run import quantize_gguf
from sqft_plugins.checkpoint import load_model, load_tokenizer, write_file, write_folder
from sqft_plugins.compress.quantize import quantize_folder
from sqft_plugins.plugins import get_manager
from sqft_plugins.tune import AdapterSettings, TrainSettings
from sqft_plugins.tune.data import IGNORED, batches_by_length, tokenize
from sqft_plugins.tune.examples import Example
from sqft_plugins.tune.loss import answer_logits
from sqft_plugins.tune.merge import merge_folder
from sqft_plugins.tune.over_file import open_base
from sqft_plugins.tune.prepare import prepare
from sqft_plugins.tune.settling import settling_text
from sqft_plugins.tune.train import train_adapter

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
GRIDS: dict[str, tuple[int, bool] | None] = {
    "INT4": (4, True), "INT3": (3, False), "INT2": (2, False),
    "Q4_K_M": None, "Q4_0": None, "Q3_K_M": None, "Q2_K": None,
}  # fmt: skip
"""Name → bits, symmetric (groups of 32); None for llama.cpp's mixes of types."""
WAYS = ("afterwards", "settled", "rounded", "codes alone", "round 1", "round 2")
WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True)
class Length:
    """steps: of LoRA. more: of each further round. batch_size, learning_rate: of all. sequences: of calibration."""

    steps: int = 64
    more: int = 24
    batch_size: int = 8
    learning_rate: float = 5e-4
    sequences: int = 32
    rank: int = 32


FULL, QUICK = Length(), Length(steps=2, more=2, batch_size=2, sequences=4, rank=4)


class Ways:
    """All that is made from `model` with one seed. work: where models and scores are kept."""

    def __init__(
        self, model: Path, work: Path, seed: int, tasks: dict[str, list[Example]], training: list[Example], how: Length
    ):
        self.model, self.work, self.seed = model, work, seed
        self.tasks, self.training, self.how = tasks, training, how
        self.work.mkdir(parents=True, exist_ok=True)
        self.text = work / "training.jsonl"
        self.text.write_text(
            "".join(json.dumps({"prompt": e.prompt, "completion": e.completion}) + "\n" for e in training)
        )
        self.known, self.notes = work / "scores.json", dict[str, dict[str, Any]]()

    def scores(self, way: str, grid: str = "float") -> dict[str, list[float]]:
        """Task → nats of each right answer."""
        key = way if way == "untuned" else f"{way}, {grid}, {self.calibrated(grid)}seed {self.seed}"
        known = self._known()
        if key not in known:
            found = {"nats": self.measure(self.made(way, grid)), "about": self.notes.get(f"{way}, {grid}", {})}
            known = {**self._known(), key: found}  # read again: another run in the same folder may have written
            with write_file(self.known, overwrite=True) as file:
                file.write_text(json.dumps(known))
        self.notes[f"{way}, {grid}"] = known[key]["about"]
        return known[key]["nats"]

    def calibrated(self, grid: str) -> str:
        """Of the name of what was made on a grid: how much text it was calibrated on, where that is not the default."""
        return "" if grid == "float" or self.how.sequences == Length.sequences else f"{self.how.sequences} sequences, "

    def _known(self) -> dict[str, Any]:
        return json.loads(self.known.read_text()) if self.known.exists() else {}

    def about(self, way: str, grid: str) -> dict[str, Any]:
        """What was noted when it was made."""
        return self.notes.get(f"{way}, {grid}", {})

    def forget(self, grid: str) -> None:
        for path in self.work.glob(f"{grid}-*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    # --- the ways ---

    def made(self, way: str, grid: str) -> Path:
        """The model folder or file."""
        if way == "untuned":
            return self.model if grid == "float" else self.quantized(self.model, grid, "untuned")
        if grid == "float":
            return self.lora(self.how.steps + (2 * self.how.more if way == "LoRA longer" else 0))
        if way == "afterwards":
            return self.quantized(self.made("LoRA", "float"), grid, way)
        if way == "codes alone":
            return self.tuned(self.made("untuned", grid), grid, way, self.how.steps)
        if way in ("settled", "rounded"):
            return self.from_lora(grid, way)
        number = int(way.removeprefix("round "))
        before = self.made(f"round {number - 1}" if number > 1 else "afterwards", grid)
        return self.tuned(before, grid, way, self.how.more, number)

    def lora(self, steps: int) -> Path:
        adapter = self.lora_adapter(steps)
        return self.once("float", f"merged-{steps}", lambda path: merge_folder(self.model, adapter, path, "max"))

    def lora_adapter(self, steps: int) -> Path:
        return self.once("float", f"lora-{steps}", lambda path: self.train(self.model, path, steps, "lora"))

    def quantized(self, model: Path, grid: str, name: str) -> Path:
        """A float model on a grid of its own, by GPTQ or by llama.cpp."""
        uniform, text = GRIDS[grid], {"calibration": str(self.text), "sequences": self.how.sequences}
        if uniform is None:
            make = lambda path: quantize_gguf(model, path, type=grid, **text)  # noqa: E731
        else:
            bits, symmetric = uniform
            make = lambda path: quantize_folder(  # noqa: E731
                model, path, "gptq", 32, symmetric, bits=bits, **text
            )
        return self.once(grid, name, make)

    def tuned(self, base: Path, grid: str, name: str, steps: int, number: int = 0) -> Path:
        """A model on a grid, tuned over its codes, settled and merged. number: of the round, which has other examples
        first than those before it."""
        adapter = self.once(
            grid, f"{name}-adapter", lambda path: self.train(base, path, steps, "sqft", aware=True, number=number)
        )
        return self.merged(base, adapter, grid, name)

    def from_lora(self, grid: str, way: str) -> Path:
        """LoRA's A and B over the float model, on the grid of the untuned model."""
        given, lora = self.made("untuned", grid), self.lora_adapter(self.how.steps)
        file = GRIDS[grid] is None
        rounding = "compensated" if way == "settled" else "nearest"
        wanted = self.settings(quantization_aware=True, rounding=rounding, **({} if file else {"grid": str(given)}))

        def make(path: Path) -> None:
            base, settings = open_base(given if file else self.model, wanted, "sqft", self.model if file else None)
            tuner = get_manager().get("sqft_tuners", "sqft", "tuner")
            tuned = tuner.attach(load_model(base.path, torch.float32), settings)
            set_peft_model_state_dict(tuned, load_file(lora / WEIGHTS))
            rows = prepare(self.training, [], [], load_tokenizer(self.model), self.run(self.how.steps), 1).rows
            tuner.settle(tuned, settling_text(rows))
            with write_folder(path) as target:
                tuned.save_pretrained(target)

        adapter = self.once(grid, f"{way}-adapter", make)
        return self.merged(given if file else self.model, adapter, grid, way)

    # --- steps ---

    def train(self, over: Path, path: Path, steps: int, tuner: str, aware: bool = False, number: int = 0) -> None:
        aware_settings = {"quantization_aware": True, "rounding": "compensated"} if aware else {}
        train_adapter(over, path, self.training, self.settings(**aware_settings), self.run(steps, number), tuner=tuner)

    def merged(self, base: Path, adapter: Path, grid: str, name: str) -> Path:
        def make(path: Path) -> None:
            moved = merge_folder(base, adapter, path, "max")["codes_changed"]
            self.notes[f"{name}, {grid}"] = {"codes_changed": moved}

        return self.once(grid, name, make)

    def settings(self, **more: Any) -> AdapterSettings:
        return AdapterSettings.make(
            {"rank": self.how.rank, "alpha": 2 * self.how.rank, "target_modules": TARGETS, **more}
        )

    def run(self, steps: int, number: int = 0) -> TrainSettings:
        how = self.how
        given = {
            "steps": steps,
            "batch_size": how.batch_size,
            "learning_rate": how.learning_rate,
            "dtype": "float32",  # "auto" is bfloat16 on some machines: other numbers
            "seed": self.seed + 1000 * number,
        }
        return TrainSettings.make(given)

    def once(self, grid: str, name: str, make: Callable[[Path], object]) -> Path:
        model = GRIDS.get(grid, 0) is None and not name.endswith("-adapter")
        text = self.calibrated(grid).partition(" ")[0]
        path = self.work / f"{grid}-{self.seed}-{text}{name.replace(' ', '-')}{'.gguf' if model else ''}"
        if not path.exists():
            make(path)
        return path

    @torch.no_grad()
    def measure(self, model: Path) -> dict[str, list[float]]:
        """Nats of each right answer, in float32; of a file its weights as llama.cpp dequantizes them."""
        net, tokenizer = load_model(model, torch.float32).eval(), load_tokenizer(self.model)
        found = {}
        for task, questions in self.tasks.items():
            # without the end of text, which no untuned model expects after an answer
            rows = [{name: part[:-1] for name, part in row.items()} for row in tokenize(questions, tokenizer, 512)]
            scores = [0.0] * len(rows)
            batches, order = batches_by_length(rows, 16, tokenizer.pad_token_id or 0)
            places = iter(order)
            for batch in batches:
                labels = batch.pop("labels")
                logits, targets = answer_logits(net, net.get_output_embeddings(), batch, labels)
                nats = torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none")
                lengths = (labels[:, 1:] != IGNORED).sum(1).tolist()
                for part in nats.split(lengths):
                    scores[next(places)] = float(part.sum())
            found[task] = scores
        return found
