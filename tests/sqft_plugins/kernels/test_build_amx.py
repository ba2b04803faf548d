"""The AMX back end where there is no AMX: its tiles emulated in plain C (kernels_amx.h)."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

import pytest

from sqft_plugins.kernels import build as builder
from sqft_plugins.kernels.library import library

HERE = Path(__file__).parent
ROUNDS = 100


@pytest.mark.once
@pytest.mark.skipif(platform.system() != "Linux", reason="AMX is asked for in Linux only")
def test_amx_gives_the_bits_of_every_other_back_end_on_emulated_tiles(tmp_path):
    if "avx512" not in library().supported():
        pytest.skip("no AVX-512 with VNNI and VBMI2, which AMX is built upon")
    kernels, program = tmp_path / "libsqft_kernels.so", tmp_path / "fuzz"
    sets = builder.build(kernels, extra=("-O1", "-include", str(HERE / "kernels_amx.h")))
    if "amx" not in sets:
        pytest.skip("the compiler does not know AMX")
    flags = ["-std=c++17", "-O1", f"-I{builder.SOURCES}", f"-Wl,-rpath,{tmp_path}"]
    fuzzer = [*builder.find_compiler(), *flags, str(HERE / "kernels_fuzz.cpp"), str(kernels), "-o", str(program)]
    subprocess.run(fuzzer, check=True)
    done = subprocess.run([str(program), "2", str(ROUNDS)], capture_output=True, text=True)  # dies where bits differ
    assert done.returncode == 0, done.stderr
    accepted, _, calls = (int(part.split()[0]) for part in done.stdout.split(","))
    assert calls == 4 * accepted > 0  # scalar, AVX2, AVX-512, AMX
