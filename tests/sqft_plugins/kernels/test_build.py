"""Compiling the kernels, doing without, and the fuzzer under the sanitizers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from sqft_plugins.cli import doctor
from sqft_plugins.kernels import build as builder
from sqft_plugins.kernels import library as loader
from sqft_plugins.kernels.library import FALLBACK, library

FUZZER = Path(__file__).with_name("kernels_fuzz.cpp")
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-O1", "-g")
ROUNDS = 400


@pytest.fixture
def compiler() -> list[str]:
    try:
        return builder.find_compiler()
    except builder.BuildError as error:
        pytest.skip(str(error))


@pytest.fixture
def fresh():
    """`library()` looks anew within the test."""
    library.cache_clear()
    yield
    library.cache_clear()


def test_without_a_compiler_the_installation_goes_on_with_a_notice(monkeypatch, capsys, tmp_path):
    from setuptools import Distribution, Extension

    monkeypatch.setenv("CXX", "no-such-compiler")
    command = builder.BuildKernels(Distribution({"ext_modules": [Extension("kernels.libsqft_kernels", [])]}))
    command.build_lib, command.build_temp = str(tmp_path), str(tmp_path / "temp")
    command.ensure_finalized()
    command.build_extension(command.extensions[0])
    assert "CXX=no-such-compiler is not there" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.so"))


def test_windows_is_told_that_there_are_none_before_a_compiler_is_looked_for(monkeypatch, tmp_path):
    monkeypatch.setattr(builder.sys, "platform", "win32")
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(builder.BuildError, match="for Linux and macOS"):
        builder.build(tmp_path / "kernels.so")


def test_an_environment_without_setuptools_builds_by_hand(tmp_path):
    """uv makes environments without it, and `python -m sqft_plugins.kernels.build` is the remedy that we name."""
    code = "import sys; sys.modules['setuptools'] = None; import sqft_plugins.kernels.build"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_doctor_names_the_compiler_that_would_build(compiler, monkeypatch):
    monkeypatch.setenv("CXX", f"{compiler[0]} -pipe")
    rows = {check.name: check for check in doctor.machine_checks()}
    assert rows["C++ compiler"].found.startswith(f"{compiler[0]} -pipe (")
    monkeypatch.setenv("CXX", "no-such-compiler")
    rows = {check.name: check for check in doctor.machine_checks()}
    assert (rows["C++ compiler"].status, rows["C++ compiler"].found) == ("missing", "CXX=no-such-compiler is not there")


def test_an_instruction_set_that_the_compiler_does_not_know_is_left_out(compiler, monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(builder.FLAGS, "avx512", ("x86_64", ("-mno-such-set",)))
    sets = builder.build(tmp_path / "kernels.so", extra=("-O0",))
    assert "avx512" not in sets
    if "avx2" in sets:
        assert "avx512.cpp is left out" in capsys.readouterr().err
        file = str(tmp_path / "kernels.so")
        code = f"import ctypes; print(*(ctypes.CDLL({file!r}).sqft_supported(path) for path in range(5)))"
        shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert shown.returncode == 0, shown.stderr
        assert shown.stdout.split()[2:4] == ["0", "0"]  # AMX tiles lean on AVX-512


def test_a_library_that_is_missing_or_of_other_sources_is_told(fresh, monkeypatch, tmp_path, compiler):
    monkeypatch.delenv("SQFT_KERNEL", raising=False)
    monkeypatch.setattr(loader, "FILE", tmp_path / "libsqft_kernels.so")
    assert library().path == FALLBACK
    row = doctor.kernel_check()
    assert (row.status, row.remedy) == ("missing", loader.BUILD)
    assert "was not built" in row.found
    other = tmp_path / "other.cpp"
    other.write_text('extern "C" int sqft_interface(void) { return 0; }')
    subprocess.run([*compiler, "-shared", "-fPIC", str(other), "-o", str(loader.FILE)], check=True)
    library.cache_clear()
    assert "built from other sources" in library().why
    monkeypatch.setattr(loader, "FILE", tmp_path / "broken.so")  # another: the first one is open
    loader.FILE.write_text("no library")
    library.cache_clear()
    assert "cannot be loaded" in library().why


def test_doctor_names_the_path_and_why(fresh, monkeypatch):
    monkeypatch.setenv("SQFT_KERNEL", "torch")
    assert doctor.kernel_check().found == "torch: plain torch, as SQFT_KERNEL says"
    library.cache_clear()
    monkeypatch.setenv("SQFT_KERNEL", "fastest")
    assert doctor.kernel_check().status == "wrong"


@pytest.mark.once
def test_the_fuzzer_finds_nothing_under_the_sanitizers(compiler, tmp_path):
    probe = tmp_path / "probe.cpp"
    probe.write_text("int main() { return 0; }")
    made = subprocess.run([*compiler, *SANITIZERS, str(probe), "-o", str(tmp_path / "probe")], capture_output=True)
    if made.returncode or subprocess.run([str(tmp_path / "probe")], capture_output=True).returncode:
        pytest.skip(f"{compiler[0]} has no sanitizers that run here")
    kernels, fuzzer = tmp_path / "libsqft_kernels.so", tmp_path / "fuzzer"
    builder.build(kernels, extra=SANITIZERS)
    flags = ["-std=c++17", *SANITIZERS, f"-I{builder.SOURCES}", f"-Wl,-rpath,{tmp_path}"]
    subprocess.run([*compiler, *flags, str(FUZZER), str(kernels), "-o", str(fuzzer)], check=True)
    done = subprocess.run([str(fuzzer), "1", str(ROUNDS)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    accepted, refused, calls = (int(part.split()[0]) for part in done.stdout.split(","))
    assert accepted + refused == ROUNDS
    assert accepted > ROUNDS // 4  # a third is sound
    assert refused > ROUNDS // 4
    assert calls >= accepted
