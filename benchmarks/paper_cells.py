"""One cell of the paper's table: a method at a sparsity, trained with a seed and tested on a task group."""

from __future__ import annotations

import datetime
import fcntl
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common import environment
from paper_data import GROUPS, METRICS, examples, is_right, task_files
from paper_methods import METHODS, Cell, PaperSettings

from sqft_plugins.checkpoint import ModelFolder, write_file
from sqft_plugins.compress.float_model import FloatModel
from sqft_plugins.compress.prune import prune_folder
from sqft_plugins.compress.quantize import quantize_folder
from sqft_plugins.compress.report import peak_memory_mib
from sqft_plugins.demo.base import prepare_base
from sqft_plugins.evaluate.report import evaluate_model, open_candidate
from sqft_plugins.evaluate.tasks import JsonlTask
from sqft_plugins.measure import bits_per_weight, zeros_kept
from sqft_plugins.progress import say
from sqft_plugins.search.paired import mean
from sqft_plugins.search.run import search_adapter
from sqft_plugins.search.settings import SearchSettings
from sqft_plugins.tune import AdapterSettings, TrainSettings
from sqft_plugins.tune.extract import extract_adapter
from sqft_plugins.tune.merge import merge_folder
from sqft_plugins.tune.settings import PAPER_TARGETS
from sqft_plugins.tune.train import train_adapter

KEPT = (
    "sparsity_reached", "calibration", "trained_parameters", "tokens", "losses", "dtype", "zeros_lost", "codes_changed",
    "max_logit_difference",
)  # fmt: skip
"""What a cell tells of the reports of pruning, quantizing, training and merging."""


