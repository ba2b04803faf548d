"""`sqft recover` as a function."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sqft_plugins.cards.model import write_model_card
from sqft_plugins.checkpoint import load_model, load_tokenizer
from sqft_plugins.checkpoint.files import check_output
from sqft_plugins.checkpoint.stamp import mask_file, write_stamp
from sqft_plugins.checkpoint.writer import FolderWriter, copy_side_files, write_config
from sqft_plugins.compress.blocks import check_tokens
from sqft_plugins.compress.calibration import calibration_texts, token_batch
from sqft_plugins.compress.float_model import FloatModel, hash_of
from sqft_plugins.compress.job import Job, open_job
from sqft_plugins.compress.report import peak_memory_mib
from sqft_plugins.errors import SQFTError
from sqft_plugins.hardware import fast_dtype, on_fast_device
from sqft_plugins.identity import content_hash
from sqft_plugins.mask import lost_zeros, nonzero_mask
from sqft_plugins.progress import Steps, say
from sqft_plugins.recover.divergence import cut_head, vocabulary_of
from sqft_plugins.recover.learn import Learner, rate_at
from sqft_plugins.recover.settings import RecoverSettings
from sqft_plugins.structure import is_linear

SAVED_EVERY = 16
"""Steps between two states on disk, from which a killed run goes on."""


@dataclass(frozen=True)
class RecoverReport:
    """divergence_before, divergence_after: mean KL from the dense model in nats a token, on a batch of the text that is
    not learned. divergences: of each step's batch, before the step. dtype: of the products."""

    out: str
    dense: str
    modules: int
    weights: int
    steps: int
    tokens: int
    dtype: str
    divergence_before: float
    divergence_after: float
    seconds: float
    peak_memory_mib: int
    settings: dict[str, Any]
    divergences: list[float]


