"""Kills and failing disks: does a command that was cut off at any moment end as an undisturbed one?

    python benchmarks/kills.py [--quick] [--random N] [--every N] [--only NAME ...] [--json FILE]

Each command runs on a tiny random model, in a forked process. It is cut off in three ways: killed (SIGKILL) before its
n-th change of the file system (a file opened for writing, made, renamed, synced, removed), killed at a random moment,
and refused its n-th change with an error of the system (no space, EIO, read-only), or more than n bytes in a file (a
short write, of native code, too). Then the same command runs again, undisturbed, and is compared.

One figure: the findings, of so many cuts. A finding is an output that is neither whole nor absent, a second run that
fails or has other bytes, a hidden file that stays, a changed file of the user's, a traceback. Of reports in JSON the
values that two undisturbed runs do not share (seconds, memory) are left out. --quick takes a few cuts of each.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from common import command, end_with_findings
from random_model import write_model

CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
ERRORS = (errno.ENOSPC, errno.EIO, errno.EROFS)
SIZES = (0, 100, 5_000, 100_000)
"""Bytes that a file may have, where a short write is tried."""
USER = "notes.txt"
TRAIN = ["--rank", "8", "--rank-choices", "8,4", "--steps", "4", "--batch-size", "4", "--checkpoint-every", "2"]
SHORT = ["--sequences", "2", "--length", "32"]
COMMANDS: dict[str, list[str]] = {
    "prune": ["prune", "base", "--sparsity", "0.5", *SHORT, "--out", "out"],
    "quantize": ["quantize", "pruned", "--method", "gptq", *SHORT, "--out", "out"],
    "quantize to a file": ["quantize", "pruned", "--grid", "q4_0", "--method", "llama.cpp", "--out", "out.gguf"],
    "train": ["train", "pruned", "--data", "d.jsonl", *TRAIN, "--out", "out"],
    "search": ["search", "pruned", "adapter", "--data", "d.jsonl", "--evaluations", "3", "--out", "out"],
    "extract": ["extract", "adapter", "--rank", "4", "--out", "out"],
    "merge": ["merge", "pruned", "adapter", "--out", "out"],
    "compact": ["compact", "int4", "--out", "out"],
    "export gguf": ["export", "gguf", "int4", "--out", "out.gguf"],
    "export in parts": ["export", "gguf", "int4", "--out", "out.gguf", "--split-max-size", "60K"],
    "run": ["run", "recipe.yaml", "--out", "out"],
}
OVER = ("prune", "merge", "export gguf")
"""Those that are also tried over an output that is there, with --overwrite."""
RECIPE = """
model: base
prune: {sparsity: 0.5, method: magnitude}
train: {data: d.jsonl, rank: 8, rank_choices: [8, 4], steps: 2, batch_size: 4}
merge:
export:
"""


# --- one run ---


def child(arguments: list[str], disturb: Callable[[], None] = lambda: None, seconds: float | None = None) -> int:
    """Runs `sqft` in a forked process of the current folder, after `disturb` there → its exit code; what it prints goes
    to the file `log` in the folder above. seconds: until it is killed."""
    pid = os.fork()
    if not pid:
        code = 99
        try:
            with open(Path.cwd().parent / "log", "w") as log:
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
            from sqft_plugins.cli import main

            disturb()
            main(arguments)
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0
        finally:
            os._exit(code)
    if seconds is not None:
        time.sleep(seconds)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def at_changes(do: Callable[[int], object], place: Path) -> Callable[[], None]:
    """What makes a process call `do(number)` before each of its changes in `place`."""
    seen = 0

    def changed(path: object) -> None:
        nonlocal seen
        if isinstance(path, str | bytes) and Path(os.path.abspath(os.fsdecode(path))).is_relative_to(place):
            seen += 1
            do(seen)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        opened = event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING
        if event in CHANGES or opened:
            changed(arguments[0])

    def install() -> None:
        sync = os.fsync

        def fsync(handle: int) -> None:
            changed(os.readlink(f"/proc/self/fd/{handle}"))
            sync(handle)

        os.fsync = fsync
        sys.addaudithook(hook)

    return install


def die_at(count: int) -> Callable[[int], None]:
    def do(number: int) -> None:
        if number == count:
            os.kill(os.getpid(), signal.SIGKILL)

    return do


def fail_at(count: int, error: int) -> Callable[[int], None]:
    def do(number: int) -> None:
        if number == count:
            raise OSError(error, os.strerror(error))

    return do


def no_more_than(size: int) -> Callable[[], None]:
    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        log = 10_000  # what the command says of it must fit
        resource.setrlimit(resource.RLIMIT_FSIZE, (max(size, log), resource.RLIM_INFINITY))

    return limit


def count_changes(arguments: list[str], place: Path) -> int:
    """Of an undisturbed run."""
    read_end, write_end = os.pipe()
    seen = 0

    counting = at_changes(lambda number: os.write(write_end, b"x"), place)
    code = child(arguments, counting)
    os.close(write_end)
    while chunk := os.read(read_end, 1 << 16):
        seen += len(chunk)
    os.close(read_end)
    if code:
        raise SystemExit(f"sqft {' '.join(arguments)} fails undisturbed:\n{(place.parent / 'log').read_text()}")
    return seen


# --- what is compared ---


def contents(place: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(place)): b"-> " + os.readlink(file).encode() if file.is_symlink() else without_times(file)
        for file in sorted(place.rglob("*"))
        if file.is_symlink() or file.is_file()
    }


def without_times(file: Path) -> bytes:
    """What is in it; of a model card without the line that tells how long it took."""
    if file.suffix != ".md":
        return file.read_bytes()
    return b"".join(line for line in file.read_bytes().splitlines(keepends=True) if b"seconds" not in line)


def shared(one: Any, other: Any) -> Any:
    """What two readings of a report have in common."""
    if isinstance(one, dict) and isinstance(other, dict):
        return {key: shared(value, other.get(key)) for key, value in one.items()}
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return [shared(a, b) for a, b in zip(one, other, strict=True)]
    return one if one == other else "..."


def like(pattern: Any, found: Any) -> bool:
    if pattern == "...":
        return True
    if isinstance(pattern, dict) and isinstance(found, dict):
        return pattern.keys() == found.keys() and all(like(value, found[key]) for key, value in pattern.items())
    if isinstance(pattern, list) and isinstance(found, list) and len(pattern) == len(found):
        return all(map(like, pattern, found))
    return pattern == found


class Reference:
    """Two undisturbed runs, and what is equal in both."""

    def __init__(self, one: dict[str, bytes], other: dict[str, bytes]):
        self.names = {name for name in one if not loose(name)}
        self.exact = {name: one[name] for name in self.names if one[name] == other.get(name)}
        self.reports: dict[str, Any] = {}
        self.free: list[str] = []
        for name in self.names - self.exact.keys():
            try:
                self.reports[name] = shared(json.loads(one[name]), json.loads(other[name]))
            except ValueError:
                self.free.append(name)

    def differences(self, found: dict[str, bytes], resumed: bool) -> list[str]:
        """resumed: keys of a report may differ, such as the step that a run went on from."""
        names = {name for name in found if not loose(name)}
        wrong = [f"{name} is there" for name in sorted(names - self.names)]
        wrong += [f"{name} is missing" for name in sorted(self.names - names)]
        wrong += [f"{name} differs" for name, data in self.exact.items() if name in found and not resembles(
            data, found[name], name, resumed)]  # fmt: skip
        for name, pattern in self.reports.items():
            if name in found and not resumed and not like(pattern, json.loads(found[name])):
                wrong.append(f"{name} differs")
        return wrong


def resembles(data: bytes, found: bytes, name: str, resumed: bool) -> bool:
    if data == found:
        return True
    if resumed and name.endswith("training.json"):
        drop = ("resumed_from_step",)
        one, other = ({k: v for k, v in json.loads(text).items() if k not in drop} for text in (data, found))
        return one == other
    return False


def loose(name: str) -> bool:
    """Files whose order of lines is that of the attempts: the journal of a search, which is kept for the next one."""
    return ".journal" in name or name.endswith("/.lock")


# --- the table ---


def prepare(place: Path) -> None:
    """The inputs of all commands."""
    write_model(place / "base", 2, sparse=False, hidden_size=64, intermediate_size=128, num_attention_heads=4,
                num_key_value_heads=2, vocab_size=2048)  # fmt: skip
    lines = [json.dumps({"prompt": f"Say {n}:", "completion": f" {n}"}) for n in range(16)]
    (place / "d.jsonl").write_text("\n".join(lines) + "\n")
    (place / "recipe.yaml").write_text(RECIPE)
    (place / USER).write_text("of the user")
    made = {
        "pruned": ["prune", "base", "--sparsity", "0.5", "--method", "magnitude"],
        "int4": ["quantize", "pruned"],
        "adapter": ["train", "pruned", "--data", "d.jsonl", *TRAIN[:-2]],
    }
    for name, arguments in made.items():
        if child([*arguments, "--out", name]):
            raise SystemExit(f"{name} cannot be made:\n{(place.parent / 'log').read_text()}")


def fresh(inputs: Path, place: Path, over: bool) -> None:
    """`place` as it is before a command."""
    for entry in place.iterdir():
        shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    for entry in inputs.iterdir():
        (place / entry.name).symlink_to(entry)
    if over:
        if over == "file":
            (place / "out.gguf").write_text("old")
        else:
            (place / "out").mkdir()
            (place / "out/old.txt").write_text("old")


def cuts(changes: int, options: Any, seconds: float) -> Iterator[tuple[str, Callable[[Path], Callable[[], None]], Any]]:
    """(what, disturbance of a process in a folder, seconds until it is killed)."""
    step = max(1, changes // 3 if options.quick else options.every)
    for count in range(1, changes + 1, step):
        yield f"kill {count}", lambda place, n=count: at_changes(die_at(n), place), None
    for count in range(1, changes + 1, step):
        number = ERRORS[count % len(ERRORS)]
        name = errno.errorcode[number]
        yield f"{name} {count}", lambda place, n=count, e=number: at_changes(fail_at(n, e), place), None
    for size in SIZES[-1:] if options.quick else SIZES:
        yield f"size {size}", lambda place, n=size: no_more_than(n), None
    generator = random.Random(0)
    for _ in range(1 if options.quick else options.random):
        yield "moment", lambda place: lambda: None, generator.uniform(0, seconds)


def judge(name: str, inputs: Path, place: Path, options: Any) -> dict[str, Any]:
    """All cuts of one command."""
    base, _, over = name.partition(" over ")
    arguments = [*COMMANDS[base], *(["--overwrite"] if over else [])]
    runs = []
    for _ in range(2):
        fresh(inputs, place, over)
        begin = time.monotonic()
        changes = count_changes(arguments, place)
        seconds = time.monotonic() - begin
        runs.append(contents(place))
    reference = Reference(*runs)
    fresh(inputs, place, over)
    untouched = contents(place)
    target = next(word for word, before in zip(arguments[1:], arguments, strict=False) if before == "--out")

    findings, tried, codes = [], 0, {}
    for what, disturbance, until in cuts(changes, options, seconds):
        tried += 1
        fresh(inputs, place, over)
        code = child(arguments, disturbance(place), until)
        codes[code] = codes.get(code, 0) + 1
        said = (place.parent / "log").read_text()
        found = []
        if code not in (0, 2, -signal.SIGKILL) or "Traceback" in said:
            found.append(f"exit code {code}: {said.strip().splitlines()[-1:]}")
        if base != "run":  # its folder grows; what is in it is judged at the end
            now = {key: data for key, data in contents(place).items() if is_of(key, target)}
            before = {key: data for key, data in untouched.items() if is_of(key, target)}
            whole = {key: data for key, data in runs[0].items() if is_of(key, target)}
            if now.keys() not in (before.keys(), whole.keys()) and base != "export in parts":
                found.append(f"half: {sorted(now)[:4]}")
        again = child(arguments)
        after = contents(place)
        said = (place.parent / "log").read_text()
        if again == 2 and "exists" in said:  # it was made before it was cut off
            again = 0
        if again:
            found.append(f"again: exit code {again}: {said.strip().splitlines()[-1:]}")
        found += [f"again: {line}" for line in reference.differences(after, resumed=True)]
        findings += [f"{what}: {line}" for line in found]
    return {"command": name, "changes": changes, "cuts": tried, "codes": codes, "findings": findings,
            "not compared": reference.free, "seconds": round(seconds, 2)}  # fmt: skip


def is_of(name: str, target: str) -> bool:
    return name == target or name.startswith((f"{target}/", target.removesuffix(".gguf") + "-0"))


def main() -> None:
    parser = command(__doc__, "three or four cuts of each command")
    parser.add_argument("--random", type=int, default=18, help="Random moments of each command")
    parser.add_argument("--every", type=int, default=1, help="Take every n-th change")
    parser.add_argument("--only", nargs="+", help="These commands")
    options = parser.parse_args()
    rows = table(options)
    total = sum(row["cuts"] for row in rows)
    wrong = sum(len(row["findings"]) for row in rows)
    end_with_findings(wrong, f"{total} cuts of {len(rows)} commands", {"rows": rows}, options.json)


def import_all() -> None:
    """Before processes fork: each would import it anew."""
    import peft  # noqa: F401
    import transformers  # noqa: F401

    import gguf_ext  # noqa: F401
    import peft_ext  # noqa: F401
    import sqft_plugins.compress.prune
    import sqft_plugins.compress.quantize
    import sqft_plugins.tune.train  # noqa: F401


def table(options: Any) -> list[dict[str, Any]]:
    import_all()
    names = [*COMMANDS, *(f"{name} over {'file' if 'gguf' in name else 'folder'}" for name in OVER)]
    chosen = [name for name in names if not options.only or name in options.only]
    rows = []
    with tempfile.TemporaryDirectory(prefix="sqft-kills-") as folder:
        os.environ["XDG_STATE_HOME"] = os.environ["SQFT_EVAL_CACHE"] = f"{folder}/state"
        inputs, place = Path(folder).resolve() / "inputs", Path(folder).resolve() / "work" / "place"
        inputs.mkdir()
        place.mkdir(parents=True)
        os.chdir(inputs)
        prepare(inputs)
        os.chdir(place)
        for name in chosen:
            row = judge(name, inputs, place, options)
            rows.append(row)
            print(f"{name}: {len(row['findings'])} findings in {row['cuts']} cuts, codes {row['codes']}", flush=True)
            for finding in row["findings"][:12]:
                print(f"  {finding}")
    os.chdir("/")
    return rows


if __name__ == "__main__":
    main()
