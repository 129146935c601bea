"""Starts a program, kills it at a chosen moment with SIGKILL, and gives back what it had printed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = ["ROOT", "Ended", "Moment", "run_killed", "run_whole"]

ROOT: Final = Path(__file__).parent.parent


@dataclass(frozen=True)
class Moment:
    """When to kill: so many seconds after so many lines of output."""

    lines: int
    seconds: float

    @classmethod
    def draw(cls, rng: random.Random, *, lines: int, seconds: float) -> Moment:
        """A moment up to `lines` lines and `seconds` seconds later."""
        return cls(rng.randint(0, lines), rng.uniform(0, seconds))


@dataclass(frozen=True)
class Ended:
    """How a program ended: its exit code (negative: the signal that killed it) and its output."""

    code: int
    output: str

    @property
    def lines(self) -> list[str]:
        return self.output.splitlines()


def run_killed(arguments: Sequence[str], moment: Moment, signal_number: int = signal.SIGKILL) -> Ended:
    """Run Python with `arguments`, and send it a signal at `moment` unless it has ended by then."""
    with _start(arguments) as process:
        assert process.stdout is not None
        seen: list[str] = []
        while len(seen) < moment.lines and (line := process.stdout.readline()):
            seen.append(line)
        time.sleep(moment.seconds)
        process.send_signal(signal_number)
        seen.append(process.stdout.read())
    return Ended(process.returncode, "".join(seen))


def run_whole(arguments: Sequence[str]) -> Ended:
    """Run Python with `arguments` to its end."""
    with _start(arguments) as process:
        output, _ = process.communicate()
    return Ended(process.returncode, output)


def _start(arguments: Sequence[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "COLUMNS": "110"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
