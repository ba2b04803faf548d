"""Hostile names of adapters: is any file outside of the adapters' folder opened?

    python benchmarks/names.py [--quick] [--inputs N] [--seed N] [--json FILE]

Names, paths and `?sub=` strings are made of what separates, climbs, ends or confuses (`..`, `/`, NUL, percent signs,
look-alikes of Unicode, very long ones, links), beside true ones, and given to what resolves the model of a request. An
audit hook notes every file and folder that Python opens, lists or changes meanwhile. One figure: the findings, of so
many names. A finding is something outside that was opened, or an exception that is no SQFTError. Needs vLLM's extra.
"""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from common import command, end_with_findings
from safetensors.torch import save_file

from sqft_plugins.errors import SQFTError

PARTS = [
    *("..", ".", "/", "//", "\\", "\0", "%2e%2e", "%2f", "~", "$HOME", "math", "MATH", "math.", " ", "\n", "@", "*"),
    *("?sub=", "&v=", "r4", "max", "0.5", "outside", "link", "ring", "half", "etc/passwd", "/etc/passwd", "file://"),
    *("a" * 300, "\uff4dath", "m\u0430th", "\u202e", "\ud800", "é", "adapter_config.json", "configurations", "CON"),
    *("-1", "1e9"),
]
EVENTS = ("open", "os.listdir", "os.scandir", "os.readlink", "os.remove", "os.rename", "os.mkdir", "shutil.copyfile")


def write_adapter(folder: Path) -> None:
    """A LoRA of one layer."""
    folder.mkdir(parents=True)
    config = {"peft_type": "SQFT", "r": 4, "lora_alpha": 8, "rank_choices": [4, 2], "target_modules": ["q_proj"],
              "task_type": "CAUSAL_LM", "base_model_name_or_path": "base"}  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config))
    prefix = "base_model.model.model.layers.0.self_attn.q_proj"
    tensors = {f"{prefix}.lora_A.weight": torch.ones(4, 8), f"{prefix}.lora_B.weight": torch.ones(8, 4)}
    save_file(tensors, folder / "adapter_model.safetensors")


def made_names(count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    return ["math", "math@r2", "math@r2*0.5"] + [
        "".join(draw.choices(PARTS, k=draw.choice((1, 1, 2, 2, 3, 4, 6)))) for _ in range(count - 3)
    ]


def table(count: int, seed: int = 0) -> dict[str, Any]:
    from vllm_ext.adapters.directory import AdapterDirectory
    from vllm_ext.adapters.names import parse_name, parse_path

    opened: list[tuple[str, str]] = []
    watching = False

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if watching and event in EVENTS and isinstance(arguments[0], str | bytes | os.PathLike):
            opened.append((event, os.fsdecode(arguments[0])))

    with tempfile.TemporaryDirectory(prefix="sqft-names-") as temporary:
        root, outside = Path(temporary).resolve() / "adapters", Path(temporary).resolve() / "outside"
        write_adapter(root / "math")
        write_adapter(outside)
        for name in ("link", "CON"):
            (root / name).symlink_to(outside)
        (root / "ring").symlink_to("ring")
        (root / "half").mkdir()
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            (root / "half" / file).symlink_to(outside / file)
        directory = AdapterDirectory(root)
        directory.open("math")  # what is imported for it is imported now
        sys.addaudithook(hook)

        findings, accepted = [], 0
        for name in made_names(count, seed):
            opened.clear()
            watching = True
            try:
                parse_path(name)
                directory.open(parse_name(name).adapter)
                accepted += 1
            except SQFTError as error:
                if "\n" in str(error) or len(str(error)) > 2000:
                    findings.append(f"{name[:60]!r}: a message of more than a line")
            except Exception as error:
                findings.append(f"{name[:60]!r}: {type(error).__name__}: {str(error)[:100]}")
            watching = False
            findings += [
                f"{name[:60]!r}: {event} {path}"
                for event, path in opened
                if not Path(os.path.realpath(path)).is_relative_to(root) and not path.endswith((".py", ".pyc", ".so"))
            ]
    return {"inputs": count, "accepted": accepted, "findings": findings}


def main() -> None:
    parser = command(__doc__, "500 names")
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    result = table(500 if options.quick else options.inputs, options.seed)
    for finding in result["findings"][:20]:
        print(f"  {finding}")
    tried = f"{result['inputs']} names, {result['accepted']} accepted"
    end_with_findings(len(result["findings"]), tried, result, options.json)


if __name__ == "__main__":
    main()
