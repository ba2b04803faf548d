"""The `sqft` command: one file a verb, imported when it is used."""

from __future__ import annotations

import errno
import importlib
import os
import sys

import click

from sqft_plugins._version import VERSION
from sqft_plugins.errors import SQFTError, nearest

VERBS = [
    "prune",
    "train",
    "search",
    "extract",
    "merge",
    "quantize",
    "compact",
    "export",
    "eval",
    "inspect",
    "report",
    "plan",
    "run",
    "schema",
    "demo",
    "doctor",
    "plugins",
]


class Verbs(click.Group):
    """Imports `sqft_plugins.cli.VERB` only when that verb is asked for; plug-ins add theirs behind them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        self._load_plugins()
        return VERBS + sorted(super().list_commands(ctx))

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name in VERBS:
            return importlib.import_module(f"sqft_plugins.cli.{name}").command
        self._load_plugins()
        return super().get_command(ctx, name)

    def resolve_command(self, ctx: click.Context, args: list[str]):
        if args and self.get_command(ctx, args[0]) is None:
            raise click.UsageError(f"verb {args[0]!r} is unknown: {nearest(args[0], self.list_commands(ctx))}")
        return super().resolve_command(ctx, args)

    def _load_plugins(self) -> None:
        if not getattr(self, "_loaded", False):
            self._loaded = True
            from sqft_plugins.plugins import get_manager

            get_manager().hook.sqft_commands(group=self)


@click.command(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(VERSION, prog_name="sqft")
def cli() -> None:
    """Prune and quantize a language model, tune elastic adapters, merge without losing a zero, run it anywhere.

    \b
    The whole way on a real model:   sqft demo
    Your own, as one recipe:         sqft run RECIPE.yaml
    Step by step:                    sqft prune → train → extract → merge → quantize → export gguf
    """


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line. Whatever a user can cause is one line on stderr and exit code 2."""
    if not sys.stderr.isatty():
        os.environ.setdefault(
            "TQDM_DISABLE", "1"
        )  # the bars of other libraries are noise in a log; ours are lines there
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
