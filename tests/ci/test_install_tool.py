"""uv is told what the user's pip knows; what it cannot be told is pip's work."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / ".ci"))

import install_tool
from install_lanes import Lane

LISTED = """\
:env:.find-links='/wheels /more'
global.find-links='/ignored'
global.extra-index-url='https://a.example/simple\\nhttps://b.example/simple'
install.trusted-host='a.example'
global.constraint="/etc/pip/the 'caps'.txt"
wheel.no-clean='true'
not a setting
"""


def test_settings_of_pip_with_a_variable_before_a_file():
    assert install_tool.pip_settings(LISTED) == {
        "find-links": ["/wheels", "/more"],
        "extra-index-url": ["https://a.example/simple", "https://b.example/simple"],
        "trusted-host": ["a.example"],
        "constraint": ["/etc/pip/the", "'caps'.txt"],  # pip, too, splits at spaces
    }


def test_uv_looks_where_pip_looks():
    settings = install_tool.pip_settings(LISTED) | {"cert": ["/ca.crt"], "index-url": ["https://mine/simple"]}
    assert install_tool.uv_environment(settings) == {
        "UV_INDEX_STRATEGY": "unsafe-best-match",
        "UV_DEFAULT_INDEX": "https://mine/simple",
        "UV_EXTRA_INDEX_URL": "https://a.example/simple https://b.example/simple",
        "UV_FIND_LINKS": "/wheels,/more",
        "UV_INSECURE_HOST": "a.example",
        "SSL_CERT_FILE": "/ca.crt",
    }


@pytest.fixture
def lane(tmp_path) -> Lane:
    """A lane whose pip fails where it is asked for uv and $NO_UV is set, and whose uv is a file."""
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python"
    python.write_text(
        '#!/bin/sh\n[ -n "$NO_UV" ] && case "$*" in *uv==*) echo no such release >&2; exit 1;; esac; exit 0\n'
    )
    python.chmod(0o755)
    return Lane("newest", tmp_path, tmp_path / "pins.txt", (), 1)


def test_uv_installs(lane, capsys):
    command = install_tool.get_tool(lane, {"cert": ["/ca.crt"]}).install("--no-deps", "x")
    assert command[:3] == [str(lane.venv / "bin" / "uv"), "pip", "install"]
    assert command[-4:] == ["-c", str(lane.allowed_pins), "--no-deps", "x"]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("settings", "variables", "told"),
    [
        ({"proxy": ["http://p"]}, {}, "uv cannot be told your pip's proxy"),
        ({}, {"NO_UV": "1"}, "uv cannot be had (no such release)"),
    ],
)
def test_pip_installs_where_uv_cannot(lane, capsys, monkeypatch, settings, variables, told):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    command = install_tool.get_tool(lane, settings).install("x")
    assert command[:4] == [str(lane.python), "-m", "pip", "install"]
    assert f"install: {told}: pip installs, which takes longer\n" == capsys.readouterr().out


def test_the_users_own_uv_settings_win(lane, monkeypatch):
    monkeypatch.setenv("UV_FIND_LINKS", "/mine")
    assert install_tool.Tool(lane, {"find-links": ["/pips"]}).environment["UV_FIND_LINKS"] == "/mine"
