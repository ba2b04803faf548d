"""What a merge keeps: adapters trained, merged, and asked again in a fresh process, on Gemma-3-270M at 50 % sparsity.

    python benchmarks/merge.py --base demo-out/pruned [--int4 DIR] [--out DIR] [--quick] [--json FILE] [--threads N]

--base: the sparse float folder of `make demo`. --int4: the INT4 folder made from it, by default by `sqft quantize
--method gptq`. SparsePEFT and QA-SparsePEFT (elastic, 32/24/16, merged at 24) beside what people do without them: the
plain merge of a LoRA into the sparse float base, and rounding a LoRA over the INT4 base back to its grid. Answers are
greedy, in float32; "same" counts the questions that are answered word for word as before the merge. What is in --out is
reused. One training step of 16 takes 2 to 4 s on two cores without AMX: about 25 minutes in all, --quick 4.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import command, environment

os.environ.setdefault("TQDM_DISABLE", "1")  # transformers' bars: our progress is lines
QUESTIONS, STEPS, BATCH, RATE = 200, 60, 16, 5e-4
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ELASTIC = {"rank": 32, "alpha": 64, "rank_choices": [32, 24, 16], "target_modules": TARGETS}
PLAIN = {"rank": 24, "alpha": 48, "target_modules": TARGETS}
RANK = 24


def main() -> None:
    parser = command(__doc__, "8 questions, 6 small steps: does it run")
    parser.add_argument("--base", type=Path, default=Path("demo-out/pruned"))
    parser.add_argument("--int4", type=Path)
    parser.add_argument("--out", type=Path, default=Path("merge-out"))
    parser.add_argument("--threads", type=int)
    parser.add_argument("--int4-only", action="store_true", help="Without QA-SparsePEFT over the float base")
    parser.add_argument("--steps", type=int, default=STEPS, help="Training steps of 16 examples")
    parser.add_argument("--answer", nargs=3, metavar=("MODEL", "ADAPTER", "N"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.answer:
        print(json.dumps(answer(*options.answer)))
        return
    options.out.mkdir(parents=True, exist_ok=True)
    rows = table(options.base, options.int4, options.out, options.quick, options.steps, not options.int4_only)
    show(rows)
    if options.json:
        Path(options.json).write_text(json.dumps({"environment": environment(), "rows": rows}, indent=2) + "\n")


def table(base: Path, int4: Path | None, out: Path, quick: bool, steps: int, over_float: bool) -> list[dict[str, Any]]:
    """One row for each way from an adapter to a merged model."""
    from sqft_plugins.checkpoint import ModelFolder
    from sqft_plugins.compress.quantize import quantize_folder

    if not ModelFolder(base).masks:
        raise SystemExit(
            f"--base {base} has no mask (sqft/): make it with `sqft prune`, or there are no zeros to count"
        )
    questions = 8 if quick else QUESTIONS
    training = {"steps": 6 if quick else steps, "batch_size": 4 if quick else BATCH, "learning_rate": RATE}
    if int4 is None:
        int4 = out / "int4"
        once(int4, lambda: quantize_folder(base, int4, method="gptq"))
    rows = [untouched("sparse float base", base, questions), untouched("its INT4, by GPTQ", int4, questions)]

    def row(name: str, over: Path, tuner: str, settings: dict[str, Any], merge: Callable[[Path, Path], dict]) -> None:
        key = name.lower().replace(" ", "-").replace(",", "")
        adapter, merged, notes = out / f"{key}-adapter", out / f"{key}-merged", out / f"{key}.json"
        once(adapter, lambda: train(over, adapter, tuner, settings, training))
        once(merged, lambda: notes.write_text(json.dumps(merge(adapter, merged), default=str)))
        report = json.loads(notes.read_text())
        before, after = ask(over, adapter, questions), ask(merged, None, questions)
        same = sum(a == b for a, b in zip(before["completions"], after["completions"], strict=True))
        rows.append(
            {
                "name": name,
                "questions": questions,
                "before": before["correct"],
                "after": after["correct"],
                "same": same,
                **measured(base, merged),
                "codes_changed": report.get("codes_changed"),
                "adapter_kept": report.get("adapter_kept"),
                "max_logit_difference": report.get("max_logit_difference"),
            }
        )

    from sqft_plugins.tune.merge import merge_folder

    qa = {**ELASTIC, "quantization_aware": True}
    row("SparsePEFT", base, "sqft", ELASTIC, lambda a, m: merge_folder(base, a, m, RANK))
    row("QA-SparsePEFT over INT4", int4, "sqft", qa, lambda a, m: merge_folder(int4, a, m, RANK))
    row("plain LoRA, merged into float", base, "lora", PLAIN, lambda a, m: merge_folder(base, a, m, "max"))
    row("plain LoRA, rounded to INT4", int4, "lora", PLAIN, lambda a, m: round_lora(int4, a, m))
    beside = {**qa, "grid": str(int4)}
    if over_float:
        row("QA-SparsePEFT over the float base", base, "sqft", beside, lambda a, m: merge_folder(base, a, m, RANK))
    return rows


def train(over: Path, adapter: Path, tuner: str, settings: dict[str, Any], training: dict[str, Any]) -> None:
    from sqft_plugins.demo.task import WordProblems
    from sqft_plugins.tune import AdapterSettings, TrainSettings
    from sqft_plugins.tune.train import train_adapter

    examples = WordProblems().training(2000)
    made = AdapterSettings.make(settings), TrainSettings.make(training)
    train_adapter(over, adapter, examples, *made, tuner=tuner)


def round_lora(int4: Path, adapter: Path, merged: Path) -> dict[str, Any]:
    """The naive merge of a LoRA into INT4: add its delta to the dequantized weights and round to their own grid.

    adapter_kept: how much of the delta is left after rounding, ⟨Q' - W, Δ⟩ / ⟨Δ, Δ⟩; 1 is all of it.
    """
    from sqft_plugins.checkpoint import ModelFolder, load_model, write_folder
    from sqft_plugins.checkpoint.recode import Recoded, write_codes
    from sqft_plugins.grid import dequantize, quantize
    from sqft_plugins.plugins import get_manager

    folder = ModelFolder(int4)
    tuner = get_manager().get("sqft_tuners", "lora", "tuner")
    tuned = tuner.load(load_model(int4, dtype=torch.float32), adapter)
    codes, changed, weights, kept, norm = {}, 0, 0, 0.0, 0.0
    for name, layer in tuned.base_model.model.named_modules():
        if not hasattr(layer, "get_delta_weight"):
            continue
        stored, delta = folder.quantized(name), layer.get_delta_weight("default").detach()
        weight = stored.dequantize()
        codes[name] = quantize(weight + delta, stored.scale, stored.zero_point)
        left = dequantize(codes[name], stored.scale, stored.zero_point) - weight
        changed, weights = changed + int((codes[name] != stored.codes).sum()), weights + weight.numel()
        kept, norm = kept + float((left * delta).sum()), norm + float((delta * delta).sum())
    assert folder.stamp is not None
    with write_folder(merged) as target:
        write_codes(Recoded(folder, codes), target, folder.stamp.then("lora-rounded"))
    return {"codes_changed": changed / weights, "adapter_kept": kept / norm}


def measured(base: Path, merged: Path) -> dict[str, Any]:
    """zeros_kept: of the base's pruned weights, the fraction that is exactly 0. codes: lowest and highest, or None."""
    from sqft_plugins.checkpoint import ModelFolder
    from sqft_plugins.measure import zeros_kept

    folder = ModelFolder(merged)
    found = [folder.quantized(module).codes for module in folder.int4.modules]
    codes = [min(int(c.min()) for c in found), max(int(c.max()) for c in found)] if found else None
    return {"zeros_kept": zeros_kept(folder, ModelFolder(base).masks), "codes": codes}


