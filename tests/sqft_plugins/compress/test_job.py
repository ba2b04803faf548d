"""A compression that is killed goes on where it was; nothing half-written stays."""

from __future__ import annotations

import os
import shutil
import signal

import pytest
import torch
from helpers_compress import SMALL

from sqft_plugins.checkpoint import ModelFolder
from sqft_plugins.compress import blocks
from sqft_plugins.compress.gptq import GPTQ
from sqft_plugins.compress.job import Job
from sqft_plugins.compress.prune import prune_folder
from sqft_plugins.compress.quantize import quantize_folder
from sqft_plugins.errors import SQFTError


def contents(folder) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def killed(block: int, before_it_counts: bool, work) -> None:
    """Runs `work` in a process that dies by SIGKILL when that many blocks are finished: right after the last counts as
    done, or right before, when its results are written."""
    child = os.fork()
    if child:
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        return
    replace, save = os.replace, Job.save

    def dying_replace(*arguments) -> None:
        if before_it_counts and str(arguments[1]).endswith("progress.json") and counted[0] == block:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(*arguments)

    counted = [0]

    def dying_save(self, *states: object) -> None:
        counted[0] += 1
        save(self, *states)
        if counted[0] == block:
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace, Job.save = dying_replace, dying_save
    try:
        work()
    finally:
        os._exit(0)


@pytest.mark.once
@pytest.mark.parametrize("before_it_counts", [False, True])
@pytest.mark.parametrize("method", ["wanda", "magnitude", "gptq", "round-to-nearest"])
@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_killed_at_any_block_the_result_is_byte_identical(
    folder_of, tmp_path, monkeypatch, capfd, family, method, before_it_counts
) -> None:
    monkeypatch.setattr(blocks, "MICRO_TOKENS", 64)
    layers = {"llama": "num_hidden_layers", "bloom": "n_layer"}[family]
    path = folder_of(family, **{layers: 4})
    if method in ("gptq", "round-to-nearest"):
        prune_folder(path, tmp_path / "pruned", sparsity=0.5, **SMALL)
        compress = lambda out: quantize_folder(tmp_path / "pruned", out, method, **SMALL)  # noqa: E731
    else:
        compress = lambda out: prune_folder(path, out, method, 0.5, **SMALL)  # noqa: E731
    undisturbed = compress(tmp_path / "undisturbed")
    block = int(torch.randint(1, 4, ()))
    killed(block, before_it_counts, lambda: compress(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    capfd.readouterr()
    report = compress(tmp_path / "out")
    if block > before_it_counts:
        assert f"going on at block {block + 1 - before_it_counts}:" in capfd.readouterr().err
    assert contents(tmp_path / "out") == contents(tmp_path / "undisturbed")
    assert [{**row, "seconds": 0} for row in report["layers"]] == [
        {**row, "seconds": 0} for row in undisturbed["layers"]
    ]
    assert not [file for file in tmp_path.iterdir() if file.name.startswith(".")]


@pytest.mark.parametrize("swapped", ["model.safetensors", "tokenizer.json"])
def test_another_model_under_the_same_name_size_and_time_does_not_go_on_from_there(
    swapped, folder_of, tmp_path, capfd
) -> None:
    path = tmp_path / "model"
    shutil.copytree(folder_of("llama", num_hidden_layers=4), path)
    killed(2, False, lambda: prune_folder(path, tmp_path / "out", sparsity=0.5, **SMALL))
    before, content = (path / swapped).stat(), (path / swapped).read_bytes()
    last_bit = content[:-1] + bytes([content[-1] ^ 1])
    (path / swapped).write_bytes(last_bit if swapped.endswith("s") else content.replace(b"\n", b" ", 1))
    os.utime(path / swapped, ns=(before.st_atime_ns, before.st_mtime_ns))
    prune_folder(path, tmp_path / "out", sparsity=0.5, **SMALL)
    assert "is of another command or another model: starting anew" in capfd.readouterr().err


def test_another_command_does_not_go_on_from_there(folder_of, tmp_path, capfd) -> None:
    path = folder_of("llama", num_hidden_layers=4)
    killed(2, False, lambda: prune_folder(path, tmp_path / "out", sparsity=0.5, **SMALL))
    prune_folder(path, tmp_path / "out", sparsity=0.25, **SMALL)
    assert "is of another command or another model: starting anew" in capfd.readouterr().err
    folder = ModelFolder(tmp_path / "out")
    assert all(((~folder.mask(module)).sum(1) == folder.mask(module).shape[1] // 4).all() for module in folder.masks)


def test_other_code_does_not_finish_what_this_one_began(folder_of, tmp_path, monkeypatch, capfd) -> None:
    path = folder_of("llama", num_hidden_layers=4)
    killed(2, False, lambda: prune_folder(path, tmp_path / "out", sparsity=0.5, **SMALL))
    monkeypatch.setattr("sqft_plugins.compress.job.identity_of_code", lambda: "edited")
    prune_folder(path, tmp_path / "out", sparsity=0.5, **SMALL)
    assert "is of another command or another model: starting anew" in capfd.readouterr().err


def test_what_a_killed_clean_up_leaves_is_no_job_to_go_on_with(folder_of, tmp_path, monkeypatch) -> None:
    """The model folder has gone to its place, but the list of finished blocks is still there."""
    compress = lambda: prune_folder(folder_of("llama"), tmp_path / "out", overwrite=True, **SMALL)  # noqa: E731
    with monkeypatch.context() as patched:
        patched.setattr("sqft_plugins.compress.job.discard", lambda work, path: None)
        compress()
    before = contents(tmp_path / "out")
    assert (tmp_path / ".out.sqft-job" / "progress.json").is_file()
    compress()
    assert contents(tmp_path / "out") == before
    (tmp_path / ".out.sqft-job").mkdir()
    for content in ('{"verb": "pru', ""):  # written half, as releases before could leave it
        (tmp_path / ".out.sqft-job" / "request.json").write_text(content)
        compress()
        assert contents(tmp_path / "out") == before
        (tmp_path / ".out.sqft-job").mkdir()


def test_two_processes_do_not_write_the_same_output(folder_of, tmp_path) -> None:
    from sqft_plugins.compress.job import open_job

    with open_job(tmp_path / "out", {"verb": "prune"}, False) as job:
        assert job.done == 0
        with pytest.raises(SQFTError, match="being written by another process"):
            prune_folder(folder_of("llama"), tmp_path / "out", **SMALL)
        (job.folder / "config.json").write_text("{}")
    assert (tmp_path / "out" / "config.json").is_file()


def test_bad_input_found_late_leaves_nothing(folder_of, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(GPTQ, "quantize", lambda *_: (_ for _ in ()).throw(SQFTError("too late")))
    with pytest.raises(SQFTError, match="too late"):
        quantize_folder(folder_of("llama"), tmp_path / "out", "gptq", **SMALL)
    assert not list(tmp_path.iterdir())
