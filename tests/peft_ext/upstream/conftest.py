"""How PEFT's own tests are run here; see aim.py."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # importlib mode keeps test folders off the path

import aim
import stand_ins
import verdict
from huggingface_hub import constants

HERE = Path(__file__).parent


@pytest.fixture(autouse=True, scope="session")
def hub(tmp_path_factory, tiny_tokenizer):
    """The stand-ins as the hub's cache of this session."""
    folder = tmp_path_factory.mktemp("hub")
    tokenizer = tiny_tokenizer("byte-level")
    for name in stand_ins.MODELS:
        stand_ins.make(name, folder, tokenizer)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_CACHE", str(folder))
        yield


def pytest_configure(config):
    for name in ("skipf", "single_gpu_tests", "multi_gpu_tests", "bitsandbytes", "regression"):
        config.addinivalue_line("markers", f"{name}: of PEFT's own tests")


@pytest.hookimpl(tryfirst=True)  # before -k takes some away
def pytest_collection_modifyitems(config, items):
    config.stash[aim.COLLECTED] = [verdict.name_of(item) for item in items if is_upstream(item)]
    aimed = [item for item in items if not is_upstream(item) or aim.is_aimed(item)]
    config.hook.pytest_deselected(items=[item for item in items if item not in set(aimed)])
    items[:] = aimed


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item):
    return (yield from verdict.judged(item)) if is_upstream(item) else (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    return (yield from verdict.judged(item, expected=True)) if is_upstream(item) else (yield)


def is_upstream(item) -> bool:
    return hasattr(item, "function") and HERE in item.path.parents and item.function.__module__.startswith(aim.PACKAGE)
