"""Folders as the verbs leave them, and a page taken apart."""

from __future__ import annotations

import json
from html.parser import HTMLParser

from sqft_plugins.tune.record import HISTORY

VOID = {"br", "meta"}


class Page(HTMLParser):
    """The texts of a page, its elements, and whether each that is opened is closed again."""

    def __init__(self, source: str):
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict]] = []
        self.texts: list[str] = []
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, name, attributes):
        self.elements.append((name, dict(attributes)))
        if name not in VOID:
            self.open.append(name)

    def handle_endtag(self, name):
        assert self.open.pop() == name

    def handle_data(self, data):
        if "style" not in self.open:
            self.texts.append(data)

    @property
    def said(self) -> str:
        return "".join(self.texts)


def adapter_folder(folder, losses, choices=(8, 4), draws=()):
    """What `sqft train` leaves, with these losses; the weights are two small matrices."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    config = {"peft_type": "SQFT", "base_model_name_or_path": "pruned", "rank_choices": list(choices), "sparse": True}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    name = "base_model.model.model.layers.0.mlp.up_proj.lora_{}.weight"
    save_file(
        {name.format("A"): torch.ones(8, 4), name.format("B"): torch.ones(6, 8)}, folder / "adapter_model.safetensors"
    )
    training = {"tuner": "sqft", "losses": losses, "seconds": 3.0, "training": {"steps": len(losses)}}
    (folder / "training.json").write_text(json.dumps(training))
    if draws:
        rows = [{"step": i, "loss": 1.0, "ranks": ranks} for i, ranks in enumerate(draws, 1)]
        head = {"version": 1, "modules": [f"m{i}" for i in range(len(draws[0]))]}
        (folder / HISTORY).write_text("\n".join(map(json.dumps, [head, *rows])) + "\n")
    return folder


SCORED = {"score": 0.14, "stderr": 0.02, "questions": 12}


def search_folder(folder, verdict="noise: not to be told from the heuristic"):
    folder.mkdir(parents=True)
    result = {
        "task": "sums",
        "unit": "nats per answer token",
        "direction": "minimize",
        "settings": {"objective": "nll", "method": "tpe", "against": None},
        "space": {"groups": 2, "rank_choices": [4, 8], "size": 4},
        "evaluations": 3,
        "finalists": [
            {"name": "trial 1", "search": {"score": 0.1, "stderr": 0.02}, "parameters": 90, "recheck": SCORED}
        ],
        "chosen": {"name": "trial 1", **SCORED, "ranks": {f"model.layers.{i}.mlp.up_proj": 4 + 4 * i for i in (0, 1)}},
        "heuristic": {"name": "heuristic", **SCORED},
        "difference": {"score": -2e-5, "stderr": 0.013, "questions": 12},
        "verdict": verdict,
        "front": [1, 2],
    }
    (folder / "search.json").write_text(json.dumps(result))
    rows = ["number,state,origin,score,stderr,parameters", "0,complete,heuristic,0.3,0.02,120"]
    rows += ["1,complete,,0.1,0.02,90", "2,complete,,0.2,0.02,60", "3,fail,,,,"]
    (folder / "trials.csv").write_text("\n".join(rows) + "\n")
    return folder


def evaluation(model, value=0.5, **more):
    results = {"arc-easy": {"alias": "arc-easy", "acc,none": value, "acc_stderr,none": 0.03, "acc_norm,none": 0.6}}
    counts = {"arc-easy": {"original": 2376, "effective": 300}}
    better = {"arc-easy": {"acc": True}}
    return {"model": str(model), "results": results, "n-samples": counts, "higher_is_better": better, **more}
