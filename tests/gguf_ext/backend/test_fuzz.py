"""Random tensors come back from the packed form, and damaged files are read without harm, under the sanitizers."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from helpers_backend import write_llama

from sqft_plugins.kernels import build as builder
from sqft_plugins.kernels.library import FILE as KERNELS

pytestmark = [pytest.mark.usefixtures("library"), pytest.mark.once]
FUZZER = Path(__file__).with_name("backend_fuzz.cpp")
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-O1", "-g")
TENSORS = 1000


def test_the_packer_and_the_reader_of_files_hold(tmp_path):
    try:
        compiler = builder.find_compiler()
    except builder.BuildError as error:
        pytest.skip(str(error))
    write_llama(tmp_path / "model.gguf")
    door = builder.LIBRARIES[builder.DOOR]
    sources = [*map(str, sorted(door.sources.glob("*.cpp"))), str(FUZZER)]
    flags = ["-std=c++17", *SANITIZERS, *door.flags, f"-I{door.sources}"]
    made = [*compiler, *flags, *sources, *door.links, "-o", str(tmp_path / "fuzzer")]
    subprocess.run(made, check=True)
    command = [str(tmp_path / "fuzzer"), "1", str(TENSORS), str(tmp_path / "model.gguf"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "SQFT_KERNELS": str(KERNELS)})
    assert done.returncode == 0, done.stderr[-3000:]
    tensors, weights, found, refused = map(int, done.stdout.split())
    assert tensors == TENSORS
    assert weights > TENSORS * 1000
    assert found + refused == 400
    assert min(found, refused) > 20  # damage that does not matter, and damage that does
