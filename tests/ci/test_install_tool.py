"""uv is told what the user's pip knows; what it cannot be told is pip's work."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / ".ci"))

import install
import install_tool
from install_common import ROOT
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


@pytest.mark.parametrize(
    ("settings", "variables"),
    [
        ({}, {"UV_SYSTEM_CERTS": "true"}),
        ({"cache-dir": ["/a", "b"], "cert": ["c"]}, {"SSL_CERT_FILE": "c", "UV_CACHE_DIR": "/a b/uv"}),
        (
            {"no-cache-dir": ["1"], "cache-dir": ["/a"], "cert": ["c"]},
            {"SSL_CERT_FILE": "c", "UV_CACHE_DIR": str(ROOT / ".cache" / "uv")},
        ),
        (
            {"proxy": ["http://me@p:1"], "cert": ["c"]},
            {"SSL_CERT_FILE": "c"} | dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), "http://me@p:1"),
        ),
    ],
)
def test_uv_is_told_certificates_caches_and_a_proxy(settings, variables):
    assert install_tool.uv_environment(settings) == {"UV_INDEX_STRATEGY": "unsafe-best-match", **variables}


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
        ({"keyring-provider": ["import"]}, {}, "uv cannot be told your pip's keyring-provider"),
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


# --- the real uv, which is among the pins ---


@pytest.fixture
def real(tmp_path) -> Lane:
    """A lane with an empty environment, and the uv of this one."""
    uv = Path(sys.executable).with_name("uv")
    assert uv.is_file(), f"{uv} is missing, pyproject.toml asks for it: make install"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    (tmp_path / "venv" / "bin" / "uv").symlink_to(uv)
    return Lane("newest", tmp_path / "venv", tmp_path / "pins.txt", (), 1)


def wheels(folder: Path, *versions: str) -> Path:
    """Wheels of a package with two modules."""
    folder.mkdir()
    for version in versions:
        info = f"tiny-{version}.dist-info"
        files = {
            "tiny/__init__.py": "",
            "tiny/late.py": "",
            f"{info}/METADATA": f"Metadata-Version: 2.1\nName: tiny\nVersion: {version}\n",
            f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        }
        files[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"])
        with zipfile.ZipFile(folder / f"tiny-{version}-py3-none-any.whl", "w") as wheel:
            for name, text in files.items():
                wheel.writestr(name, text)
    return folder


def run_uv(lane: Lane, settings: dict[str, list[str]], *arguments: str) -> str:
    """`uv pip install`, told these settings of pip and none of this machine's → what it says."""
    lane.allowed_pins.touch()
    tool = install_tool.Tool(lane, settings)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("UV_", "PIP_"))}
    environment = kept | install_tool.uv_environment(settings)
    command = tool.install("--offline", "--no-index", *arguments)
    ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return ended.stderr


def test_the_real_uv_obeys_what_pip_is_set_to(real, tmp_path):
    (tmp_path / "caps.txt").write_text("-c more.txt\n")
    (tmp_path / "more.txt").write_text("tiny<3\n")
    settings = {
        "find-links": [str(wheels(tmp_path / "a", "1")), str(wheels(tmp_path / "b", "2", "3"))],
        "constraint": [str(tmp_path / "caps.txt")],
        "cache-dir": [str(tmp_path / "cache")],
    }
    assert "+ tiny==2" in run_uv(real, settings, "--dry-run", "tiny")
    assert (tmp_path / "cache" / "uv").is_dir()

    real.allowed_pins.write_text("tiny==1\n")
    assert "+ tiny==1" in run_uv(real, settings, "--dry-run", "tiny")


def test_a_package_that_uv_linked_by_half_is_installed_again(real, tmp_path):
    settings = {"find-links": [str(wheels(tmp_path / "wheels", "1"))], "cache-dir": [str(tmp_path / "cache")]}
    run_uv(real, settings, "tiny")
    site = next(real.venv.glob("lib/python*/site-packages"))
    assert (site / "tiny-1.dist-info" / "INSTALLER").read_text().strip() == "uv"

    # as where uv was stopped between the wheel's own RECORD and the last file
    (site / "tiny" / "late.py").unlink()
    for name in ("INSTALLER", "REQUESTED", "uv_cache.json"):
        (site / "tiny-1.dist-info" / name).unlink(missing_ok=True)
    with zipfile.ZipFile(tmp_path / "wheels" / "tiny-1-py3-none-any.whl") as wheel:
        (site / "tiny-1.dist-info" / "RECORD").write_bytes(wheel.read("tiny-1.dist-info/RECORD"))

    run_uv(real, settings, "tiny")
    assert not (site / "tiny" / "late.py").exists()  # uv believes it
    install.mend(real.venv)
    run_uv(real, settings, "tiny")
    assert (site / "tiny" / "late.py").exists()
