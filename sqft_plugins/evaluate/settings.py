"""The options of `sqft eval` that a recipe has, too."""

from __future__ import annotations

from typing import Any

from sqft_plugins.settings import Settings, option


class EvalSettings(Settings):
    task: str | list[str] = option(
        list,
        "arc-easy, arc-challenge, openbookqa, boolq, gsm8k, svamp, mawps, one of a plug-in (`sqft "
        "plugins`), lm-eval:NAME of lm-evaluation-harness' own, or a task file. Repeatable. Default: word-problems.",
        "name or file",
        metavar="NAME",
    )
    data: str | None = option(None, "Score a JSONL of prompt and completion instead of a task.", "file", metavar="FILE")
    data_dir: str | None = option(
        None,
        "Local data of the tasks, a folder each (arc_easy, …). Default: $SQFT_DATA_DIR, else the hub.",
        "file",
        metavar="DIR",
    )
    limit: int | None = option(None, "Only the first questions.", ge=1)
    shots: int | None = option(None, "Examples before each question. Default: the task's.", ge=0)
    seed: int = option(1234, "Chooses the examples.")
    text: str | None = option(
        None, "Text for the perplexity. Default: held-out text that Python ships.", "file", metavar="FILE"
    )
    perplexity: bool = option(True, "Also the perplexity of a text. Default: on.")
    dtype: str | None = option(None, "fast (for this machine), auto (as stored), float32, … Default: fast.", "dtype")
    accelerate: bool = option(
        False, "Run INT4 layers from their packed form: less memory and mostly faster, the same up to rounding."
    )
    threads: int | None = option(None, "Threads of llama.cpp. Default: all.", ge=1)
    batch_size: int = option(64, "Prompts at a time.", ge=1)

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
