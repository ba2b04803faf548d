""".ci/pypi_readme.py: the README that PyPI shows."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / ".ci"))

import pypi_readme

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TARGET = re.compile(r"\]\(([^)]+)\)")


def test_every_link_of_the_readme_is_whole_and_its_file_is_there():
    made = pypi_readme.whole(README, "an/owner", "c0ffee")
    relative = [target for target in TARGET.findall(README) if "://" not in target]
    assert len(relative) > 10
    assert all(target.startswith("https://") for target in TARGET.findall(made))

    page, picture = "https://github.com/an/owner/blob/c0ffee/", "https://raw.githubusercontent.com/an/owner/c0ffee/"
    ours = [target for target in TARGET.findall(made) if "/an/owner/" in target]
    assert [target.removeprefix(page).removeprefix(picture) for target in ours] == relative
    assert [target for target in ours if target.startswith(picture)] == [f"{picture}docs/pictures/mask.png"]
    assert pypi_readme.whole(made, "an/other", "1") == made


def test_nothing_but_links_is_changed():
    made = pypi_readme.whole(README, "an/owner", "c0ffee")
    for address in ("https://github.com/an/owner/blob/c0ffee/", "https://raw.githubusercontent.com/an/owner/c0ffee/"):
        made = made.replace(address, "")
    assert made == README
    code = "```python\nlayers[0](docs/tutorial.md)\n```\n"
    assert pypi_readme.whole(code, "an/owner", "c0ffee") == code
    anchors = "[here](#part), [there](mailto:a@b.c)"
    assert pypi_readme.whole(anchors, "an/owner", "c0ffee") == anchors


def test_a_link_to_nothing_is_said_and_nothing_is_written(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(pypi_readme, "ROOT", tmp_path)
    (tmp_path / "README.md").write_text("[a](docs/lost.md)")
    assert pypi_readme.main(["an/owner", "c0ffee"]) == 1
    assert "README.md links to docs/lost.md, which is not there" in capsys.readouterr().err
    assert (tmp_path / "README.md").read_text() == "[a](docs/lost.md)"

    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/lost.md").touch()
    assert pypi_readme.main(["an/owner", "c0ffee"]) == 0
    assert (tmp_path / "README.md").read_text() == "[a](https://github.com/an/owner/blob/c0ffee/docs/lost.md)"


@pytest.mark.parametrize("job", ["sdist", "wheels"])
def test_a_release_writes_it_before_it_builds(job, release):
    runs = [step.get("run", "") for step in release["jobs"][job]["steps"]]
    written = next(number for number, run in enumerate(runs) if ".ci/pypi_readme.py" in run)
    built = next(number for number, run in enumerate(runs) if "-m build" in run or "-m cibuildwheel" in run)
    assert written < built