def untouched(name: str, model: Path, questions: int) -> dict[str, Any]:
    return {"name": name, "questions": questions, "before": ask(model, None, questions)["correct"]}


def ask(model: Path, adapter: Path | None, questions: int) -> dict[str, Any]:
    """`answer` in a fresh process."""
    arguments = ["--answer", str(model), str(adapter or ""), str(questions), "--threads", str(torch.get_num_threads())]
    done = subprocess.run([sys.executable, __file__, *arguments], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def answer(model: str, adapter: str, questions: str) -> dict[str, Any]:
    """correct, and the completions of word problems that were not trained on."""
    from sqft_plugins.demo.task import WordProblems
    from sqft_plugins.evaluate import accuracy, open_session

    with_adapter: dict[str, Any] = {}
    if adapter:
        elastic = json.loads((Path(adapter) / "adapter_config.json").read_text()).get("rank_choices")
        with_adapter = {"adapter": Path(adapter), "rank": RANK if elastic else "max"}
    session = open_session(model, dtype="float32", **with_adapter)
    found = accuracy(session, WordProblems(int(questions)))
    return {"correct": found.correct, "completions": list(found.completions)}


def once(path: Path, make: Callable[[], Any]) -> None:
    if not path.exists():
        print(f"making {path}", file=sys.stderr, flush=True)
        make()


def show(rows: list[dict[str, Any]]) -> None:
    columns = (
        "",
        "right before",
        "right after",
        "same answers",
        "zeros kept",
        "codes",
        "codes changed",
        "adapter kept",
    )
    print("| " + " | ".join(columns) + " |")
    print("|---" * len(columns) + "|")
    for row in rows:
        n = row["questions"]
        percent = [f"{row[key]:.2%}" if row.get(key) is not None else "" for key in ("zeros_kept", "codes_changed")]
        cells = [row["name"], f"{row['before']}/{n}"]
        if "after" in row:
            kept = "" if row["adapter_kept"] is None else f"{row['adapter_kept']:.1%}"
            codes = "" if row["codes"] is None else "{}..{}".format(*row["codes"])
            cells += [f"{row['after']}/{n}", f"{row['same']}/{n}", percent[0], codes, percent[1], kept]
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
