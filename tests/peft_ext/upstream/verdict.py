"""What a failure of one of PEFT's tests means here: no hub, refused by name, left out with a reason, or a defect."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import aim
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled
from left_out import FAIL_FOR_LORA, LEFT_OUT, REFUSALS, SLOW, TOLERANCES

OFFLINE = (LocalEntryNotFoundError, OfflineModeIsEnabled)
SLOW_TOO = os.environ.get("SQFT_SLOW") == "1"
MAY_FAIL = FAIL_FOR_LORA if aim.AIM == "lora" else {**FAIL_FOR_LORA, **LEFT_OUT}
MUST_FAIL = {"lora": FAIL_FOR_LORA, "sparse": LEFT_OUT}.get(aim.AIM, {})

_refused_settings: dict[str, str] = {}


def judged(item: pytest.Function, expected: bool = False) -> Iterator[None]:
    """Runs one phase of a test. Its failure becomes a skip with a reason, where there is one; with `expected` (the
    phase that is to fail), the success of a listed test is a failure.

    A configuration that was refused once is not tried again in every other test of it: hundreds would do nothing but
    run into the same message.
    """
    settings = settings_of(item)
    try:
        with tolerance(item):
            result = yield
    except (Exception, pytest.fail.Exception) as error:
        errors = list(chain(error))
        if any(isinstance(one, OFFLINE) for one in errors):
            pytest.skip("needs the model hub")
        if refusal := reason_of_refusal(errors):
            if settings is not None:
                _refused_settings[settings] = refusal
            pytest.skip(refusal)
        if reason := listed(item, MAY_FAIL):
            pytest.skip(f"left out: {reason}")
        raise
    # in the set-up phase, and after it: pytest tears down what it has set up, so a set-up is not left out
    if not SLOW_TOO and (reason := listed(item, SLOW)):
        pytest.skip(f"slow, run with SQFT_SLOW=1: {reason}")
    if settings in _refused_settings:
        pytest.skip(_refused_settings[settings])
    if expected and (reason := listed(item, MUST_FAIL)):
        pytest.fail(f"passes, but left_out.py lists it ({reason}): remove it from the list")
    return result


@contextmanager
def tolerance(item: pytest.Function) -> Iterator[None]:
    """torch.allclose with the absolute tolerance that the list gives to this test."""
    atol, _ = TOLERANCES.get(name_of(item), (None, ""))
    with pytest.MonkeyPatch.context() as patch:
        if atol is not None:
            patch.setattr(torch, "allclose", partial(torch.allclose, atol=atol))
        yield


def settings_of(item: pytest.Function) -> str | None:
    """The model and the configuration among a test's parameters, as text."""
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    if "config_kwargs" not in parameters:
        return None
    return f"{parameters.get('model_id')} {parameters['config_kwargs']}"


def chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def reason_of_refusal(errors: list[BaseException]) -> str | None:
    for message, reason in REFUSALS.items():
        if aim.AIM != "lora" and any(re.search(message, str(error)) for error in errors):
            return f"refused: {reason}"
    return None


def listed(item: pytest.Function, names: dict[str, str]) -> str | None:
    """Why a test is in a list: there by its whole name, or by the name without parameters."""
    name = name_of(item)
    return names.get(name) or names.get(name.partition("[")[0])


def name_of(item: pytest.Function) -> str:
    """`<file>::<class>::<test>[<parameters>]`, the configuration class always by the name LoraConfig."""
    place = item.nodeid.index("::")
    name = item.nodeid[:place].rpartition("/")[2] + item.nodeid[place:]
    return name.replace(f"[{aim.CONFIG.__name__}-", "[LoraConfig-").replace(f"-{aim.CONFIG.__name__}-", "-LoraConfig-")
