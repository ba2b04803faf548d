"""`sqft report`: what the page says is what the files say, it needs nothing else, and no file can break it."""

from __future__ import annotations

import json
import re
import shutil
import time
from html.parser import HTMLParser

import pytest
from click.testing import CliRunner

from sqft_plugins.cli import cli
from sqft_plugins.compress.prune import prune_folder
from sqft_plugins.compress.quantize import quantize_folder
from sqft_plugins.errors import CheckpointError, OutputExistsError, SQFTError
from sqft_plugins.inspect import inspect_path
from sqft_plugins.report import collect, page, write_report
from sqft_plugins.report.html import tag, text
from sqft_plugins.report.page import _plus
from sqft_plugins.report.svg import Scale, apart, spanning
from sqft_plugins.tune.record import HISTORY

VOID = {"br", "meta"}
EVIL = '<script>alert("1")</script>&'


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


@pytest.fixture(scope="module")
def models(tiny_llama, tmp_path_factory):
    root = tmp_path_factory.mktemp("report")
    prune_folder(tiny_llama, root / "pruned", method="magnitude", sparsity=0.5)
    quantize_folder(root / "pruned", root / "int4")
    return root


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


# --- what is said ---


def test_a_model_is_told_as_inspect_measures_it(models) -> None:
    report = collect(models / "int4")
    inspected = inspect_path(models / "int4")
    (row,), (layers,) = report.artefacts, report.layers
    assert (row.zeros, row.bits_per_weight) == (inspected["total"]["zeros"], inspected["total"]["bits_per_weight"])
    assert (row.bytes, row.zeros_kept) == (inspected["bytes"], 1.0)
    assert [cell[2] for cell in layers.cells] == [one["zeros"] for one in inspected["layers"]]
    assert sum(layers.codes) == inspected["total"]["weights"]
    assert layers.zero_code == 8
    said = Page(page(report)).said
    assert "INT4 codes" in said
    assert "magnitude → round-to-nearest" in said


