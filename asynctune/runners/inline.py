"""Owns running trials as coroutines on the driver's own event loop; for trainables that await, not compute.

A trial is the task that awaits `run_trial`; whoever cancels that cancels the trial. A checkpoint stays with
its trial until the store has committed it, so nothing is staged here.
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

__all__ = ["InlineRunner", "drive"]

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

    async def run_trial(self, task: TrialTask, report: Report) -> None:
        """Run the trial in the calling task.

        Raises:
            TrialFailedError: The trial raised. `SystemExit` is that too; `KeyboardInterrupt` is not, it passes.
        """
        here = _InlineTrial(task, report, self._stop_grace_s)
        try:
            with bind(here):
                await drive(self._trainable, task)
        except (KeyboardInterrupt, GeneratorExit):
            raise
        except asyncio.CancelledError as error:
            if here.is_cancelled_from_outside():
                raise
            if not here.ignored:
                raise TrialFailedError(
                    "the trial was cancelled by its own doing: something that it awaited had been cancelled"
                ) from error
        except BaseException as error:
            if not is_interruption(error):
                raise failure_of(error) from error
        finally:
            here.over()

    async def aclose(self) -> None:
        """Nothing runs any more when the callers of `run_trial` have ended."""


class _InlineTrial:
    """The session of one coroutine trial.

    Attributes:
        ignored: How often it was cancelled because it did not stop as it was told.
    """

    def __init__(self, task: TrialTask, report: Report, stop_grace_s: float) -> None:
        self.trial_id = task.trial_id
        self.trial_name = task.trial_name
        self.trial_dir = task.trial_dir
        self.checkpoint = task.checkpoint
        self.ignored = 0
        self._told = 0
        self._report = report
        self._stop_grace_s = stop_grace_s
        self._decision: Decision = CONTINUE
        self._impatience: asyncio.TimerHandle | None = None
        running = asyncio.current_task()
        assert running is not None
        self._running = running
        self._cancels = running.cancelling()

    def report(self, _metrics: Mapping[str, Any], _checkpoint: Checkpoint | None) -> Decision:
        raise ConfigError(
            "a coroutine reports with `await session.areport(...)`, also from threads that it starts"
        )

    async def areport(self, metrics: Mapping[str, Any], checkpoint: Checkpoint | None) -> Decision:
        if self._decision != CONTINUE:  # one that reports again after it was told to stop is told so again
            self._told += 1  # one that does so without end must not keep the loop to itself
            await asyncio.sleep(0 if self._told < _PATIENT_REPORTS else _BETWEEN_REPORTS_S)
            return self._decision
        decision = await self._report(TrialReport(metrics=metrics, checkpoint=checkpoint))
        # Of two reports at the same time one may have been told to stop meanwhile.
        if decision != CONTINUE and self._decision == CONTINUE:
            self._decision = decision
            self._wait_for_the_end()
        return self._decision

    def is_cancelled_from_outside(self) -> bool:
        return self._running.cancelling() > self._cancels + self.ignored

    def over(self) -> None:
        if self._impatience is not None:
            self._impatience.cancel()
        for _ in range(self.ignored):
            self._running.uncancel()  # nobody outside wanted it

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
        self._running.cancel()
        self._wait_for_the_end()


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
