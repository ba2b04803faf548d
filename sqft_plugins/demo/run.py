"""The demo's way: dense → pruned → tuned → merged → INT4 → GGUF, and where it is asked for a plain LoRA merge beside
it. Then the other way: the model's GGUF file as it comes, tuned and merged into."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqft_plugins.adapter import AdapterFolder
from sqft_plugins.checkpoint import ModelFolder, open_model
from sqft_plugins.compress.calibration import builtin_text
from sqft_plugins.compress.prune import prune_folder
from sqft_plugins.compress.quantize import quantize_folder
from sqft_plugins.demo.base import prepare_base, prepare_file
from sqft_plugins.demo.report import why_not_learned, write_report
from sqft_plugins.demo.settings import DemoSettings, Sizes
from sqft_plugins.demo.sizes import choose_size, with_size
from sqft_plugins.demo.task import WordProblems
from sqft_plugins.errors import SQFTError
from sqft_plugins.evaluate import accuracy, open_session, perplexity
from sqft_plugins.evaluate.tasks import JsonlTask, split_examples
from sqft_plugins.identity import content_hash
from sqft_plugins.measure import sizes, zeros_kept
from sqft_plugins.plugins import get_manager
from sqft_plugins.plugins.protocols import Task
from sqft_plugins.progress import say
from sqft_plugins.stages import Stages
from sqft_plugins.tune import AdapterSettings, TrainSettings
from sqft_plugins.tune.examples import Example, read_jsonl, text_examples
from sqft_plugins.tune.extract import extract_adapter
from sqft_plugins.tune.merge import merge_folder
from sqft_plugins.tune.train import train_adapter

Row = dict[str, Any]
"""What a stage keeps, as JSON."""
Show = Callable[[Mapping[str, Any]], None]
"""Is called with the report so far."""
PRUNED, MERGED, LORA_MERGED = (f"{folder}/config.json" for folder in ("pruned", "merged", "lora_merged"))
MAKERS = {
    "dense": ["base"],
    "pruned": ["prune"],
    "tuned": ["train", "extract"],
    "merged": ["merge"],
    "lora_merged": ["merge_lora", "train_lora"],
    "int4": ["quantize"],
    "gguf": ["export"],
    "file": ["unpack"],
    "file_tuned": ["train_file", "merge_file"],
}
"""Scored stage → the stages that made it, whose seconds count; in the order of the table."""


def run_demo(
    out: str | Path,
    settings: DemoSettings,
    overwrite: bool = False,
    show: Show = lambda report: None,
) -> dict[str, Any]:
    """Runs the stages that are not done yet and writes report.json, report.md and report.png under `out`, anew with
    each stage that is scored.

    show: is called with the report so far when a stage was scored, and in any case with the whole one.

    Returns the report: `stages` is a list of name, accuracy, accuracy_stderr, perplexity, zeros_kept, bits_per_weight,
    bytes and seconds.
    """
    # everything that can be refused
    out = Path(out)
    _check_extras()
    if settings.model is not None:
        ModelFolder(settings.model)
    stages = Stages(out, overwrite)

    # a demo that goes on keeps the size that it began with
    chosen = stages.plan("size") or {"size": choose_size()}
    sizes = with_size(settings, chosen["size"])
    training, task = _task(settings, sizes)

    stages.run("size", lambda: chosen)
    return Demo(out, settings, sizes, training, task, stages, show).run()


def _check_extras() -> None:
    """Raises SQFTError where a plug-in that the demo needs is not installed."""
    host = get_manager()
    for name in ("sqft", "lora"):
        host.get("sqft_tuners", name, "tuner")
    host.get("sqft_exporters", "gguf", "exporter")


def _task(settings: DemoSettings, sizes: Sizes) -> tuple[list[Example], Task]:
    """(training examples, the task of the held-out ones). Raises SQFTError for data that are too few."""
    if settings.data is None:
        problems = WordProblems(sizes.questions, settings.seed)
        return problems.training(sizes.steps * settings.batch_size), problems
    training, held_out = split_examples(read_jsonl(settings.data))
    if not training or not held_out:
        raise SQFTError(
            f"--data {settings.data} has {len(training) + len(held_out)} examples: give more, one in five is held out"
        )
    return training, JsonlTask(settings.data, held_out[: sizes.questions])


def _digest(rows: Iterable[Any]) -> str:
    return hashlib.sha256(repr(list(rows)).encode()).hexdigest()


@dataclass
class Demo:
    """One run. A stage is a method that makes an output, or one that scores it and returns its row. made: name → what
    the stage keeps, of those that are done."""

    out: Path
    settings: DemoSettings
    sizes: Sizes
    training: Sequence[Example]
    task: Task
    stages: Stages
    show: Show
    made: dict[str, Row] = field(default_factory=dict)

    @property
    def base(self) -> Path:
        return Path(self.settings.model or self.out / "base")

    @property
    def last(self) -> str:
        """The last row of the table."""
        return "gguf" if self.settings.model is not None or self.settings.skip_file else "file_tuned"

    def run(self) -> dict[str, Any]:
        """Makes and scores every stage that is not done yet → the report."""
        s, out, make, score = self.settings, self.out, self.make, self.score
        others = {"model", "data", "sparsity", "questions", "text_tokens", "compare_lora", "skip_file"}
        tuning = s.model_dump(exclude=others) | {"steps": self.sizes.steps, "training": _digest(self.training)}

        # the model as it came, and pruned: its masks say which zeros are counted, in the dense model, too
        if s.model is None:
            make("base", self.make_base, output="base/config.json")
        else:
            about = {"model": s.model, "content": content_hash(self.base)}
            make("base", lambda: {"model": s.model}, settings=about)
        make("prune", self.prune, after=["base"], settings={"sparsity": s.sparsity}, output=PRUNED)
        self.masks = ModelFolder(out / "pruned").masks
        score("dense", "prune", lambda: self.folder_row(self.base))
        score("pruned", "prune", lambda: self.folder_row(out / "pruned"))

        # SQFT: the heuristic sub-adapter of an elastic adapter, beside the model and merged
        make("train", lambda: self.train("adapter", "sqft"), after=["prune"], settings=tuning, output="adapter")
        make("extract", self.extract, after=["train"], output="sub_adapter")
        score("tuned", "extract", self.tuned)
        make("merge", lambda: self.merge("sub_adapter", "merged"), after=["extract"], output=MERGED)
        score("merged", "merge", lambda: self.folder_row(out / "merged"))

        if s.compare_lora:
            make("train_lora", lambda: self.train("lora", "lora"), after=["prune"], settings=tuning, output="lora")
            make("merge_lora", lambda: self.merge("lora", "lora_merged"), after=["train_lora"], output=LORA_MERGED)
            score("lora_merged", "merge_lora", lambda: self.folder_row(out / "lora_merged"))

        # the merged model as INT4, and its codes as GGUF
        make("quantize", self.quantize, after=["merge"], output="int4/config.json")
        score("int4", "quantize", lambda: self.folder_row(out / "int4"))
        make("export", self.export, after=["quantize"], output="model.gguf")
        score("gguf", "export", self.gguf_row)

        # the file that the model came in
        if s.model is None and not s.skip_file:
            file, tuned = out / "file.gguf", out / "file-tuned.gguf"
            make("unpack", lambda: self.unpack(file), output=file.name)
            score("file", "unpack", lambda: self.file_row(file))
            make("train_file", self.train_file, after=["unpack"], settings=tuning, output="file_adapter")
            make("merge_file", lambda: self.merge_file(tuned), after=["train_file"], output=tuned.name)
            score("file_tuned", "merge_file", lambda: self.file_row(tuned))

        if self.stages.reused:
            say(f"reused, inputs unchanged: {', '.join(self.stages.reused)}")
        return self.report()

    def make(self, name: str, work: Callable[[], Row], **inputs: Any) -> None:
        """A stage that makes an output. inputs: as of `Stages.run`."""
        self.made[name] = self.stages.run(name, work, **inputs)

    def score(self, name: str, after: str, work: Callable[[], Row]) -> None:
        """A stage that scores what the stage `after` has made; the report grows by its row."""
        scoring = {"text_tokens": self.sizes.text_tokens, "questions": _digest(self.task.items())}
        self.make(name, work, after=[after], settings=scoring)
        if name not in self.stages.reused or name == self.last:
            report = self.report()
            write_report(self.out, report)
            self.show(report)
            if name in ("tuned", self.last) and (warning := why_not_learned(report)):
                say(warning, style="bold")

    def report(self) -> dict[str, Any]:
        """What is known so far."""
        made = self.made
        report: dict[str, Any] = {
            "settings": self.settings.model_dump() | self.sizes._asdict(),
            "task": self.task.name,
            "stages": [
                {"name": name} | made[name] | {"seconds": made[name]["seconds"] + sum(map(self.stages.seconds, makers))}
                for name, makers in MAKERS.items()
                if name in made
            ],
            "pruned_sparsity": made["prune"]["sparsity_reached"],
            "reused": self.stages.reused,
        }
        for key, stage in (("merge", "merge"), ("lora_merge", "merge_lora")):
            if stage in made:
                report[key] = {name: made[stage][name] for name in ("max_logit_difference", "zeros_lost")}
        if "export" in made:
            report["gguf"] = {key: value for key, value in made["export"].items() if key != "seconds"}
        return report

    # --- making ---

    def make_base(self) -> Row:
        prepare_base(self.base, overwrite=True)
        return {}

    def prune(self) -> Row:
        report = prune_folder(self.base, self.out / "pruned", sparsity=self.settings.sparsity, overwrite=True)
        return {"sparsity_reached": report["sparsity_reached"]}

    def train(self, target: str, tuner: str) -> Row:
        elastic = {"rank_choices": self.settings.rank_choices} if tuner == "sqft" else {}
        return self.train_over("pruned", target, tuner, self.sizes.steps, **elastic)

    def train_over(self, base: str, target: str, tuner: str, steps: int, **elastic: Any) -> Row:
        s = self.settings
        adapter = AdapterSettings.make(
            {"rank": max(s.rank_choices), "alpha": s.alpha, "target_modules": "all-linear", **elastic}
        )
        shared = {key: getattr(s, key) for key in ("batch_size", "learning_rate", "text_fraction", "seed")}
        training = TrainSettings.make(shared | {"steps": steps})
        report = train_adapter(
            self.out / base, self.out / target, self.training, adapter, training,
            tuner=tuner, text=text_examples(builtin_text("train")), overwrite=True,
        )  # fmt: skip
        return {"losses": report["losses"]}

    def extract(self) -> Row:
        return extract_adapter(self.out / "adapter", self.out / "sub_adapter", "heuristic", overwrite=True)

    def merge(self, adapter: str, target: str) -> Row:
        return merge_folder(self.out / "pruned", self.out / adapter, self.out / target, "max", overwrite=True)

    def quantize(self) -> Row:
        quantize_folder(self.out / "merged", self.out / "int4", "gptq", overwrite=True)
        return {}

    def export(self) -> Row:
        exporter = get_manager().get("sqft_exporters", "gguf", "exporter")
        exporter.export(self.out / "int4", self.out / "model.gguf", overwrite=True)
        return dict(exporter.verify(self.out / "int4", self.out / "model.gguf"))

    def unpack(self, file: Path) -> Row:
        prepare_file(file)
        return {"bytes": file.stat().st_size}

    def train_file(self) -> Row:
        steps = max(self.sizes.steps // 2, 1)  # a model that lost nothing learns the task in half of them
        return self.train_over("file.gguf", "file_adapter", "sqft", steps)

    def merge_file(self, target: Path) -> Row:
        return merge_folder(self.out / "file.gguf", self.out / "file_adapter", target, "max", overwrite=True)

    # --- scoring ---

    def folder_row(self, path: Path) -> Row:
        folder = ModelFolder(path)
        return self.scores(path) | {"zeros_kept": zeros_kept(folder, self.masks), **sizes(folder, self.masks)}

    def tuned(self) -> Row:
        pruned, adapter = ModelFolder(self.out / "pruned"), self.out / "sub_adapter"
        return self.scores(pruned.path, adapter=adapter, rank="max") | {
            "zeros_kept": zeros_kept(pruned, self.masks),  # the adapter is not merged: these are the stored weights
            **sizes(pruned, self.masks, AdapterFolder(adapter).weight_bytes),
        }

    def gguf_row(self) -> Row:
        file = self.out / "model.gguf"
        measured = {key: self.made["export"][key] for key in ("zeros_kept", "bits_per_weight")}
        return self.scores(file) | measured | {"bytes": file.stat().st_size}

    def file_row(self, path: Path) -> Row:
        file = open_model(path)
        return self.scores(path) | {"zeros_kept": zeros_kept(file, self.masks), **sizes(file, self.masks)}

    def scores(self, path: Path, **options: Any) -> Row:
        session = open_session(path, **options)
        try:
            score = accuracy(session, self.task)
            return {
                "accuracy": score.value,
                "accuracy_stderr": score.stderr,
                "perplexity": perplexity(session, "\n\n".join(builtin_text("heldout")), self.sizes.text_tokens),
                "sample": {"prompt": self.task.items()[0].prompt, "completion": score.completions[0]},
            }
        finally:
            session.close()