def test_a_lost_zero_is_never_a_round_hundred(models, tmp_path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(models / "pruned", tmp_path / "broken")
    file = tmp_path / "broken" / "model.safetensors"
    tensors = load_file(file)
    weight = tensors["model.layers.0.mlp.up_proj.weight"]
    weight.view(-1)[int((weight.view(-1) == 0).nonzero()[0])] = 1.0
    save_file(tensors, file, metadata={"format": "pt"})
    report = collect(tmp_path / "broken")
    assert 0.9999 < report.artefacts[0].zeros_kept < 1
    said = Page(page(report)).said
    assert "<100 %" in said
    assert "1 pruned weights are not zero" in said


def test_a_folder_of_several_is_joined(models, tmp_path) -> None:
    for name in ("pruned", "int4"):
        (tmp_path / name).symlink_to(models / name)
    adapter_folder(tmp_path / "deeper" / "adapter", [2.0, 1.0, 0.5], draws=[[8, 4], [8, 8], [4, 4]])
    search_folder(tmp_path / "search")
    (tmp_path / "arc.json").write_text(json.dumps(evaluation(tmp_path / "int4", perplexity=1.0)))
    (tmp_path / "elsewhere.json").write_text(json.dumps(evaluation("gpt2", 0.25)))
    report = collect(tmp_path)
    rows = {row.name: row for row in report.artefacts}
    assert set(rows) == {"pruned", "int4", "deeper/adapter", "elsewhere"}
    assert [(s.metric, s.value, s.stderr, s.questions) for s in rows["int4"].scores] == [
        ("acc", 0.5, 0.03, 300),
        ("acc_norm", 0.6, None, 300),
    ]
    assert rows["elsewhere"].scores[0].value == 0.25
    (training,) = report.trainings
    assert (training.rank_choices, training.draws) == ([8, 4], [[1, 1], [2, 0], [0, 2]])
    (search,) = report.searches
    assert [(t.number, t.score, t.cost) for t in search.trials] == [(0, 0.3, 120), (1, 0.1, 90), (2, 0.2, 60)]
    assert report.left_out == {}
    said = Page(page(report)).said
    assert "50.0 ± 3.0 %" in said
    assert "noise: not to be told from the heuristic" in said
    assert "0.000 ± 0.013" in said  # not -0.00002


def test_a_file_of_lm_evaluation_harness_is_joined_to_the_model_that_it_names(models, tmp_path) -> None:
    (tmp_path / "int4").symlink_to(models / "int4")
    theirs = {**evaluation("x"), "model_source": "hf", "model_name": str(tmp_path / "int4")}
    del theirs["model"]
    (tmp_path / "results_2026.json").write_text(json.dumps(theirs))
    (row,) = collect(tmp_path, quick=True).artefacts
    assert (row.name, row.scores[0].value) == ("int4", 0.5)


def test_a_run_of_a_recipe_is_told_in_its_order(models, tmp_path) -> None:
    run = tmp_path / "run"
    (run / "stages").mkdir(parents=True)
    (run / "recipe.yaml").write_text("model: gpt2\nprune:\n  sparsity: 0.5\n")
    shutil.copytree(models / "pruned", run / "z-first")
    shutil.copytree(models / "int4", run / "a-second")
    scores = {"a-second": evaluation("/old/place/run/a-second"), "base": evaluation("/old/base", 0.75)}
    (run / "score").mkdir()
    for name, one in scores.items():
        (run / "score" / f"{name}.json").write_text(json.dumps(one))
    first = {"key": "1" * 64, "inputs": {"after": [], "options": {"sparsity": 0.5}}, "result": {"seconds": 7.0}}
    second = {"key": "2" * 64, "inputs": {"after": ["1" * 64]}, "result": {"seconds": 5.0}}
    third = {"key": "3" * 64, "inputs": {"after": ["2" * 64]}, "result": {"scores": scores, "seconds": 1.0}}
    for name, record in (("score", third), ("a-second", second), ("z-first", first)):  # copied: times say nothing
        (run / "stages" / f"{name}.json").write_text(json.dumps(record))
        time.sleep(0.01)
    report = collect(run)
    assert [step.name for step in report.steps] == ["z-first", "a-second", "score"]
    assert [(row.name, row.seconds) for row in report.artefacts] == [
        ("base", None),
        ("z-first", 7.0),
        ("a-second", 5.0),
    ]
    assert report.artefacts[2].scores[0].value == 0.5
    assert len(report.artefacts[2].scores) == 2  # once, though stage and file both have it
    said = Page(page(report)).said
    assert "model: gpt2\nprune:" in said
    assert report.summary.startswith("Arc-easy: base 75.0 ± 3.0 %, a-second 50.0 ± 3.0 % at ")


def test_a_demo_is_told_with_its_command(models, tmp_path) -> None:
    run = tmp_path / "demo"
    (run / "stages").mkdir(parents=True)
    shutil.copytree(models / "pruned", run / "base")
    shutil.copytree(models / "int4", run / "int4")
    row = {"accuracy_stderr": 0.03, "zeros_kept": 1.0, "bits_per_weight": 4.5, "bytes": 5, "seconds": 2.0}
    stages = [
        {"name": "dense", "accuracy": 0.35, "perplexity": 18.5, **row},
        {"name": "int4", "accuracy": 0.8, "perplexity": 52.0, **row},
    ]
    (run / "report.json").write_text(
        json.dumps({"task": "sums", "stages": stages, "settings": {"steps": 7, "seed": 0}})
    )
    report = collect(run)
    assert [row.name for row in report.artefacts] == ["dense", "int4"]
    assert [layers.name for layers in report.layers] == ["dense", "int4"]
    assert report.command == f"sqft demo --out {run} --steps 7"
    assert report.summary == "Sums: dense 35.0 ± 3.0 %, int4 80.0 ± 3.0 % at 4.50 bits a weight and every pruned " \
        "weight still zero."  # fmt: skip


# --- the page ---


def test_the_page_needs_nothing_else(models, tmp_path) -> None:
    (tmp_path / "int4").symlink_to(models / "int4")
    adapter_folder(tmp_path / "adapter", [2.0, 1.0], draws=[[8], [4]])
    search_folder(tmp_path / "search")
    written = write_report(tmp_path)
    source = (tmp_path / "report.html").read_text()
    assert written["bytes"] == len(source.encode()) < 200_000
    found = Page(source)
    names = {name for name, _ in found.elements}
    assert not names & {"script", "link", "img", "iframe", "object", "base"}
    links = [value for _, a in found.elements for key, value in a.items() if key in ("href", "src")]
    assert links
    assert all(link.startswith("#") for link in links)
    anchors = {a.get("id") for _, a in found.elements}
    assert all(link[1:] in anchors for link in links)
    assert "@import" not in source
    assert "url(" not in source
    pictures = [a for name, a in found.elements if name == "svg"]
    assert len(pictures) == 7  # loss, draws, front, history, ranks, zeros, codes
    assert all(a["role"] == "img" and a["aria-label"] for a in pictures)


def test_nothing_of_a_file_gets_into_the_page_unescaped(tmp_path) -> None:
    folder = adapter_folder(tmp_path / "<b>&", [2.0, 1.0])
    training = json.loads((folder / "training.json").read_text())
    training |= {"tuner": EVIL, "training": {EVIL: EVIL}}
    (folder / "training.json").write_text(json.dumps(training))
    search_folder(tmp_path / "search", verdict=EVIL)
    (tmp_path / "not-utf8-\udcff").mkdir()
    written = write_report(tmp_path, title=EVIL)
    found = Page((tmp_path / "report.html").read_text())
    assert "script" not in {name for name, _ in found.elements}
    assert found.said.count(EVIL) >= 4
    assert "<b>&" in found.said
    assert "not-utf8-�" in found.said
    assert written["title"] == EVIL


def test_what_is_damaged_is_named_and_left_out(models, tmp_path) -> None:
    (tmp_path / "int4").symlink_to(models / "int4")
    damaged = adapter_folder(tmp_path / "adapter", [2.0, 1.0])
    (damaged / "training.json").write_text('{"tuner": "sqft", "losses": [1.0, "no')
    typed = adapter_folder(tmp_path / "typed", [2.0])
    (typed / "training.json").write_text('{"tuner": "sqft", "losses": [1.0, "no"]}')
    search = search_folder(tmp_path / "search")
    (search / "trials.csv").write_text("number,state,origin,score,stderr,parameters\n0,complete,,x,0,1\n")
    (tmp_path / "cut.json").write_text('{"results": ')
    (tmp_path / "other.json").write_text("[]")
    (tmp_path / "notes").mkdir()
    report = collect(tmp_path)
    assert set(report.left_out) == {"adapter", "typed", "search", "cut.json", "other.json", "notes"}
    assert "training.json" in report.left_out["adapter"]
    assert "losses.1" in report.left_out["typed"]
    assert "trials.csv" in report.left_out["search"]
    assert report.left_out["notes"] == "not recognised"
    said = Page(page(report)).said
    assert "Left out" in said
    assert "losses.1" in said


@pytest.mark.parametrize(("losses", "charts"), [([], 0), ([1.0], 0), ([float("nan"), 1.0, 2.0], 1), ([2.0] * 5, 1)])
def test_a_loss_that_cannot_be_drawn_does_no_harm(losses, charts, tmp_path) -> None:
    folder = adapter_folder(tmp_path / "adapter", losses)
    found = Page(page(collect(folder)))
    assert sum(name == "svg" for name, _ in found.elements) == charts
    assert "nan" not in " ".join(a.get("d", "") for _, a in found.elements)


def test_a_long_training_makes_no_large_page(tmp_path) -> None:
    losses = [2.0 + 0.001 * (step % 7) for step in range(20_000)]
    losses[12_345] = 9.0
    source = page(collect(adapter_folder(tmp_path / "adapter", losses)))
    assert len(source) < 100_000
    curves = [a["d"] for name, a in Page(source).elements if name == "path" and "c1" in a.get("class", "")]
    heights = [float(place.split()[1]) for place in re.split("[ML]", curves[0])[1:]]
    assert min(heights) < 60 < 150 < max(heights)  # the one step that stands out is still there


# --- files ---


def test_only_a_page_of_ours_is_replaced(models, tmp_path) -> None:
    target = tmp_path / "page.html"
    write_report(models / "int4", target, quick=True)
    write_report(models / "int4", target, quick=True)
    target.write_text("mine")
    with pytest.raises(OutputExistsError, match="--overwrite"):
        write_report(models / "int4", target, quick=True)
    assert target.read_text() == "mine"
    write_report(models / "int4", target, quick=True, overwrite=True)
    assert "sqft-plugins" in target.read_text()


def test_nothing_to_report_is_an_error_and_no_page(tmp_path) -> None:
    with pytest.raises(CheckpointError, match="is not there"):
        collect(tmp_path / "no")
    (tmp_path / "notes.md").write_text("x")
    with pytest.raises(CheckpointError, match="holds nothing to report"):
        write_report(tmp_path)
    (tmp_path / "cut.json").write_text("{")
    with pytest.raises(SQFTError, match=r"cut.json is no JSON file"):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_the_command_prints_the_summary_or_json(models, tmp_path) -> None:
    target = tmp_path / "page.html"
    shown = CliRunner().invoke(cli, ["report", str(models / "int4"), "--out", str(target), "--quick"])
    assert shown.exit_code == 0, shown.output
    assert f"{target}: " in shown.stdout
    as_json = CliRunner().invoke(cli, ["report", str(models / "int4"), "--out", str(target), "--quick", "--json"])
    assert json.loads(as_json.stdout)["artefacts"][0]["what"] == "magnitude → round-to-nearest"


# --- parts ---


def test_markup_is_escaped_once() -> None:
    inner = tag("b", "a<b", class_='"')
    assert inner == '<b class="&quot;">a&lt;b</b>'
    assert tag("p", inner, None, [1, 2.5]) == f"<p>{inner}12.5</p>"
    assert text("a\x00b") == "a�b"


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (3.2, 3.3), (-5, 12345), (1e-7, 2e-7)])
def test_ticks_are_round_and_inside(low, high) -> None:
    scale = Scale(low, high, 100, 0)
    ticks = scale.ticks()
    assert 2 <= len(ticks) <= 11
    assert all(low - 1e-12 <= tick <= high + 1e-9 * abs(high) for tick in ticks)
    assert all(re.fullmatch(r"-?0|-?[125]\d*?0*|-?\d+", f"{tick / (ticks[1] - ticks[0]):.0f}") for tick in ticks)
    assert (scale(low), scale(high)) == (100, 0)


def test_one_value_alone_has_a_scale() -> None:
    assert spanning([5.0], 100, 0)(5.0) == 50
    assert spanning([0.0], 100, 0)(0.0) == 50


def test_labels_do_not_overlap() -> None:
    moved = apart([10.0, 11.0, 50.0], 14)
    assert moved[1] - moved[0] >= 14 - 1e-6
    assert moved[2] == 50


@pytest.mark.parametrize(
    ("score", "error", "shown"),
    [(0.1234, 0.0131, "0.123 ± 0.013"), (-2e-5, 0.013, "0.000 ± 0.013"), (3.0, 0.0, "3.0000 ± 0.0000")],
)
def test_numbers_have_the_decimals_of_their_error(score, error, shown) -> None:
    assert _plus({"score": score, "stderr": error}) == shown
