"""The `sqft` command: one file a verb, imported when it is used."""

from __future__ import annotations

import errno
import os
import sys
from importlib import import_module
from typing import Any

import click

from sqft_plugins._version import VERSION
from sqft_plugins.cli.common import examples
from sqft_plugins.errors import SQFTError, nearest

SECTIONS = {
    "make": (
        "Make a model",
        ["prune", "train", "search", "extract", "merge", "quantize", "compact", "export", "run", "demo"],
    ),
    "look": ("Look at one", ["plan", "eval", "inspect", "report"]),
    "run": ("Run one", []),
    "more": ("More", ["doctor", "plugins", "schema"]),
}
"""Section of `sqft --help` → its title and our verbs in it; plug-ins add theirs behind them."""
VERBS = [verb for _, verbs in SECTIONS.values() for verb in verbs]


class Verbs(click.Group):
    """Imports `sqft_plugins.cli.VERB` only when that verb is asked for; plug-ins add theirs with `add_command`."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._added: dict[str, list[str]] = {}
        self._asked = False

    def add_command(self, cmd: click.Command, name: str | None = None, section: str = "more") -> None:
        """Adds a verb of a plug-in. section: where `sqft --help` lists it, a key of SECTIONS."""
        if section not in SECTIONS:
            raise ValueError(f"section {section!r} is unknown: {nearest(section, SECTIONS)}")
        super().add_command(cmd, name)
        self._added.setdefault(section, []).append(name or cmd.name or "")

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [verb for _, verbs in self._sections() for verb in verbs]

    def get_command(self, ctx: click.Context, name: str) -> click.Command:
        if name in VERBS:
            return import_module(f"sqft_plugins.cli.{name}").command
        self._ask_plugins()
        found = super().get_command(ctx, name)
        if found is None:
            raise click.UsageError(f"verb {name!r} is unknown: {nearest(name, self.list_commands(ctx))}")
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The verbs by section, a line each."""
        longest = max(map(len, self.list_commands(ctx)))
        for title, verbs in self._sections():
            limit = formatter.width - 6 - longest
            rows = [(verb.ljust(longest), self.get_command(ctx, verb).get_short_help_str(limit)) for verb in verbs]
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)

    def _sections(self) -> list[tuple[str, list[str]]]:
        self._ask_plugins()
        return [(title, verbs + sorted(self._added.get(key, []))) for key, (title, verbs) in SECTIONS.items()]

    def _ask_plugins(self) -> None:
        if not self._asked:
            self._asked = True
            from sqft_plugins.plugins import get_manager

            get_manager().hook.sqft_commands(group=self)


@click.command(
    cls=Verbs,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    epilog=examples(
        "sqft demo                                                       # the whole way on a real model",
        "sqft run my.yaml --out runs/tickets                             # your own, as one recipe",
        "sqft prune models/gemma --sparsity 0.5 --out models/gemma-50    # or step by step",
        "sqft prune --help                                               # the options of a verb, with examples",
    ),
)
@click.version_option(VERSION, prog_name="sqft")
def cli() -> None:
    """Prune and quantize a language model, tune elastic adapters, merge without losing a zero, run it anywhere.

    Step by step: prune, train, extract or merge, quantize, export.
    """


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line. Whatever a user can cause is one line on stderr and exit code 2."""
    if not sys.stderr.isatty():  # the bars of other libraries are noise in a log; ours are lines there
        os.environ.setdefault("TQDM_DISABLE", "1")

    try:
        code = cli.main(arguments, standalone_mode=False)
    except (KeyboardInterrupt, click.Abort):
        _fail("interrupted: no unfinished output stays; run the same command to go on after what is finished")
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message(), file=sys.stderr)
        sys.exit(2)
    except click.ClickException as error:
        _fail(" ".join(error.format_message().split()))
    except SQFTError as error:
        _fail(str(error))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT):
            raise
        _fail(f"{error.filename or 'output'}: {error.strerror}: free some space or choose another path")
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str) -> None:
    print(f"sqft: {message}", file=sys.stderr)
    sys.exit(2)
