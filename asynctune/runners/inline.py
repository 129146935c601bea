"""Owns running trials as coroutines on the driver's own event loop; for trainables that await, not compute.

Each trial is a task of its own, so that a cancellation by the caller of `run_trial` is told from what the trial does
to itself (`asyncio.timeout`, a task group that failed). Whoever cancels the caller cancels the trial. A checkpoint
stays with its trial until the store has committed it, so nothing is staged here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import Any, Final

from asynctune.errors import ConfigError, TrialFailedError
from asynctune.protocols import CONTINUE, Decision, TrialReport, TrialTask
from asynctune.runners.failure import failure_of, is_interruption
from asynctune.session import areport, bind
from asynctune.trainable import TrainableKind, kind_of, trainable_name
from asynctune.trial import Checkpoint

__all__ = ["InlineRunner", "drive", "in_use"]

logger = logging.getLogger("asynctune")

_DEFAULT_CAPACITY: Final = 64

Report = Callable[[TrialReport], Awaitable[Decision]]

_PATIENT_REPORTS: Final = 10
_BETWEEN_REPORTS_S: Final = 0.1


class InlineRunner:
    """Runs coroutine functions in the event loop.

    Args:
        max_concurrent: How many trials run at the same time at most.
        stop_grace_s: A trial that was told to stop or to pause, and does not end within so many seconds, is cancelled,
            and counts as stopped or paused, not as failed. One that swallows its cancellation too cannot be ended by
            anybody, and the experiment waits for it; a worker process would be killed.

    Raises:
        ConfigError: A number that makes no sense.
    """

    def __init__(self, max_concurrent: int = _DEFAULT_CAPACITY, *, stop_grace_s: float = 600.0) -> None:
        if not isinstance(max_concurrent, int) or isinstance(max_concurrent, bool) or max_concurrent < 1:
            raise ConfigError(f"max_concurrent must be a whole number from 1, not {max_concurrent!r}")
        if (
            not isinstance(stop_grace_s, int | float)
            or isinstance(stop_grace_s, bool)
            or not stop_grace_s > 0
        ):
            raise ConfigError(f"stop_grace_s must be a number of seconds above 0, not {stop_grace_s!r}")
        self._capacity = max_concurrent
        self._stop_grace_s = stop_grace_s
        self._trainable: Any = None
        self._in_use = False

    @property
    def capacity(self) -> int:
        """How many trials it runs at the same time at most."""
        return self._capacity

    async def start(self, trainable: Any, options: Mapping[str, Any]) -> None:
        """Take the trainable.

        Raises:
            ConfigError: It is no coroutine function, or output is to go to files, which all trials share here; or it
                was started and not closed since.
        """
        if self._in_use:
            raise ConfigError(in_use(self))
        if kind_of(trainable) is not TrainableKind.COROUTINE:
            raise ConfigError(
                f"the inline runner awaits coroutine functions, and {trainable_name(trainable)} is none: it would "
                "block the event loop; leave runner out, or use ProcessRunner()"
            )
        if options.get("log_to_file"):
            raise ConfigError("log_to_file needs a process for each trial; use ProcessRunner()")
        self._trainable = trainable
        self._in_use = True

    async def run_trial(self, task: TrialTask, report: Report) -> None:
        """Run the trial; cancelling the caller cancels it, and waits for its end.

        Raises:
            TrialFailedError: The trial raised, whatever it was: who interrupts the driver at the keyboard sends it a
                signal.
        """
        here = _InlineTrial(task, report, self._stop_grace_s)
        trial = asyncio.create_task(here.run(self._trainable, task), name=f"asynctune-trial-{task.trial_id}")
        cancelled: asyncio.CancelledError | None = None
        while not trial.done():
            try:
                await asyncio.wait([trial])
            except asyncio.CancelledError as error:
                cancelled = error
                here.is_cancelled = True
                trial.cancel()
        ended_by = asyncio.CancelledError() if trial.cancelled() else trial.result()
        if isinstance(ended_by, asyncio.CancelledError):
            if cancelled is None and not here.ignored:
                raise TrialFailedError(
                    "the trial was cancelled by its own doing: something that it awaited had been cancelled"
                ) from ended_by
        elif ended_by is not None and not is_interruption(ended_by):
            raise failure_of(ended_by) from ended_by
        if cancelled is not None:  # also when the trial made nothing of it
            raise cancelled

    async def aclose(self) -> None:
        """Nothing runs any more when the callers of `run_trial` have ended."""
        self._in_use = False


class _InlineTrial:
    """The session of one coroutine trial.

    Attributes:
        ignored: How often it was cancelled because it did not stop as it was told.
        is_cancelled: Nobody wants anything of it any more.
    """

    def __init__(self, task: TrialTask, report: Report, stop_grace_s: float) -> None:
        self.trial_id = task.trial_id
        self.trial_name = task.trial_name
        self.trial_dir = task.trial_dir
        self.checkpoint = task.checkpoint
        self.ignored = 0
        self.is_cancelled = False
        self._refused = 0
        self._report = report
        self._stop_grace_s = stop_grace_s
        self._decision: Decision = CONTINUE
        self._impatience: asyncio.TimerHandle | None = None
        self._running: asyncio.Task[Any] | None = None
        self._has_ended = False

    async def run(self, trainable: Any, task: TrialTask) -> BaseException | None:
        """Run it; what it raised, of which the event loop must see nothing: some of that would end the loop."""
        self._running = asyncio.current_task()
        try:
            with bind(self):
                await drive(trainable, task)
        except BaseException as error:  # noqa: BLE001 - the caller tells failures from ends
            return error
        finally:
            self._has_ended = True
            if self._impatience is not None:
                self._impatience.cancel()
        return None

    def report(self, _metrics: Mapping[str, Any], _checkpoint: Checkpoint | None) -> Decision:
        raise ConfigError(
            "a coroutine reports with `await session.areport(...)`, also from threads that it starts"
        )

    async def areport(self, metrics: Mapping[str, Any], checkpoint: Checkpoint | None) -> Decision:
        if self._has_ended:  # a task that it left behind, perhaps while the same trial runs again
            raise ConfigError(
                f"trial {self.trial_id} has ended, and takes no more reports; await what it starts in it"
            )
        if self.is_cancelled or self._decision != CONTINUE:  # one that swallowed it is told again
            self._refused += 1  # one that does so without end must not keep the loop to itself
            await asyncio.sleep(0 if self._refused < _PATIENT_REPORTS else _BETWEEN_REPORTS_S)
            if self.is_cancelled:
                raise asyncio.CancelledError
            return self._decision
        decision = await self._report(TrialReport(metrics=metrics, checkpoint=checkpoint))
        # Of two reports at the same time one may have been told to stop meanwhile.
        if decision != CONTINUE and self._decision == CONTINUE:
            self._decision = decision
            if not self._has_ended:
                self._wait_for_the_end()
        return self._decision

    def _wait_for_the_end(self) -> None:
        loop = asyncio.get_running_loop()
        self._impatience = loop.call_later(self._stop_grace_s, self._lose_patience)

    def _lose_patience(self) -> None:
        logger.warning(
            "trial %s was told to %s and did not end for %g s: it is cancelled; a trial has to let TrialInterrupted "
            "pass",
            self.trial_id,
            self._decision,
            self._stop_grace_s,
        )
        self.ignored += 1
        assert self._running is not None
        self._running.cancel()
        self._wait_for_the_end()


def in_use(runner: object) -> str:
    """Why a runner cannot be started."""
    return (
        f"this {type(runner).__name__} is in use: it was started, and not closed since; make a runner for each Tuner "
        "that runs at the same time"
    )


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
