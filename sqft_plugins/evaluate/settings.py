"""The options of `sqft eval` that a recipe has, too."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from sqft_plugins.settings import Settings, Written


class EvalSettings(Settings):
    task: Annotated[str | list[str], "name or file", Written(metavar="NAME")] = Field(
        default_factory=list,
        description="arc-easy, arc-challenge, openbookqa, boolq, gsm8k, svamp, mawps, one of a plug-in (`sqft "
        "plugins`), lm-eval:NAME of lm-evaluation-harness' own, or a task file. Repeatable. Default: word-problems.",
    )
    data: Annotated[str | None, "file", Written(metavar="FILE")] = Field(
        default=None, description="Score a JSONL of prompt and completion instead of a task."
    )
    data_dir: Annotated[str | None, "file", Written(metavar="DIR")] = Field(
        default=None,
        description="Local data of the tasks, a folder each (arc_easy, …). Default: $SQFT_DATA_DIR, else the hub.",
    )
    limit: int | None = Field(default=None, ge=1, description="Only the first questions.")
    shots: int | None = Field(default=None, ge=0, description="Examples before each question. Default: the task's.")
    seed: int = Field(default=1234, description="Chooses the examples.")
    text: Annotated[str | None, "file", Written(metavar="FILE")] = Field(
        default=None, description="Text for the perplexity. Default: held-out text that Python ships."
    )
    perplexity: bool = Field(default=True, description="Also the perplexity of a text. Default: on.")
    dtype: Annotated[str | None, "dtype"] = Field(
        default=None, description="fast (for this machine), auto (as stored), float32, … Default: fast."
    )
    accelerate: bool = Field(
        default=False,
        description="Run INT4 layers from their packed form: less memory and mostly faster, the same up to rounding.",
    )
    threads: int | None = Field(default=None, ge=1, description="Threads of llama.cpp. Default: all.")
    batch_size: int = Field(default=64, ge=1, description="Prompts at a time.")

    @property
    def tasks(self) -> list[str]:
        """Word problems where neither a task nor data are given."""
        named = [self.task] if isinstance(self.task, str) else list(dict.fromkeys(self.task))
        return named or ([] if self.data else ["word-problems"])

    def runtime(self) -> dict[str, Any]:
        """What `open_session` is to be given; a runtime refuses the options that it does not have."""
        asked = {"dtype": self.dtype, "threads": self.threads, "accelerate": self.accelerate}
        return {name: value for name, value in asked.items() if value is not None and value is not False}

    def questions(self) -> dict[str, Any]:
        """The arguments of `evaluate_model` that choose the questions."""
        return self.model_dump(include={"data_dir", "limit", "shots", "seed"})

    def prose(self, argument: str) -> str | None:
        """The text of the perplexity, None where it is not asked for. argument: what the user wrote the file behind.
        Raises SQFTError."""
        from sqft_plugins.compress.calibration import builtin_text, read_texts

        if not self.perplexity:
            return None
        return "\n\n".join(read_texts(self.text, argument) if self.text else builtin_text("heldout"))
