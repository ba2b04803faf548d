"""A report in which every section and every chart of the page has something to show, long names included."""

from __future__ import annotations

import math
import random

from sqft_plugins.report.data import Artefact, Layers, Ranks, Report, Score, Search, StepRecord, Training, Trial

KINDS = [f"self_attn.{name}_proj" for name in "qkvo"] + [f"mlp.{name}_proj" for name in ("gate", "up", "down")]
RANKS = [32, 24, 16]
ROWS = [("dense", 0.35, 18.5, 16.0, 536), ("pruned", 0.1, 33.0, 16.0, 536), ("int4", 0.7, 520.0, 4.5, 240)]
LONG = "a-run-with-a-name-that-is-much-longer-than-a-chart-is-wide"


def sample_report() -> Report:
    """Always the same one."""
    draw = random.Random(0)
    artefacts = [
        Artefact(
            name=name,
            kind="model",
            what="the merged model on the INT4 grid (GPTQ with the mask kept, compressed-tensors)",
            path=f"/runs/{name}",
            scores=[
                Score("word-problems", "acc", accuracy, 0.04, 128),
                Score("text", "perplexity", perplexity, higher_is_better=False),
            ],
            zeros=0.5,
            zeros_kept=1.0,
            bits_per_weight=bits,
            bytes=megabytes * 10**6,
            layer_bytes=200 * 10**6,
            seconds=31.2,
        )
        for name, accuracy, perplexity, bits, megabytes in [*ROWS, (LONG, 0.72, 28.1, 16.0, 545)]
    ]
    losses = [3 * math.exp(-step / 80) + 0.6 + 0.2 * draw.random() for step in range(300)]
    training = Training(
        name="adapter",
        tuner="sqft",
        losses=losses,
        held_out=[(step, losses[step - 1] + 0.15) for step in (1, 100, 200, 300)],
        rank_choices=RANKS,
        draws=[[draw.randint(0, 6) for _ in RANKS] for _ in losses],
        settings={"rank_choices": RANKS, "learning_rate": 5e-4, "base": f"/models/{LONG}/{LONG}"},
        seconds=30.1,
    )
    return Report(
        path=f"/runs/{LONG}",
        title="A run on word problems",
        summary="Word problems: dense 35.0 ± 4.0 %, int4 70.0 ± 4.0 %.",
        artefacts=artefacts,
        trainings=[training],
        searches=[_search(draw)],
        ranks=[Ranks("search", [(block, kind, draw.choice(RANKS)) for block in range(18) for kind in KINDS])],
        layers=[
            Layers("pruned", _cells(draw, 18), 0.5, 10**8, 0.5, 3, same=[LONG]),
            Layers("deep", _cells(draw, 80), 0.5, 10**8, 0.5, 0, [draw.randint(1, 9) for _ in range(16)], 8),
            Layers("even", [(block, kind, 0.5) for block in range(4) for kind in KINDS], 0.5, 10**8, 0.5, 0),
        ],
        steps=[StepRecord("prune", 12.3, {"sparsity": 0.5}), StepRecord("train", 120.3, {"steps": 300})],
        settings={"steps": 300, "seed": 0},
        command=f"sqft demo --out {LONG} --steps 300",
        recipe=f"model: gpt2  # {LONG} {LONG}\nprune:\n  sparsity: 0.5\n",
        environment={"Python": "3.11", "CPU": "A processor, x86_64: avx2 fma f16c avx512f avx512vbmi avx512_vbmi2"},
        left_out={"notes": "not recognised"},
    )


def _cells(draw: random.Random, blocks: int) -> list[tuple[int, str, float]]:
    return [(block, kind, 0.3 + 0.4 * draw.random()) for block in range(blocks) for kind in KINDS]


def _search(draw: random.Random) -> Search:
    trials = [
        Trial(n, "" if n else "heuristic", 0.7 - 0.002 * n + 0.05 * draw.random(), 0.03, 1.2e6 + 3e6 * draw.random())
        for n in range(40)
    ]
    front: list[Trial] = []
    for trial in sorted(trials, key=lambda trial: trial.cost):
        if not front or trial.score < front[-1].score:
            front.append(trial)
    scored = {"score": 0.14, "stderr": 0.02, "questions": 120}
    result = {
        "task": "sums",
        "unit": "nats per answer token",
        "direction": "minimize",
        "settings": {"objective": "nll", "method": "tpe", "against": None},
        "evaluations": 40,
        "finalists": [{"name": "trial 7", "search": scored, "parameters": 1_200_000, "recheck": scored}],
        "chosen": {"name": f"trial {front[-1].number}", **scored},
        "heuristic": {"name": "heuristic", **scored},
        "difference": {"score": -2e-5, "stderr": 0.013, "questions": 12},
        "verdict": "noise: not to be told from the heuristic",
    }
    return Search("search", result, trials, "parameters", [trial.number for trial in front])
