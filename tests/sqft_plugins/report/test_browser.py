"""The page in a real browser: on a telephone and a wide screen, in light and dark. Run it with `-m slow`; it needs
Chromium (`apt-get install chromium`)."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from sample_report import sample_report

from sqft_plugins.report import page

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")

MEASURE = """
<script>
const luminance = color => {
  const linear = value => value <= .03928 ? value / 12.92 : ((value + .055) / 1.055) ** 2.4
  const [r, g, b] = color.match(/[\\d.]+/g).map(value => linear(value / 255))
  return .2126 * r + .7152 * g + .0722 * b
}
const contrast = (a, b) => {
  const [low, high] = [luminance(a), luminance(b)].sort((x, y) => x - y)
  return (high + .05) / (low + .05)
}
const paper = getComputedStyle(document.body).backgroundColor
const all = selector => [...document.querySelectorAll(selector)]
const texts = all("h1,h2,h3,p,th,td,dt,dd,a,figcaption,svg text").filter(e => e.textContent.trim())
const color = e => getComputedStyle(e)[e.tagName == "text" ? "fill" : "color"]
const scrolled = e => e.closest(".scroll,pre,figure")
const outside = (inner, outer) => inner.left < outer.left - 1 || inner.right > outer.right + 1 ||
  inner.top < outer.top - 1 || inner.bottom > outer.bottom + 1
const box = e => e.getBoundingClientRect()
parent.postMessage(JSON.stringify({
  width: innerWidth,
  dark: matchMedia("(prefers-color-scheme: dark)").matches,
  overflow: document.documentElement.scrollWidth - innerWidth,
  beyond: all("body *").filter(e => !scrolled(e) && box(e).right > innerWidth + 1).map(e => e.tagName),
  cut: all("svg text").filter(e => outside(box(e), box(e.closest("svg")))).map(e => e.textContent),
  pale: texts.filter(e => contrast(color(e), paper) < 4.5).map(e => e.textContent.slice(0, 40)),
  smallest: Math.min(...all("svg text").map(e => parseFloat(getComputedStyle(e).fontSize) * e.getScreenCTM().a)),
  pictures: all("svg").length,
}), "*")
</script>
"""
FRAME = """<iframe src="report.html" style="width: {}px; height: 900px; border: 0"></iframe>
<script>onmessage = event => document.title = event.data</script>
"""
"""A window of Chromium is never narrower than 500 pixels, a frame is."""


@pytest.fixture(scope="module")
def chromium() -> str:
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is installed")
    return found


def browse(chromium: str, file: Path, dark: bool) -> tuple[str, list[str]]:
    """(the document as the browser has it, what its console says)."""
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr"]
    options += [f"--user-data-dir={file.parent / 'profile'}", "--window-size=1500,1000"]
    options += [f"--blink-settings=preferredColorScheme={0 if dark else 1}", "--virtual-time-budget=5000"]
    done = subprocess.run(
        [chromium, *options, "--dump-dom", file.as_uri()], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 1400])
def test_nothing_is_cut_off_and_all_is_legible(chromium, tmp_path, width, dark) -> None:
    file = tmp_path / "report.html"
    source = page(sample_report())
    file.write_text(source.replace("</body>", f"{MEASURE}</body>"), encoding="utf-8")
    frame = tmp_path / "frame.html"
    frame.write_text(FRAME.format(width))
    document, _ = browse(chromium, frame, dark)
    measured = re.search(r"<title>(\{.*?\})</title>", document)
    assert measured is not None, document[:500]
    found = json.loads(measured[1].replace("&amp;", "&").replace("&gt;", ">").replace("&lt;", "<"))
    assert (found["width"], found["dark"]) == (width, dark)
    assert found["overflow"] <= 0
    assert found["beyond"] == found["cut"] == found["pale"] == []
    assert found["pictures"] == 11
    assert found["smallest"] >= 8


@pytest.mark.slow
def test_the_console_is_silent_and_all_text_is_there_without_scripts(chromium, tmp_path) -> None:
    file = tmp_path / "report.html"
    source = page(sample_report())
    assert "<script" not in source
    file.write_text(source, encoding="utf-8")
    document, console = browse(chromium, file, False)
    assert console == []
    for text in ("A run on word problems", "noise: not to be told from the heuristic", "35.0 ± 4.0 %", "INT4 code"):
        assert text in document
