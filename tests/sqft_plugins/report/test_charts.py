"""Charts: their colours are the page's, their texts are texts, and no value breaks them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from helpers_report import Page
from sample_report import sample_report

from sqft_plugins.report import charts, page
from sqft_plugins.report import draw as drawing

STYLE = Path(drawing.__file__).parent / "templates" / "style.css"


def drawn(*, name: str = "a") -> list[str]:
    """Each chart once."""
    found = [
        charts.loss_chart(name, [3.0, 2.0, 1.0], [(1, 3.0), (3, 1.2)]),
        charts.draws_chart(name, [8, 4], [[1, 0], [0, 2]]),
        charts.front_chart([(1.0, 2.0, 0.1)], [(1.0, 2.0)], {"chosen": (1.0, 2.0)}, (name, "score"), "lower is better"),
        charts.history_chart([(0, 1.0), (1, 0.5)], True, name),
        charts.layer_map(name, {(0, "q_proj"): 1.0, (1, name): 2.0}, (0, 2), ".1f", " %"),
        charts.codes_chart(name, [0.25] * 4, 2, "all weights"),
        charts.sizes_chart([(name, 10, 20), ("b", 0, 10**9)]),
        charts.scores_chart(name, "acc", [(name, 1.0, 0.1), ("b", 2.0, None)]),
    ]
    assert all(found)
    return [str(svg) for svg in found]


def test_every_colour_is_a_variable_of_the_page() -> None:
    css = STYLE.read_text()
    for svg in drawn():
        assert not re.search(r"#[0-9a-f]{6}\b", svg)
        assert {"c1", "heat"} & set(re.findall(r"var\(--(\w+)\)", svg))
        for name in re.findall(r"var\(--(\w+)\)", svg):
            assert css.count(f"--{name}: #") == 2  # light and dark


def test_names_are_texts_and_no_markup_nor_formulas() -> None:
    name = 'a $x^2$ <b>&"'
    for svg in drawn(name=name):
        found = Page(svg)
        assert name in found.said
        known = {"svg", "title", "desc", "g", "path", "text", "use", "defs"}
        assert {element for element, _ in found.elements} <= known


def test_each_is_one_picture_for_a_screen_reader() -> None:
    for svg in drawn():
        element, attributes = Page(svg).elements[0]
        assert (element, attributes["role"]) == ("svg", "img")
        assert len(attributes["aria-label"]) > 10


def test_a_cell_of_a_map_tells_its_value_to_the_pointer() -> None:
    values = {(block, kind): 10.0 + block for block in range(80) for kind in ("mlp.up_proj", "self_attn.q_proj")}
    said = Page(str(charts.layer_map("zeros", values, (0, 100), ".1f", " %"))).said
    assert "block 79, mlp.up_proj: 89.0 %" in said
    assert said.index("self_attn.q_proj") < said.index("mlp.up_proj")  # as they follow each other in a block


@pytest.mark.parametrize("values", [(5.0, 5.0), (0.0, 0.0), (-3.0, 2.0), (1e-9, 1e9)])
def test_no_value_breaks_a_chart(values) -> None:
    rows = [("a", values[0], None), ("b", values[1], 0.0)]
    assert "nan" not in str(charts.scores_chart("scores", "unit", rows))
    assert charts.history_chart(list(enumerate(values)), False, "score")
    assert charts.loss_chart("a", values, limits=(5.0, 5.0))
    assert charts.front_chart([(1.0, value, 0.0) for value in values], [], {}, ("cost", "score"), "better")


def test_nothing_to_show_is_no_picture() -> None:
    assert charts.loss_chart("a", [1.0]) is None
    assert charts.draws_chart("a", [8], [[0]]) is None
    assert charts.history_chart([(0, 1.0)], True, "score") is None
    assert charts.scores_chart("a", "acc", [("a", 1.0, None)]) is None


def test_without_matplotlib_the_page_has_the_tables_and_says_how_to_get_charts(monkeypatch, capsys) -> None:
    monkeypatch.setattr(drawing, "has_matplotlib", lambda: False)
    found = Page(page(sample_report()))
    assert "svg" not in {name for name, _ in found.elements}
    assert "pip install 'sqft-plugins[plot]'" in found.said
    assert "pip install 'sqft-plugins[plot]'" in capsys.readouterr().err
    assert "35.0 ± 4.0 %" in found.said