@dataclass
class Bench:
    """out: the folder of the cells' JSON files. work: models and adapters; may be deleted, then they are made again.
    model: the dense model, None for Gemma-3-270M from its PyPI package."""

    out: Path
    work: Path
    data_dir: str
    settings: PaperSettings
    model: Path | None = None
    about: dict[str, Any] = field(default_factory=dict)

    def file(self, cell: Cell) -> Path:
        return self.out / f"{cell.key}.json"

    def run(self, cell: Cell) -> dict[str, Any] | None:
        """The cell's result, also written to its file; None where another process is at it."""
        with claimed(self.work / "locks" / cell.key) as mine:
            if not mine:
                return None
            if self.file(cell).is_file():
                return json.loads(self.file(cell).read_text())
            say(cell.key, "bold")
            start = time.monotonic()
            result = {
                **cell.__dict__,
                "title": METHODS[cell.method].title,
                **self.measure(cell),
                "seconds": round(time.monotonic() - start, 1),
                "settings": self.settings.model_dump(),
                **self.about,
            }
            with write_file(self.file(cell), overwrite=True) as file:
                file.write_text(as_text(result))
            say(f"{cell.key}: {summary(result)}")
            return result

    # --- what a cell is made of ---

    def measure(self, cell: Cell) -> dict[str, Any]:
        method, tasks = METHODS[cell.method], GROUPS[cell.group].tasks
        base, about = self.base(method.base, cell.sparsity)
        found: dict[str, Any]
        if method.adapter is None:
            candidate = open_candidate(base, cache=False)
            zeros = None if cell.sparsity is None else zeros_kept(ModelFolder(base), self.masks(cell.sparsity))
            found = {"made": about, **self.sizes(ModelFolder(base)), "zeros_kept": zeros}
            return found | self.scores(candidate, tasks, cell.key)
        adapter, training = self.adapter(cell)
        found = {"made": about, "training": training, "mergeable": method.merged}
        rank: Any = "heuristic"
        if method.other:
            found["search"], rank = self.search(cell, base, adapter)
        if method.merged:
            merged = self.work / "merged" / cell.key
            report = merge_folder(base, adapter, merged, rank, overwrite=True)
            found["merge"] = {key: report[key] for key in (*KEPT, "seconds") if key in report}
            found |= self.sizes(ModelFolder(merged))
            found["zeros_kept"] = zeros_kept(ModelFolder(merged), self.masks(cell.sparsity))
            found |= self.scores(open_candidate(merged, cache=False), tasks, cell.key)
            shutil.rmtree(merged)
            return found
        if method.elastic:  # stays unmerged: what is served is the heuristic's sub-adapter
            extract_adapter(adapter, self.work / "sub" / cell.key, "heuristic", overwrite=True)
            adapter = self.work / "sub" / cell.key
        candidate = open_candidate(base, adapter, "max", cache=False)
        found["zeros_kept"] = self.zeros_after_naive_merge(candidate.session.model, cell.sparsity)
        found |= self.scores(candidate, tasks, cell.key)
        return found | self.sizes(ModelFolder(base), (adapter / "adapter_model.safetensors").stat().st_size)

    def base(self, kind: str, sparsity: int | None) -> tuple[Path, dict[str, Any]]:
        """The folder and how it was made."""
        s = self.settings
        if kind == "dense":
            if self.model is not None:
                return self.model, {}
            return once(self.work / "dense", lambda path: prepare_base(path) or {})
        calibration: dict[str, Any] = {"sequences": s.sequences, "length": s.length}
        if kind == "float":
            dense, _ = self.base("dense", None)
            prune = lambda path: prune_folder(dense, path, s.pruner, (sparsity or 0) / 100, **calibration)  # noqa: E731
            return once(self.work / f"pruned-{sparsity}", prune)
        pruned, _ = self.base("float", sparsity)
        return once(
            self.work / f"int4-{sparsity}",
            lambda path: quantize_folder(pruned, path, s.quantizer, s.group_size, **calibration),
        )

    def adapter(self, cell: Cell) -> tuple[Path, dict[str, Any]]:
        """The trained adapter's folder and the report of its training."""
        method, s = METHODS[cell.method], self.settings
        base, _ = self.base(method.base, cell.sparsity)
        name = method.other or cell.method
        settings: dict[str, Any] = {"rank": s.rank, "alpha": s.alpha, **(METHODS[name].adapter or {})}
        if method.elastic:
            settings["rank_choices"] = list(s.rank_choices)
        if cell.method == "lora-equal":  # alpha / rank stays, as the scaling of a sub-adapter does
            settings["rank"] = sorted(s.rank_choices)[len(s.rank_choices) // 2]
            settings["alpha"] = s.alpha * settings["rank"] / s.rank
        if settings.get("quantization_aware"):
            settings["grid"] = str(self.base("int4", cell.sparsity)[0])

        def train(path: Path) -> dict[str, Any]:
            steps = s.maths_steps if cell.group == "maths" else s.steps
            shared = {"steps": steps, "batch_size": s.batch_size, "learning_rate": s.learning_rate}
            return train_adapter(
                base, path, examples(GROUPS[cell.group].tasks, self.data_dir)[0], AdapterSettings.make(settings),
                TrainSettings.make({**shared, "seed": cell.seed}), tuner="sqft" if method.elastic else "lora",
            )  # fmt: skip

        own = Cell(name, cell.group, cell.sparsity, cell.seed)
        return once(self.work / "adapters" / own.key, train)

    def search(self, cell: Cell, base: Path, adapter: Path) -> tuple[dict[str, Any], dict[str, int]]:
        """The search's report on questions that were neither trained on nor are tested, and the ranks."""
        s, out = self.settings, self.work / "search" / cell.key
        how = {"evaluations": s.evaluations, "subset": s.subset, "fresh": s.fresh, "seed": cell.seed}
        task = JsonlTask("held-out", examples(GROUPS[cell.group].tasks, self.data_dir)[1])
        report = search_adapter(base, adapter, task, SearchSettings.make(how), out=out, overwrite=True)
        kept = ("unit", "evaluations", "seconds", "chosen", "heuristic", "difference", "verdict")
        return {key: report[key] for key in kept}, report["chosen"]["ranks"]

    # --- numbers ---

    def scores(self, candidate: Any, tasks: tuple[str, ...], name: str) -> dict[str, Any]:
        """scores: task → its metrics with standard errors, and `items`, question by question. name: of the work."""
        s, found, seconds = self.settings, {}, 0.0
        for task in tasks:
            files = task_files((task,), self.work / "tasks" / name, s.new_tokens)
            limit = s.maths_questions if METRICS[task] == "calculated" else s.questions
            report = evaluate_model(candidate, files, data_dir=self.data_dir, limit=limit, samples=True)
            seconds += report["seconds"]
            scores = {name.partition(",")[0]: value for name, value in report["results"][task].items() if "," in name}
            rows = sorted(report["samples"][task], key=lambda row: row["doc_id"])
            found[task] = {"n": len(rows), **scores}
            if METRICS[task] == "calculated":
                texts = [row["filtered_resps"][0] for row in rows]
                right = [is_right(text, row["doc"]["number"]) for text, row in zip(texts, rows, strict=True)]
                score = mean([float(value) for value in right])
                found[task] |= {"calculated": score.value, "calculated_stderr": score.stderr, "completions": texts}
            else:  # sums over the option's tokens, as log-likelihoods are
                right = [bool(row[METRICS[task]]) for row in rows]
                nll = [-float(row["filtered_resps"][row["doc"]["gold"]][0]) for row in rows]
                found[task]["gold_nll"] = [round(value, 3) for value in nll]
            found[task]["items"] = "".join(str(int(value)) for value in right)
        candidate.close()
        return {"scores": found, "evaluation_seconds": round(seconds, 1)}

    def sizes(self, folder: ModelFolder, added: int = 0) -> dict[str, Any]:
        """bits_per_weight: of the linear layers of the blocks, with what the adapter adds. bytes: of all weights."""
        modules = list(folder.masks) or list(FloatModel(folder.path, ()).modules)
        bits = bits_per_weight(folder, modules, added)
        return {"bits_per_weight": round(bits, 3), "bytes": folder.weight_bytes + added}

    def masks(self, sparsity: int | None) -> dict[str, Any]:
        """Packed masks of the layers that the adapters change."""
        masks = ModelFolder(self.base("float", sparsity)[0]).masks
        return {name: mask for name, mask in masks.items() if name.rpartition(".")[2] in PAPER_TARGETS}

    def zeros_after_naive_merge(self, model: Any, sparsity: int | None) -> float:
        """Of the pruned weights of the adapted layers, the fraction that W + delta leaves exactly 0."""
        folder = ModelFolder(self.base("float", sparsity)[0])
        pruned = zero = 0
        for name, layer in model.base_model.model.named_modules():
            if hasattr(layer, "get_delta_weight"):
                weight, gone = layer.get_base_layer().weight + layer.get_delta_weight("default"), ~folder.mask(name)
                pruned, zero = pruned + int(gone.sum()), zero + int((weight[gone] == 0).sum())
        return zero / pruned


def as_text(result: Mapping[str, Any]) -> str:
    """JSON to read and to compare: a key a line, a list of numbers or texts on one."""
    text = json.dumps(result, indent=1)
    lists = re.compile(r"\[\n([^\[\]{}]*)\n *\]")
    return lists.sub(lambda found: "[" + re.sub(r"\n *", " ", found[1]).strip() + "]", text) + "\n"


def summary(result: Mapping[str, Any]) -> str:
    parts = [f"{task} {100 * found[METRICS[task]]:.1f}" for task, found in result["scores"].items()]
    trained = f", trained in {result['training']['seconds']:.0f} s" if "training" in result else ""
    return f"{', '.join(parts)}{trained}, {result['seconds']:.0f} s in all"


def once(path: Path, make: Callable[[Path], Mapping[str, Any]]) -> tuple[Path, dict[str, Any]]:
    """Makes the folder where it is not there yet → path, what is worth keeping of the report of its making. A process
    that comes while another makes it waits."""
    note = path.with_name(f"{path.name}.json")
    with claimed(path.with_name(f"{path.name}.lock"), wait=True):
        if not (path.exists() and note.exists()):
            shutil.rmtree(path, ignore_errors=True)
            start, cpu = time.monotonic(), time.process_time()
            report = make(path)
            found = {key: report[key] for key in KEPT if key in report}
            if "losses" in found:
                found["losses"] = [round(loss, 4) for loss in found["losses"]]
            seconds = round(report.get("seconds", time.monotonic() - start), 1)
            cpu = round(time.process_time() - cpu, 1)  # of all threads; a busy machine does not lengthen it
            found |= {"seconds": seconds, "cpu_seconds": cpu, "peak_memory_mib": peak_memory_mib()}
            with write_file(note, overwrite=True) as file:
                file.write_text(json.dumps(found) + "\n")
    return path, json.loads(note.read_text())


@contextmanager
def claimed(file: Path, wait: bool = False) -> Iterator[bool]:
    """Whether this process holds `file`, which then has its number. The system frees it when the process ends, however
    that happens."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "a+") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        handle.truncate(0)
        handle.write(f"{os.getpid()}\n")
        handle.flush()
        yield True


def circumstances() -> dict[str, Any]:
    """What stands in every cell: machine, versions, commit, day."""
    git = ["git", "-C", str(Path(__file__).parent)]
    commit = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True).stdout.strip()
    machine = {**environment(), "cores": os.cpu_count()}
    day = datetime.date.today().isoformat()
    return {"environment": machine, "commit": f"{commit}{' with changes' if changed else ''}", "date": day}