def recover_folder(
    model: str | Path,
    dense: str | Path,
    out: str | Path,
    settings: RecoverSettings | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Trains the kept weights of a pruned folder to predict as the dense model does, and writes it to `out` in its own
    dtype, with the same masks → the fields of `RecoverReport`. Killed, it goes on where it was.

    model: pruned, float. dense: the model that it was pruned from, a folder or a name on the hub.

    The loss is KL(dense ‖ model) of the next token, at the end of the model (`divergence.py`). Both models are in
    memory, in bfloat16 where that is fast, the weights that learn and Adam's moments in float32.

    Raises SQFTError for a model that is not pruned or quantized, a dense model of another shape or with the same zeros,
    too little text, and where nothing is gained; then nothing is written.
    """
    start = time.perf_counter()
    settings = settings or RecoverSettings()

    # everything that can be refused
    check_output(out, overwrite)
    source, teacher = FloatModel(model), FloatModel(dense)
    masks = _masks(source, teacher)
    tokens = _tokens(source, settings)
    held_out, learned = tokens[: settings.batch_size], tokens[settings.batch_size :]

    request = {
        "verb": "recover",
        "settings": settings.model_dump(exclude={"calibration"}),
        "tokens": hash_of(tokens),
        "source": content_hash(source.path),
        "dense": content_hash(teacher.path),
        "dtype": str(fast_dtype()),
    }
    with open_job(out, request, overwrite) as job:
        # work
        learner = _learner(source.path, teacher.path, masks, tokens, settings.seed)
        job.notes.setdefault("before", _measure(learner, held_out))
        divergences = _learn(learner, learned, settings, job)
        before, after = job.notes["before"], _measure(learner, held_out)
        say(f"on text that was not learned {before:.4f} → {after:.4f} nats a token from the dense model")
        if not after < before:
            raise SQFTError(
                f"nothing is gained ({before:.4f} → {after:.4f} nats a token): give a smaller --learning-rate, or more "
                "--sequences"
            )
        _write(source, learner, masks, job.folder)

    return asdict(
        RecoverReport(
            out=str(out),
            dense=teacher.name,
            modules=len(masks),
            weights=sum(mask.numel() for mask in masks.values()),
            steps=settings.steps,
            tokens=learned.numel(),
            dtype=str(learner.dtype).removeprefix("torch."),
            divergence_before=before,
            divergence_after=after,
            seconds=time.perf_counter() - start,
            peak_memory_mib=peak_memory_mib(),
            settings=settings.model_dump(),
            divergences=divergences,
        )
    )


def _masks(source: FloatModel, dense: FloatModel) -> dict[str, Tensor]:
    """Module → bool [out, in] of the layers that are pruned. Raises SQFTError where the two do not belong together."""
    if source.structure.shapes != dense.structure.shapes:
        raise SQFTError(
            f"--dense {dense.name} has other layers than {source.name}: give the model that it was made from"
        )
    masks = {name: mask for name in source.folder.masks if (mask := source.folder.mask(name)) is not None}
    masks = {name: mask for name, mask in masks.items() if not bool(mask.all())}
    if not masks:
        raise SQFTError(f"model {source.name} is not pruned: prune it first, with sqft prune")
    linears = {name for name, module in source.skeleton.model.named_modules() if is_linear(module)}
    joined = [name for name in masks if name not in linears]
    if joined:
        raise SQFTError(
            f"{joined[0]} (and {len(joined) - 1} more) is an expert, whose weights are no linear layer: a mixture's "
            "experts are not recovered yet, tune it as it is"
        )
    if all(lost_zeros(dense.folder.weight(name), mask) == 0 for name, mask in masks.items()):
        raise SQFTError(f"--dense {dense.name} has the zeros of {source.name}: give the model before it was pruned")
    return masks


def _tokens(source: FloatModel, settings: RecoverSettings) -> Tensor:
    """int64 [batch_size + steps * batch_size, length]: the batch that is held out first, the others shuffled."""
    tokenizer, texts = load_tokenizer(source.path), settings.texts
    each = -(-(settings.steps + 1) * settings.batch_size // len(texts))
    parts = [token_batch(calibration_texts(text), tokenizer, each, settings.length) for text in texts]
    tokens = check_tokens(source.skeleton.model, torch.cat(parts))
    order = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(settings.seed))
    return tokens[order[: (settings.steps + 1) * settings.batch_size]]


def _learner(model: Path, dense: Path, masks: Mapping[str, Tensor], tokens: Tensor, seed: int) -> Learner:
    dtype = fast_dtype()
    learning, teacher = (on_fast_device(load_model(path, dtype=dtype)) for path in (model, dense))
    vocabulary = vocabulary_of(tokens, len(teacher.get_output_embeddings().weight), seed)
    for one in (learning, teacher):
        cut_head(one, vocabulary)
    return Learner(learning, teacher, masks, dtype)


@torch.no_grad()
def _measure(learner: Learner, tokens: Tensor) -> float:
    return float(learner.divergence(tokens))


def _learn(learner: Learner, tokens: Tensor, settings: RecoverSettings, job: Job) -> list[float]:
    """All steps, or those that an earlier run has left → the divergence of each batch before its step."""
    first = job.done * SAVED_EVERY
    if job.states is not None:
        learner.restore(job.states, first)
        job.states = None
    divergences: list[float] = job.notes.setdefault("divergences", [])
    with Steps("recover", settings.steps, first) as steps:
        for step in range(first, settings.steps):
            batch = tokens[step * settings.batch_size :][: settings.batch_size]
            loss = learner.step(batch, rate_at(step, settings.steps, settings.learning_rate))
            divergences.append(loss)
            if (step + 1) % SAVED_EVERY == 0:
                job.save([tensor.cpu() for tensor in learner.state()])
            steps.step(f"{loss:.4f} nats a token from the dense model")
    return divergences


def _write(source: FloatModel, learner: Learner, masks: Mapping[str, Tensor], folder: Path) -> None:
    """The model folder, with the masks as they were."""
    specs = {name: source.spec(name) for name in source.modules}
    changed = source.changed(lambda name: {source.written(name): specs[name]})
    weights = FolderWriter(source.folder, folder, changed, source.renamed)
    weights.copy_rest()
    for name, spec in specs.items():
        weight = source.folder.weight(name)
        if name in masks:
            learned = learner.weight(name).to("cpu", spec.dtype)
            # a kept weight that would be 0 in the model's dtype stays what it was: the masks stay
            weight = torch.where(nonzero_mask(learned), learned, weight)
        weights.write(source.written(name), source.as_stored(name, weight))

    copy_side_files(source.folder, folder)
    write_config(folder, source.folder.config)
    mask_file(folder, {}, source.folder.masks)
    stamp = source.folder.stamp
    assert stamp is not None  # whoever has masks has one
    write_stamp(folder, stamp.then("recover"))
    write_model_card(folder)
