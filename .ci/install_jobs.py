"""Commands that run for minutes: their logs, a second try after a network error, one compile behind the others."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

from install_common import ROOT, InstallError, say

NETWORK_ERROR = re.compile(
    r"Read timed out|ConnectTimeout|Connection (reset|aborted|refused|broken)|RemoteDisconnected|IncompleteRead|"
    r"NewConnectionError|Temporary failure in name resolution|Max retries exceeded|ProtocolError|50[0234] Server Error|"
    # uv's
    r"error sending request|error decoding response body|operation timed out|HTTP status server error"
)


class Job:
    """A command in its own process group, its output in a log. A network error starts it once more."""

    def __init__(self, title: str, command: list[str], log: Path, env: dict[str, str] | None = None):
        self.title, self.command, self.log, self.env = title, command, log, env
        self.retried = False
        self.started, self.seconds = time.monotonic(), 0.0
        self._start()

    def _start(self) -> None:
        with self.log.open("a") as out:
            out.write(f"\n$ {shlex.join(self.command)}\n")
            out.flush()
            self.offset = out.tell()
            self.process = subprocess.Popen(
                self.command,
                cwd=ROOT,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        with self.log.open(errors="replace") as file:
            file.seek(self.offset)
            return file.read()

    def done(self) -> bool:
        """Whether it ended well. Raises InstallError, after showing the end of its log, when it ended badly."""
        code = self.process.poll()
        if code is None:
            return False
        self.seconds = self.seconds or time.monotonic() - self.started
        if code == 0:
            return True
        output = self.output
        if not self.retried and NETWORK_ERROR.search(output):
            say(f"{self.title}: network error, trying once more")
            self.retried, self.seconds = True, 0.0
            self._start()
            return False
        print("\n".join(f"  | {line}" for line in output.splitlines()[-25:]), file=sys.stderr)
        raise InstallError(f"{self.title} failed with exit code {code}: the whole log is {self.log.relative_to(ROOT)}")

    def status(self) -> str:
        """Its last line of interest."""
        telling = ("Collecting", "Downloading", "Installing", "Building", "[")
        lines = [line.strip() for line in self.output.splitlines()]
        last = next((line for line in reversed(lines) if line.startswith(telling)), "started")
        step = re.match(r"\[\d+/\d+\]", last)  # ninja's
        return f"{self.title}: {step[0] if step else last[:100]}"

    def kill(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
            self.process.wait()


class Installer:
    """Runs jobs one after the other, while the compile runs behind them. At the end of `with`, none is left running."""

    def __init__(self, log: Path, env: dict[str, str] | None = None) -> None:
        self.log, self.env = log, env
        self.jobs: list[Job] = []
        self.start = time.monotonic()

    def run(self, title: str, command: list[str]) -> None:
        say(title)
        self.jobs.append(Job(title, command, self.log, self.env))
        self.wait(self.jobs[-1])

    def run_behind(self, title: str, command: list[str], log: Path, env: dict[str, str]) -> Job:
        say(f"{title} (in the background, log: {log.relative_to(ROOT)})")
        self.jobs.append(Job(title, command, log, env))
        return self.jobs[-1]

    def wait(self, job: Job) -> None:
        """Until the job has ended. A failure of any job, the one behind too, is told at once."""
        spoken = time.monotonic()
        while job in (running := [each for each in self.jobs if not each.done()]):
            time.sleep(0.2)
            if time.monotonic() - spoken > 30:
                spoken = time.monotonic()
                for busy in running:
                    say(f"  {spoken - self.start:4.0f} s  {busy.status()}")
        say(f"  {job.title}: done in {job.seconds:.0f} s")

    def __enter__(self) -> Installer:
        return self

    def __exit__(self, *error: object) -> None:
        for job in self.jobs:
            job.kill()
