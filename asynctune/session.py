"""Owns what code inside a trial talks to: it reports results and checkpoints, and asks for the one to start from.

The functions find the trial that they are called from: by context variable in coroutines, and by the process in
a worker, so that threads which a trial starts there may report too. What a report does is the runner's business,
which binds a `TrialContext`.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final, Protocol
from weakref import WeakSet

from asynctune.errors import ConfigError
from asynctune.protocols import CONTINUE, Decision
from asynctune.trial import Checkpoint

__all__ = [
    "TrialContext",
    "TrialInterrupted",
    "areport",
    "bind",
    "get_checkpoint",
    "get_trial_dir",
    "get_trial_id",
    "get_trial_name",
    "report",
]


class TrialInterrupted(BaseException):
    """Raised by a report inside a trial that is to stop or to pause; let it pass.

    It is no `Exception`, so that a trial's own `except Exception` does not swallow it.

    Attributes:
        decision: `"STOP"` or `"PAUSE"`.
    """

    def __init__(self, decision: Decision) -> None:
        super().__init__(decision)
        self.decision: Final = decision


class TrialContext(Protocol):
    """What a runner offers to one trial."""

    trial_id: str
    trial_name: str
    trial_dir: str
    checkpoint: Checkpoint | None

    def report(self, metrics: Mapping[str, Any], checkpoint: Checkpoint | None, /) -> Decision:
        """Deliver a result and wait for the answer; from any thread but that of a running event loop."""
        ...

    async def areport(self, metrics: Mapping[str, Any], checkpoint: Checkpoint | None, /) -> Decision:
        """Likewise, awaited in a coroutine."""
        ...


_in_task: ContextVar[TrialContext] = ContextVar("asynctune_trial")
# The only one of a process, for threads of a trial's own, which inherit no context variables; and the threads that
# were there before it.
_in_process: list[tuple[TrialContext, WeakSet[threading.Thread]]] = []


@contextmanager
def bind(context: TrialContext, *, whole_process: bool = False) -> Iterator[None]:
    """Make `context` the session's trial within the block; for runners.

    Args:
        context: The trial.
        whole_process: It is the only one in this process: threads of the trial's own find it too.
    """
    token = _in_task.set(context)
    if whole_process:
        here = threading.current_thread()
        _in_process.append((context, WeakSet(each for each in threading.enumerate() if each is not here)))
    try:
        yield
    finally:
        _in_task.reset(token)
        if whole_process:
            _in_process.pop()


def report(metrics: Mapping[str, Any], checkpoint: Checkpoint | None = None) -> None:
    """Report a result of this trial, and a checkpoint with it.

    Returns when the checkpoint is committed, so its directory may be used again; without one, when the driver has
    taken the result.

    Args:
        metrics: Names with numbers and other msgpack values.
        checkpoint: `Checkpoint.from_directory(...)` or `Checkpoint.from_dict(...)`.

    Raises:
        TrialInterrupted: The trial is to stop or to pause: let it pass.
        ConfigError: Not inside a trial, in a coroutine, or something that cannot be stored.
    """
    context = _context("report")
    _check(metrics, checkpoint)
    if _in_running_loop():
        msg = "session.report() would block the event loop; in a coroutine use `await session.areport(...)`"
        raise ConfigError(msg)
    _obey(context.report(metrics, checkpoint))


async def areport(metrics: Mapping[str, Any], checkpoint: Checkpoint | None = None) -> None:
    """`report` for coroutines: `await session.areport(metrics)`. Arguments and errors as there."""
    context = _context("areport")
    _check(metrics, checkpoint)
    _obey(await context.areport(metrics, checkpoint))


def get_checkpoint() -> Checkpoint | None:
    """The checkpoint to go on from, a private copy with its files at `path`; `None` in a trial that starts afresh."""
    return _context("get_checkpoint").checkpoint


def get_trial_id() -> str:
    """Id of this trial."""
    return _context("get_trial_id").trial_id


def get_trial_name() -> str:
    """Name of this trial, which is that of its directory."""
    return _context("get_trial_name").trial_name


def get_trial_dir() -> str:
    """This trial's directory; what a trial writes there itself is not versioned with its checkpoints."""
    return _context("get_trial_dir").trial_dir


def _context(name: str) -> TrialContext:
    context = _in_task.get(None)
    if context is not None:
        return context
    if not _in_process:
        msg = f"session.{name}() was called outside of a trial; only a trainable that a Tuner runs has a session"
        raise ConfigError(msg)
    context, before = _in_process[-1]
    if threading.current_thread() in before:
        msg = (
            f"session.{name}() was called in a thread that an earlier trial started in this process, so it is unknown "
            "for which trial; start threads in the trial that they report for"
        )
        raise ConfigError(msg)
    return context


def _check(metrics: Any, checkpoint: Any) -> None:
    if not isinstance(metrics, Mapping):
        msg = f"a report takes a mapping of metric names to values, not {type(metrics).__name__}"
        raise ConfigError(msg)
    if checkpoint is not None and not isinstance(checkpoint, Checkpoint):
        kind = type(checkpoint).__name__
        msg = f"checkpoint must be a Checkpoint, not {kind}; use Checkpoint.from_directory(...) or from_dict(...)"
        raise ConfigError(msg)


def _in_running_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _obey(decision: Decision) -> None:
    if decision != CONTINUE:
        raise TrialInterrupted(decision)
