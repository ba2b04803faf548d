"""`--accelerate`: INT4 models evaluated and searched from their packed form score as they do from float weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers_eval import write_data

from sqft_plugins.cli import main
from sqft_plugins.errors import KernelError, SQFTError
from sqft_plugins.evaluate import open_session
from sqft_plugins.evaluate.identity import identity
from sqft_plugins.evaluate.report import evaluate_model, open_candidate
from sqft_plugins.evaluate.tasks import JsonlTask
from sqft_plugins.kernels.library import library
from sqft_plugins.kernels.linear import SparseInt4Linear
from sqft_plugins.search.run import search_adapter
from sqft_plugins.search.settings import SearchSettings
from sqft_plugins.tune import AdapterSettings, TrainSettings
from sqft_plugins.tune.examples import Example
from sqft_plugins.tune.train import train_adapter

pytest.importorskip("lm_eval")
pytest.importorskip("peft")
pytestmark = pytest.mark.usefixtures("own_cache")

EXAMPLES = [Example(f"Question: what follows {n}?\nAnswer:", f" {n + 1}") for n in range(48)]
LINEARS = 14
"""Of the tiny Llama, all INT4."""


@pytest.fixture(scope="module")
def trained(pruned, int4, tmp_path_factory):
    """`trained(base, **settings)` → the folder of an adapter; each is made once."""
    made: dict[str, Path] = {}

    def make(base: Path, **changes) -> Path:
        key = f"{base}{changes}"
        if key not in made:
            made[key] = tmp_path_factory.mktemp("adapter") / "adapter"
            settings = AdapterSettings.make({"rank": 8, "alpha": 16, "rank_choices": [8, 6, 4], **changes})
            steps = TrainSettings.make({"steps": 6, "batch_size": 4, "learning_rate": 2e-2})
            train_adapter(base, made[key], EXAMPLES[:16], settings, steps)
        return made[key]

    return make


@pytest.fixture
def data(tmp_path):
    return write_data(tmp_path / "data", 6)


def scores(candidate, data) -> list[float]:
    report = evaluate_model(candidate, ["arc-easy"], data_dir=data, samples=True)
    items = sorted(report["samples"]["arc-easy"], key=lambda item: item["doc_id"])
    return [score for item in items for score, _ in item["filtered_resps"]]


def packed(model) -> int:
    return sum(isinstance(module, SparseInt4Linear) for module in model.modules())


def test_an_int4_folder_scores_the_same_and_its_answers_are_kept_apart(int4, data, monkeypatch) -> None:
    plain = scores(open_candidate(int4, dtype="float32"), data)
    fast = open_candidate(int4, dtype="float32", accelerate=True)
    found = scores(fast, data)
    assert fast.asked == len(found)  # none of the other's answers
    assert packed(fast.session.model) == LINEARS
    assert found == pytest.approx(plain, abs=2e-3)  # 16-bit activations in 14 layers
    assert found != plain
    monkeypatch.setattr("sqft_plugins.evaluate.report.open_session", lambda *_, **__: pytest.fail("a model is loaded"))
    assert scores(open_candidate(int4, dtype="float32", accelerate=True), data) == found
    assert scores(open_candidate(int4, dtype="float32", accelerate=False), data) == plain


def test_the_compiled_kernels_are_part_of_the_identity(int4, tmp_path, monkeypatch) -> None:
    if library().handle is None:
        pytest.skip(library().why)
    before, plain = (identity(int4, options) for options in ({"accelerate": True}, {}))
    (tmp_path / "other.so").write_bytes(b"other kernels")
    monkeypatch.setattr("sqft_plugins.evaluate.identity.FILE", tmp_path / "other.so")
    assert identity(int4, {"accelerate": True}) != before
    assert identity(int4, {}) == plain


def test_a_dense_adapter_stays_beside_the_packed_base(int4, trained, data) -> None:
    adapter = trained(int4, sparse=False)
    plain = scores(open_candidate(int4, adapter, 4, dtype="float32"), data)
    fast = open_candidate(int4, adapter, 4, dtype="float32", accelerate=True)
    assert scores(fast, data) == pytest.approx(plain, abs=2e-3)
    assert packed(fast.session.model) == LINEARS
    assert plain != pytest.approx(scores(open_candidate(int4, dtype="float32", accelerate=True), data), abs=2e-2)


@pytest.mark.parametrize(("over", "ranks"), [("int4", (8, 4)), ("float", (6,))])
def test_a_quantization_aware_adapter_runs_from_the_codes_of_its_rank(pruned, int4, trained, data, over, ranks) -> None:
    base = int4 if over == "int4" else pruned
    adapter = trained(base, quantization_aware=True, **({} if over == "int4" else {"grid": str(int4)}))
    found = []
    for rank in ranks:
        plain = scores(open_candidate(base, adapter, rank, dtype="float32"), data)
        fast = open_candidate(base, adapter, rank, dtype="float32", accelerate=True)
        found.append(scores(fast, data))
        assert found[-1] == pytest.approx(plain, abs=2e-3)
        assert packed(fast.session.model) == LINEARS
    assert len(found) == 1 or found[0] != pytest.approx(found[1], abs=2e-2)


def test_what_is_not_int4_is_refused_before_it_is_loaded(
    tiny_llama, pruned, int4, trained, tmp_path, monkeypatch
) -> None:
    masked = trained(pruned)
    monkeypatch.setattr("sqft_plugins.evaluate.transformers_engine.load_model", lambda *_: pytest.fail("loaded"))
    for arguments in ((tiny_llama,), (pruned, masked)):
        with pytest.raises(KernelError, match=r"--accelerate: model .* has no INT4 layers"):
            open_candidate(*arguments, accelerate=True)
        with pytest.raises(KernelError, match="has no INT4 layers"):
            open_session(*arguments[:1], accelerate=True, **({"adapter": masked} if len(arguments) > 1 else {}))
    with pytest.raises(SQFTError, match="--accelerate is not for a --server"):
        open_candidate(None, server="http://127.0.0.1:9", accelerate=True)
    with pytest.raises(SQFTError, match="transformers does not take threads: leave it out"):
        open_candidate(int4, threads=2)
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(SQFTError, match=r"llama.cpp does not take accelerate: leave it out"):
        open_candidate(tmp_path / "model.gguf", accelerate=True)


def test_the_command_names_the_kernel(int4, data, capsys) -> None:
    arguments = ["eval", int4, "--task", "arc-easy", "--data-dir", data, "--no-perplexity", "--accelerate"]
    for more in (["--json"], []):
        with pytest.raises(SystemExit) as done:
            main([str(argument) for argument in [*arguments, *more]])
        assert not done.value.code
        shown = capsys.readouterr()
        if more:
            assert f"{LINEARS} INT4 layers run packed ({library().path} kernel" in shown.err
            assert json.loads(shown.out)["runtime"]["kernel"] == library().path
        else:
            assert f"{library().path} kernel, limit" in shown.out


# --- search ---


def search(base, adapter, out, **changes):
    settings = SearchSettings.make({"evaluations": 3, "subset": 4, "fresh": 8, "dtype": "float32", **changes})
    return search_adapter(base, adapter, JsonlTask("numbers.jsonl", EXAMPLES[16:]), settings, out=out)


def test_a_search_over_a_packed_base_sees_the_same_scores(int4, trained, tmp_path) -> None:
    pytest.importorskip("optuna")
    adapter = trained(int4, sparse=False)
    plain = search(int4, adapter, tmp_path / "plain")
    fast = search(int4, adapter, tmp_path / "fast", accelerate=True)
    assert fast["settings"]["dtype"] == f"float32, {library().path} kernel"
    assert fast["heuristic"]["score"] == pytest.approx(plain["heuristic"]["score"], abs=1e-3)
    assert fast["heuristic"]["score"] != plain["heuristic"]["score"]
    assert [row["name"] for row in fast["finalists"]] == [row["name"] for row in plain["finalists"]]


def test_a_search_says_what_it_cannot_pack(pruned, int4, trained, tmp_path, monkeypatch) -> None:
    pytest.importorskip("optuna")
    monkeypatch.setattr("sqft_plugins.search.model.load_model", lambda *a, **k: pytest.fail("the model was loaded"))
    with pytest.raises(KernelError, match=r"quantization-aware, every rank has other codes"):
        search(int4, trained(int4, quantization_aware=True), tmp_path / "out", accelerate=True)
    with pytest.raises(KernelError, match=r"has no INT4 layers"):
        search(pruned, trained(pruned), tmp_path / "out", accelerate=True)
