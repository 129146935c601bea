"""What a process of these tests makes of itself: another machine, quick to wait and to give up, with small parts."""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import asynctune.state.generations
from asynctune.state.mirror import planning
from asynctune.state.mirror.journal_runs import PIECE_BYTES, JournalRuns
from asynctune.storage.retry import RetryPolicy
from asynctune.storage.s3_values import RULES
from asynctune.storage.transfer import Transfer
from asynctune.store import reconcile

__all__ = ["Settings", "become", "say_warnings"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Of one process.

    Attributes:
        machine: Its host's name.
        quiet_s: How long it waits for quiet.
        part_bytes: Larger files are sent in parts of this size.
        journal_bytes: After so much a snapshot is written.
        piece_bytes: So much of the journal is mirrored at a time, and four times as much is merged.
        request_s: What a request may take.
        total_s: How long one is tried again.
        drain_s: How long a Tuner that got a signal waits for the bucket.
    """

    machine: str = "here"
    quiet_s: float = 1.0
    part_bytes: int = 16 << 20
    journal_bytes: int = 1 << 20
    piece_bytes: int = PIECE_BYTES
    request_s: float = 10.0
    total_s: float = 3.0
    drain_s: float = 30.0

    def text(self) -> str:
        """As an argument of a program."""
        return json.dumps(asdict(self))

    @classmethod
    def of(cls, text: str) -> Settings:
        """Take back `text`."""
        return cls(**json.loads(text))


def become(settings: Settings) -> None:
    """Change this process for good."""
    socket.gethostname = lambda: settings.machine
    reconcile.QUIET_S = settings.quiet_s
    asynctune.state.generations._MIN_JOURNAL_BYTES = settings.journal_bytes  # type: ignore[misc]
    JournalRuns.read.__defaults__ = (settings.piece_bytes,)
    planning.MAX_MERGED_BYTES = 4 * settings.piece_bytes  # type: ignore[misc]
    defaults: Any = Transfer.__init__.__kwdefaults__
    defaults.update(part_bytes=settings.part_bytes, put_bytes=settings.part_bytes)
    object.__setattr__(RULES, "min_part_bytes", 1024)  # frozen, and meant for the real S3
    defaults = RetryPolicy.__init__.__kwdefaults__
    defaults.update(request_s=settings.request_s, total_s=settings.total_s, cap_s=0.5)


def say_warnings(tell: Callable[..., None]) -> None:
    """Tell what asynctune warns of, as `tell("said", text=...)`."""

    class Telling(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.process == os.getpid():
                tell("said", text=record.getMessage())

    logger = logging.getLogger("asynctune")
    logger.addHandler(Telling())
    logger.propagate = False
