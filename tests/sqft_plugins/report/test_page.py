"""The page needs nothing else, and nothing of a file gets into it as markup."""

from __future__ import annotations

import json
import re

import pytest
from helpers_report import Page, adapter_folder, search_folder

from sqft_plugins.report import collect, page, write_report
from sqft_plugins.report.page import plus_minus

EVIL = '<script>alert("1")</script>&'


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
    links = [value for _, a in found.elements for key, value in a.items() if key in ("href", "src", "xlink:href")]
    assert links
    assert all(link.startswith("#") for link in links)
    anchors = [a["id"] for _, a in found.elements if "id" in a]
    assert len(anchors) == len(set(anchors))
    assert {link[1:] for link in links} <= set(anchors)
    assert source.startswith("<!doctype html>")
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
    curves = [a["d"] for name, a in Page(source).elements if name == "path" and "var(--c1)" in a.get("style", "")]
    heights = [float(place.split()[1]) for place in re.split("[ML]", curves[0])[1:]]
    assert min(heights) < 60 < 150 < max(heights)  # the one step that stands out is still there


@pytest.mark.parametrize(
    ("score", "error", "shown"),
    [(0.1234, 0.0131, "0.123 ± 0.013"), (-2e-5, 0.013, "0.000 ± 0.013"), (3.0, 0.0, "3.0000 ± 0.0000")],
)
def test_numbers_have_the_decimals_of_their_error(score, error, shown) -> None:
    assert plus_minus({"score": score, "stderr": error}) == shown
