"""Damaged and hostile files: does every reader answer with a value or with one line?

    python benchmarks/fuzz.py [--quick] [--inputs N] [--seed N] [--only READER ...] [--json FILE]

A seeded mutator that knows the structure of a file (JSON values and keys, the header of safetensors and its length, the
numbers of a GGUF header, lines) and bytes changes one file of a whole folder, N times for each reader. One figure: the
findings, of so many inputs. A finding is an exception that is no SQFTError, more than a second of CPU time, or a GGUF
file that is read with other tensors than the package `gguf` reads. Memory: the growth of the process's peak.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import struct
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from common import command, end_with_findings
from kills import prepare

from sqft_plugins.errors import SQFTError

ODD: list[Any] = [None, True, -1, 0, 1, 3, 2**31, 2**53, 2**63, -(2**63), 10**30, 0.5, -0.0, 1e308, float("nan"),
                  float("inf"), "", "x", "\0", "../x", "/etc/passwd", "a" * 5000, "é\u202e", "\ud800", [], {}, [[]],
                  [None], {"": None}, {"a": {"b": 1}}, ["q_proj", 1], [0, 10], [10, 0], [-1, 4]]  # fmt: skip
NUMBERS = [0, 1, 2, 7, 255, 2**16, 2**31 - 1, 2**32 - 1, 2**33, 2**40, 2**62, 2**63, 2**64 - 1]
SECONDS = 1.0
Mutator = Callable[[bytes, random.Random], bytes]


# --- mutators ---


def mutate_bytes(data: bytes, draw: random.Random, head: int | None = None) -> bytes:
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        size = min(len(changed), head or len(changed))
        at = draw.randrange(size + 1)
        match draw.randrange(6):
            case 0 if size:
                changed[at % size] = draw.randrange(256)
            case 1 if size:
                changed[at % size] ^= 1 << draw.randrange(8)
            case 2:
                del changed[at : at + draw.choice((1, 4, 8, 100))]
            case 3:
                changed[at:at] = changed[at : at + draw.choice((1, 8, 64))]
            case 4:
                form = draw.choice("BHIQ")
                number = draw.choice(NUMBERS) % (1 << (8 * struct.calcsize(form)))
                changed[at : at + struct.calcsize(form)] = struct.pack(f"<{form}", number)
            case _:
                if draw.random() < 0.3:
                    del changed[at:]
    return bytes(changed)


def mutate_value(value: Any, draw: random.Random) -> Any:
    """One place of a JSON value."""
    if isinstance(value, dict) and value and draw.random() < 0.85:
        key = draw.choice(list(value))
        match draw.randrange(8):
            case 0:
                return {name: inner for name, inner in value.items() if name != key}
            case 1:
                return {draw.choice(["", "x", key.upper(), key + "\0", "../" + key]) if name == key else name: inner
                        for name, inner in value.items()}  # fmt: skip
            case _:
                return {**value, key: mutate_value(value[key], draw)}
    if isinstance(value, list) and value and draw.random() < 0.7:
        at = draw.randrange(len(value))
        match draw.randrange(5):
            case 0:
                return value[:at] + value[at + 1 :]
            case 1:
                return [*value, value[at]]
            case _:
                return [*value[:at], mutate_value(value[at], draw), *value[at + 1 :]]
    return draw.choice(ODD)


def mutate_json(data: bytes, draw: random.Random) -> bytes:
    match draw.randrange(12):
        case 0:
            return mutate_bytes(data, draw)
        case 1:
            return b"[" * draw.choice((10, 2000, 100_000))
        case 2:
            return b'{"a":' * draw.choice((10, 2000, 100_000))
        case 3:
            return data.replace(b":", b":1" + b"0" * draw.choice((10, 5000)) + b",", 1)
    value = json.loads(data)
    for _ in range(draw.choice((1, 1, 2, 3))):
        value = mutate_value(value, draw)
    return json.dumps(value).encode()


def mutate_lines(data: bytes, draw: random.Random) -> bytes:
    lines = data.split(b"\n")
    at = draw.randrange(len(lines))
    lines[at] = mutate_json(lines[at], draw) if lines[at].startswith(b"{") else mutate_bytes(lines[at], draw)
    return draw.choice((b"\n", b"\n", b"\r\n", b"\0")).join(lines)


def mutate_safetensors(data: bytes, draw: random.Random) -> bytes:
    length = int.from_bytes(data[:8], "little")
    match draw.randrange(5):
        case 0:
            return mutate_bytes(data, draw, head=8 + length)
        case 1:
            return draw.choice(NUMBERS).to_bytes(8, "little") + data[8:]
    header = mutate_json(data[8 : 8 + length], draw)
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


def mutate_gguf(data: bytes, draw: random.Random) -> bytes:
    """The first kilobyte has the numbers, the table of tensors lies behind the vocabulary."""
    if draw.random() < 0.4:
        return mutate_bytes(data, draw, head=1000)
    table = data.index(b"token_embd.weight") - 8
    return data[:table] + mutate_bytes(data[table : table + 2000], draw) + data[table + 2000 :]


# --- readers ---


def read_model(folder: Path) -> None:
    from sqft_plugins.checkpoint import ModelFolder
    from sqft_plugins.inspect import inspect_path

    inspect_path(folder)
    model = ModelFolder(folder)
    for module in list(model.masks)[:3]:
        model.weight(module)


def read_adapter(folder: Path) -> None:
    from sqft_plugins.adapter import AdapterFolder
    from sqft_plugins.inspect import inspect_path

    inspect_path(folder)
    adapter = AdapterFolder(folder)
    for _ in adapter.read_pairs():
        pass


def read_served(folder: Path) -> None:
    from vllm_ext.adapters.folder import open_adapter

    open_adapter(folder)


def read_configurations(folder: Path) -> None:
    from sqft_plugins.configurations import saved_configuration, saved_configurations

    for name in saved_configurations(folder):
        saved_configuration(folder, name)


def read_jsonl(folder: Path) -> None:
    from sqft_plugins.tune.examples import read_examples

    read_examples(folder / "d.jsonl")


def read_recipe(folder: Path) -> None:
    from sqft_plugins.recipe.read import read_recipe as read

    recipe = read([folder / "recipe.yaml"])
    recipe.text(folder / "out")


def read_gguf(folder: Path) -> None:
    from gguf import GGUFReader

    from gguf_ext import GGUFFile
    from gguf_ext.inspector import inspect_gguf

    inspect_gguf(folder / "m.gguf")
    ours = {name: (tuple(t.shape), int(t.type)) for name, t in GGUFFile(folder / "m.gguf").tensors.items()}
    try:
        theirs = {t.name: (tuple(map(int, reversed(t.shape))), int(t.tensor_type))
                  for t in GGUFReader(folder / "m.gguf").tensors}  # fmt: skip
    except Exception:  # the reference refuses it: then there is nothing to compare
        return
    if {name: shape for name, shape in ours.items() if name in theirs} != theirs:
        raise AssertionError("read with other tensors than the package gguf reads")


def read_tokenizer(folder: Path) -> None:
    from sqft_plugins.checkpoint import load_tokenizer

    load_tokenizer(folder)


READERS: dict[str, tuple[str, str, Mutator, Callable[[Path], None]]] = {
    "safetensors": ("pruned", "model.safetensors", mutate_safetensors, read_model),
    "config.json": ("pruned", "config.json", mutate_json, read_model),
    "config.json, INT4": ("int4", "config.json", mutate_json, read_model),
    "safetensors, INT4": ("int4", "model.safetensors", mutate_safetensors, read_model),
    "stamp": ("pruned", "sqft/stamp.json", mutate_json, read_model),
    "mask": ("pruned", "sqft/mask.safetensors", mutate_safetensors, read_model),
    "adapter_config.json": ("adapter", "adapter_config.json", mutate_json, read_adapter),
    "adapter weights": ("adapter", "adapter_model.safetensors", mutate_safetensors, read_adapter),
    "served adapter": ("adapter", "adapter_config.json", mutate_json, read_served),
    "training.json": ("adapter", "training.json", mutate_json, read_adapter),
    "configuration": ("adapter", "configurations/small.json", mutate_json, read_configurations),
    "JSONL": ("texts", "d.jsonl", mutate_lines, read_jsonl),
    "recipe": ("texts", "recipe.yaml", mutate_bytes, read_recipe),
    "tokenizer.json": ("base", "tokenizer.json", mutate_bytes, read_tokenizer),
    "tokenizer_config.json": ("base", "tokenizer_config.json", mutate_json, read_tokenizer),
    "GGUF": ("file", "m.gguf", mutate_gguf, read_gguf),
}


def fuzz(name: str, inputs: Path, place: Path, count: int, seed: int) -> dict[str, Any]:
    """One reader on `count` inputs."""
    folder, file, mutate, read = READERS[name]
    here = place / name.replace(" ", "-")
    shutil.copytree(inputs / folder, here)
    good = (here / file).read_bytes()
    read(here)  # the undamaged one
    draw, kinds, findings, accepted, slowest = random.Random(f"{name} {seed}"), Counter(), {}, 0, 0.0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(count):
        data = mutate(good, draw)
        (here / file).unlink()  # a new inode: what is remembered of the old one is not of this one
        (here / file).write_bytes(data)
        begin = time.process_time()
        try:
            read(here)
            accepted += 1
        except SQFTError as error:
            if "\n" in str(error):
                kinds["more than one line"] += 1
                findings.setdefault("more than one line", str(error)[:300])
        except (Exception, RecursionError) as error:
            frames = traceback.extract_tb(error.__traceback__)
            own = [frame for frame in frames if "sqft" in frame.filename and "benchmarks" not in frame.filename]
            where = f"{Path(own[-1].filename).name}:{own[-1].lineno}" if own else "?"
            kind = f"{type(error).__name__} at {where}"
            kinds[kind] += 1
            if kind not in findings:
                findings[kind] = f"input {number}: {str(error)[:160]}"
        spent = time.process_time() - begin
        slowest = max(slowest, spent)
        if spent > SECONDS:
            kinds["slow"] += 1
            findings.setdefault("slow", f"input {number}: {spent:.1f} s")
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return {"reader": name, "inputs": count, "accepted": accepted, "kinds": dict(kinds), "findings": findings,
            "slowest": round(slowest, 3), "grown_mib": round(grown, 1)}  # fmt: skip


def table(count: int, seed: int, only: list[str] | None = None) -> list[dict[str, Any]]:
    warnings.simplefilter("ignore")
    rows = []
    with tempfile.TemporaryDirectory(prefix="sqft-fuzz-") as folder:
        os.environ["XDG_STATE_HOME"] = f"{folder}/state"
        inputs, place = Path(folder).resolve() / "up" / "inputs", Path(folder).resolve() / "work"
        inputs.mkdir(parents=True)
        place.mkdir()
        os.chdir(inputs)
        prepare(inputs)
        (inputs / "adapter/configurations").mkdir(exist_ok=True)
        ranks = json.loads((inputs / "adapter/adapter_config.json").read_text())
        modules = [f"model.layers.{n}.self_attn.{t}" for n in range(2) for t in ("q_proj", "v_proj")]
        (inputs / "adapter/configurations/small.json").write_text(json.dumps(dict.fromkeys(modules, ranks["r"])))
        (inputs / "texts").mkdir()
        for name in ("d.jsonl", "recipe.yaml"):
            shutil.copy(inputs / name, inputs / "texts" / name)
        shutil.copytree(inputs / "base", inputs / "texts/base")
        if only is None or "GGUF" in only:
            from gguf_ext import export_gguf

            (inputs / "file").mkdir()
            export_gguf(inputs / "int4", inputs / "file/m.gguf")
        for name in READERS:
            if only is None or name in only:
                try:
                    row = fuzz(name, inputs, place, count, seed)
                except ImportError as error:  # a surface that is not installed
                    print(f"{name}: not here ({error})")
                    continue
                rows.append(row)
                print(f"{name}: {sum(row['kinds'].values())} findings in {row['inputs']} inputs, {row['accepted']} "
                      f"accepted, slowest {row['slowest']} s, memory +{row['grown_mib']} MiB", flush=True)  # fmt: skip
                for kind, first in row["findings"].items():
                    print(f"  {row['kinds'][kind]}x {kind}: {first}", flush=True)
        os.chdir("/")
    return rows


def main() -> None:
    parser = command(__doc__, "30 inputs of each reader")
    parser.add_argument("--inputs", type=int, default=2000, help="Of each reader")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=list(READERS), help="These readers")
    options = parser.parse_args()
    rows = table(30 if options.quick else options.inputs, options.seed, options.only)
    wrong = sum(sum(row["kinds"].values()) for row in rows)
    tried = f"{sum(row['inputs'] for row in rows)} inputs of {len(rows)} readers"
    end_with_findings(wrong, tried, {"rows": rows}, options.json)


if __name__ == "__main__":
    main()
