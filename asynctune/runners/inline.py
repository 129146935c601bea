"""Owns running trials as coroutines on the driver's own event loop; for trainables that await, not compute.

A trial is the task that awaits `run_trial`; whoever cancels that cancels the trial. A checkpoint stays with
its trial until the store has committed it, so nothing is staged here.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import Any, Final

from asynctune.errors import ConfigError
from asynctune.protocols import CONTINUE, Decision, TrialReport, TrialTask
from asynctune.runners.failure import failure_of
from asynctune.session import TrialInterrupted, areport, bind
from asynctune.trainable import TrainableKind, kind_of, trainable_name
from asynctune.trial import Checkpoint

__all__ = ["InlineRunner", "drive"]

_DEFAULT_CAPACITY: Final = 64


class InlineRunner:
    """Runs coroutine functions in the event loop.

    Args:
        max_concurrent: How many trials run at the same time at most.
    """

    def __init__(self, max_concurrent: int = _DEFAULT_CAPACITY) -> None:
        if not isinstance(max_concurrent, int) or isinstance(max_concurrent, bool) or max_concurrent < 1:
            raise ConfigError(f"max_concurrent must be a whole number from 1, not {max_concurrent!r}")
        self._capacity = max_concurrent
        self._trainable: Any = None

    @property
    def capacity(self) -> int:
        """How many trials it runs at the same time at most."""
        return self._capacity

    async def start(self, trainable: Any, options: Mapping[str, Any]) -> None:
        """Take the trainable.

        Raises:
            ConfigError: It is no coroutine function, or output is to go to files, which all trials share here.
        """
        if kind_of(trainable) is not TrainableKind.COROUTINE:
            raise ConfigError(
                f"the inline runner awaits coroutine functions, and {trainable_name(trainable)} is none: it would "
                "block the event loop; leave runner out, or use ProcessRunner()"
            )
        if options.get("log_to_file"):
            raise ConfigError("log_to_file needs a process for each trial; use ProcessRunner()")
        self._trainable = trainable

    async def run_trial(self, task: TrialTask, report: Callable[[TrialReport], Awaitable[Decision]]) -> None:
        """Run the trial in the calling task.

        Raises:
            TrialFailedError: The trial raised.
        """
        context = _InlineTrial(task, report)
        with bind(context):
            try:
                await drive(self._trainable, task)
            except TrialInterrupted:
                pass
            except Exception as error:
                raise failure_of(error) from error

    async def aclose(self) -> None:
        """Nothing runs any more when the callers of `run_trial` have ended."""


class _InlineTrial:
    """The session of one coroutine trial."""

    def __init__(self, task: TrialTask, report: Callable[[TrialReport], Awaitable[Decision]]) -> None:
        self.trial_id = task.trial_id
        self.trial_name = task.trial_name
        self.trial_dir = task.trial_dir
        self.checkpoint = task.checkpoint
        self._report = report
        self._decision: Decision = CONTINUE

    def report(self, _metrics: Mapping[str, Any], _checkpoint: Checkpoint | None) -> Decision:
        raise ConfigError(
            "a coroutine reports with `await session.areport(...)`, also from threads that it starts"
        )

    async def areport(self, metrics: Mapping[str, Any], checkpoint: Checkpoint | None) -> Decision:
        if self._decision == CONTINUE:  # one that reports again after it was told to stop is told so again
            self._decision = await self._report(TrialReport(metrics=metrics, checkpoint=checkpoint))
        return self._decision


async def drive(trainable: Any, task: TrialTask) -> None:
    """Run it; what an asynchronous generator yields, and the dict that a coroutine returns, are reports too."""
    made = trainable(dict(task.config))
    if isinstance(made, AsyncGenerator):
        try:
            async for metrics in made:
                await areport(metrics)
        finally:
            await made.aclose()
    else:
        metrics = await made
        if metrics is not None:
            await areport(metrics)
