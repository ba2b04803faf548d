"""The `sqft` command: one file a verb, imported when it is used."""

from __future__ import annotations

import errno
import os
import sys
from contextlib import suppress
from importlib import import_module
from typing import Any, NoReturn

import click

from sqft_plugins._version import VERSION
from sqft_plugins.cli.common import examples
from sqft_plugins.cli.ending import Ended, die_of, ending_in_order
from sqft_plugins.errors import SQFTError, nearest, system_error

SECTIONS = {
    "make": (
        "Make a model",
        ["prune", "recover", "train", "search", "extract", "merge", "quantize", "compact", "export", "run", "demo"],
    ),
    "look": ("Look at one", ["plan", "eval", "inspect", "report"]),
    "run": ("Run one", []),
    "more": ("More", ["doctor", "plugins", "schema"]),
}
"""Section of `sqft --help` → its title and our verbs in it; plug-ins add theirs behind them."""
VERBS = [verb for _, verbs in SECTIONS.values() for verb in verbs]


class UnreadError(Exception):
    """Nobody reads stdout any more."""


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

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:  # click would end with code 1, which some verbs have for what they found
            raise UnreadError from error

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


REMEDIES = {
    **dict.fromkeys(
        (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS),
        "free some space or choose another path",
    ),
    errno.EIO: "the device fails: look after it, and choose another path",
    **dict.fromkeys((errno.ENAMETOOLONG, errno.ELOOP), "choose another path"),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "close other programs, or raise the limit (ulimit -n)"),
}
"""What the system refuses for reasons of the machine, not of ours → what a user can do."""
UNREAD = 128 + 13
"""The exit code of any program whose reader has gone, such as head: that of SIGPIPE, which Windows does not name."""
KEPT = "no unfinished output stays; run the same command to go on after what is finished"


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line. Whatever a user can cause is one line on stderr and exit code 2; what nobody foresaw is
    one line that names a report, and exit code 70. A signal ends it as it ends any program, after the cleaning up."""
    if not sys.stderr.isatty():  # the bars of other libraries are noise in a log; ours are lines there
        os.environ.setdefault("TQDM_DISABLE", "1")

    try:
        with ending_in_order():
            code = cli.main(arguments, standalone_mode=False)
            sys.stdout.flush()  # here, a reader that has gone is seen; at the end of Python it would be a traceback
    except (KeyboardInterrupt, click.Abort):
        _fail(f"interrupted: {KEPT}")
    except Ended as ended:
        with suppress(OSError):  # of a closed terminal
            print(f"sqft: ended by {ended}: {KEPT}", file=sys.stderr, flush=True)
        die_of(ended.number)
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message(), file=sys.stderr)
        sys.exit(2)
    except click.ClickException as error:
        _fail(" ".join(error.format_message().split()))
    except SQFTError as error:
        _fail(str(error))
    except (BrokenPipeError, UnreadError):
        _drop_output()
        sys.exit(UNREAD)
    except MemoryError:
        _fail("there is not enough memory: close other programs, or make the work smaller (sqft plan tells its needs)")
    except Exception as error:
        number = system_error(error)
        if number in REMEDIES:
            place = getattr(error, "filename", None) or "output"
            _fail(f"{place}: {os.strerror(number)}: {REMEDIES[number]}")
        _fail_unforeseen(error, arguments)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, code: int = 2) -> NoReturn:
    try:
        print(f"sqft: {' '.join(map(str.strip, message.splitlines()))}", file=sys.stderr, flush=True)
    except OSError:  # nobody is there to read it; the exit code still tells
        _drop_output()
    sys.exit(code)


def _drop_output() -> None:
    from sqft_plugins.progress import drop  # imports rich

    drop(sys.stdout, sys.stderr)


def _fail_unforeseen(error: Exception, arguments: list[str] | None) -> NoReturn:
    from sqft_plugins.cli.failure import FAILED, report_failure

    _fail(report_failure(error, sys.argv[1:] if arguments is None else arguments), FAILED)
