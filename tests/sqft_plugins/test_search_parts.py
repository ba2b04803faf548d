"""The parts of a search that need no model: space, questions, record of the training, paired differences, decision."""

from __future__ import annotations

import json
import math
import random
import sys
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from helpers_search import make_space

from sqft_plugins.configurations import read_configuration, write_configuration
from sqft_plugins.errors import CheckpointError, MismatchError, OutputExistsError, SQFTError
from sqft_plugins.plugins.protocols import Item
from sqft_plugins.search.data import split_items
from sqft_plugins.search.finals import decide
from sqft_plugins.search.paired import mean, paired_difference
from sqft_plugins.search.recorded import read_history
from sqft_plugins.search.space import Space
from sqft_plugins.tune.record import HISTORY

# --- space ---


def test_a_configuration_is_read_back_as_it_was_written(tmp_path) -> None:
    space = make_space(3)
    file = write_configuration(tmp_path / "c.json", space.expand((8, 4, 6)))
    assert space.choice(read_configuration(file)) == (8, 4, 6)
    with pytest.raises(OutputExistsError, match="--save"):
        write_configuration(file, {}, argument="--save")


@pytest.mark.parametrize(
    ("ranks", "message"),
    [
        ({"model.layers.7.q_proj": 8, ".*": 4}, r"'model.layers.7.q_proj' matches no adapted module: did you mean"),
        ({".*": 5}, r"rank=5 is outside the search space: use one of \[8, 6, 4\]"),
        ({"q_proj": 8}, "configuration has no rank for"),
        ({".*": 4, "q_proj": 8}, r"gives model.layers.0 the ranks \[4, 8\], but its modules share one"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(ranks, message) -> None:
    with pytest.raises(SQFTError, match=message):
        make_space(3).choice(ranks)


def test_groups_are_blocks_or_modules() -> None:
    space = make_space(3)
    assert space.groups == ["model.layers.0", "model.layers.1", "model.layers.2"]
    assert space.size == 27
    each = Space(space.modules, space.rank_choices, "module")
    assert each.groups == list(space.modules)
    assert each.choice({".*": 4, "q_proj": 8}) == (8, 4) * 3


def test_neighbours_are_one_step_away() -> None:
    near = set(make_space(2).neighbours((4, 6)))
    assert near == {(6, 6), (4, 4), (4, 8)}


# --- questions ---

ITEMS = [Item(f"What is {n}?", str(n)) for n in range(40)]


def test_the_three_parts_share_no_prompt_and_do_not_depend_on_the_order() -> None:
    twice = [*ITEMS, *(Item(item.prompt, "again") for item in ITEMS[::3])]
    split = split_items(twice, subset=10, fresh=20)
    prompts = [{item.prompt for item in part} for part in (split.search, split.recheck, split.report)]
    assert [len(part) for part in prompts] == [10, 10, 10]
    assert len(set.union(*prompts)) == 30
    shuffled = random.Random(1).sample(twice, len(twice))
    again = split_items(shuffled, subset=10, fresh=20)
    assert {i.prompt for i in again.search} == prompts[0]
    assert {i.prompt for i in split_items(twice, subset=10, fresh=20, seed=1).search} != prompts[0]


def test_half_of_few_questions_is_left_for_the_score() -> None:
    split = split_items(ITEMS)
    assert [len(part) for part in (split.search, split.recheck, split.report)] == [20, 10, 10]


@pytest.mark.parametrize("items", [[], ITEMS[:3], ITEMS[:1] * 50])
def test_too_little_data_is_refused(items) -> None:
    with pytest.raises(SQFTError, match=r"different prompts leave .* each needs 2: give more data"):
        split_items(items)
    with pytest.raises(SQFTError, match="or a smaller --subset"):
        split_items(ITEMS, subset=38)


# --- the record of the training ---


def write_history(folder, steps, modules):
    rows = [{"step": place, "loss": loss, "ranks": ranks} for place, (ranks, loss) in enumerate(steps, 1)]
    head = {"version": 1, "modules": modules}
    (folder / HISTORY).write_text("".join(json.dumps(row) + "\n" for row in [head, *rows]))


def test_the_record_gives_the_ranks_with_the_lowest_loss_under_a_falling_trend(tmp_path) -> None:
    space, draw = make_space(3), random.Random(0)
    best, steps = (4, 8, 6), []
    for step in range(300):
        choice = tuple(draw.choice(space.ordered) for _ in range(3))
        off = 0.1 * sum(abs(a - b) for a, b in zip(choice, best, strict=True))
        ranks = [space.expand(choice)[module] for module in space.modules]
        steps.append((ranks, 5 * math.exp(-step / 60) + off + draw.gauss(0, 0.1)))
    write_history(tmp_path, steps, list(space.modules))
    history = read_history(tmp_path, space)
    assert history is not None
    assert history.lowest_loss(space) == best
    lowest_of_all = min(steps, key=lambda row: row[1])[0]  # without the trend it is one of the last steps, by chance
    assert steps.index((lowest_of_all, min(loss for _, loss in steps))) > 100
    counts = [[ranks[2 * group] for ranks, _ in steps] for group in range(3)]
    assert history.most_frequent(space) == tuple(max((8, 6, 4), key=drawn.count) for drawn in counts)


def test_a_record_that_does_not_belong_or_is_damaged_is_refused(tmp_path) -> None:
    space = make_space(2)
    assert read_history(tmp_path, space) is None
    write_history(tmp_path, [([8, 8], 1.0)], ["another.0", "another.1"])
    with pytest.raises(MismatchError, match="belongs to another adapter"):
        read_history(tmp_path, space)
    (tmp_path / HISTORY).write_text('{"version": 1, "modules": []}\n{"step": 1, "lo')
    with pytest.raises(CheckpointError, match="is damaged"):
        read_history(tmp_path, space)
    (tmp_path / HISTORY).write_text('{"version": 2, "modules": []}\n')
    with pytest.raises(CheckpointError, match="has version 2, this release reads 1"):
        read_history(tmp_path, space)


# --- differences and the decision ---


def test_the_paired_difference_leaves_out_what_is_hard_for_both() -> None:
    draw = random.Random(0)
    hard = [draw.gauss(3, 2) for _ in range(200)]
    a, b = ([value + draw.gauss(shift, 0.1) for value in hard] for shift in (0.1, 0.0))
    found = paired_difference(a, b)
    differences = [x - y for x, y in zip(a, b, strict=True)]
    spread = math.sqrt(sum((d - fmean(differences)) ** 2 for d in differences) / 199)
    assert found.value == pytest.approx(fmean(a) - fmean(b))
    assert found.stderr == pytest.approx(spread / math.sqrt(200))
    assert not found.is_noise
    assert abs(mean(a).value - mean(b).value) < 2 * mean(a).stderr  # unpaired, it would have been noise


def scores(table):
    """Choice → its scores; the calls are kept."""

    def score(choice):
        score.asked.append(choice)
        return table[choice]

    score.asked = []
    return score


def test_the_choice_is_made_by_the_recheck_and_its_score_told_from_the_report() -> None:
    recheck = scores({(6,): [1.0, 1.0, 1.2], (8,): [0.9, 0.9, 1.0], (4,): [0.5, 0.4, 0.6]})
    report = scores({(6,): [1.0, 1.1, 1.0], (8,): [0.0, 0.0, 0.0], (4,): [1.0, 1.2, 1.1]})
    outcome = decide([(6,), (8,), (4,)], (6,), recheck, report, "minimize")
    assert outcome.choice == (4,)  # though (8,) is the best on the report's questions
    assert report.asked == [(4,), (6,)]
    assert outcome.chosen.value == pytest.approx(1.1)
    assert outcome.difference.value == pytest.approx(0.2 / 3)
    assert outcome.verdict == "noise: not to be told from the heuristic"
    assert list(outcome.rechecked) == [(4,), (8,), (6,)]


@pytest.mark.parametrize(
    ("direction", "other", "verdict"),
    [
        ("minimize", [0.5, 0.6, 0.5], "better than the heuristic"),
        ("maximize", [0.5, 0.6, 0.5], "worse than the heuristic"),
        ("maximize", [1.5, 1.6, 1.5], "better than the heuristic"),
    ],
)
def test_the_verdict_knows_which_way_is_up(direction, other, verdict) -> None:
    recheck = scores({(6,): [0.0, 0.0], (8,): [-1.0, -1.0] if direction == "minimize" else [1.0, 1.0]})
    report = scores({(6,): [1.0, 1.0, 1.0], (8,): other})
    assert decide([(6,), (8,)], (6,), recheck, report, direction).verdict == verdict


def test_fresh_scores_of_a_large_model_are_kept_under_a_name_that_a_database_takes() -> None:
    optuna = pytest.importorskip("optuna")
    from sqft_plugins.search.conclude import _fresh

    space = Space([f"model.layers.{i}.q_proj" for i in range(300)], (128, 64), "module")
    study, runs = optuna.create_study(), []
    searched = SimpleNamespace(scores=lambda *asked: runs.append(asked) or [0.5])
    part = SimpleNamespace(items=[Item("a", "b")])
    for rank in (128, 64, 128):
        assert _fresh(study, space, None, searched, part, (rank,) * 300) == [0.5]
    assert len(runs) == 2
    assert all(len(key) <= 512 for key in study.user_attrs)


def test_where_the_heuristic_wins_it_is_said() -> None:
    outcome = decide(
        [(6,), (8,)], (6,), scores({(6,): [0.0, 0.1], (8,): [1.0, 1.1]}), scores({(6,): [2.0, 2.5]}), "minimize"
    )
    assert outcome.choice == (6,)
    assert outcome.verdict == "the same as the heuristic"


def test_against_a_cost_the_cheapest_within_one_standard_error_is_chosen() -> None:
    recheck = scores({(8,): [1.0, 1.0, 1.0, 1.0], (6,): [1.3, 0.8, 1.1, 0.9], (4,): [1.5, 1.6, 1.5, 1.6]})
    report = scores({(8,): [1.0, 1.0], (6,): [1.0, 1.1]})
    outcome = decide([(8,), (6,), (4,)], (6,), recheck, report, "minimize", cost=lambda choice: choice[0])
    assert outcome.choice == (6,)  # 0.025 ± 0.11 behind (8,); (4,) is 0.55 ± 0.03 behind
