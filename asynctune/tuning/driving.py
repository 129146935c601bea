"""Owns the life of trials in a Tuner: which one starts when, what its results lead to, and how it ends.

Everything that happens goes to the store first. One task runs each trial; all belong to one TaskGroup. The searcher
and the scheduler are called on the event loop, one call at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from asynctune.config import FailureConfig
from asynctune.errors import AsynctuneError, CheckpointNotFoundError, ConfigError, TrialFailedError
from asynctune.protocols import CONTINUE, PAUSE, STOP, Decision, TrialReport, TrialRunner
from asynctune.store.store import ExperimentStore
from asynctune.trial import Checkpoint, Trial, TrialStatus
from asynctune.tuning.callbacks import Callbacks
from asynctune.tuning.checkpointing import commit_checkpoint, task_of
from asynctune.tuning.deciding import Deciding
from asynctune.tuning.endings import AllStopped, Interrupted, first_of
from asynctune.tuning.late import LateCheckpoints, is_late
from asynctune.tuning.stopping import StopRule
from asynctune.tuning.supply import Supply
from asynctune.tuning.waiting import DECIDED, Rests, decided

__all__ = ["Driver"]

logger = logging.getLogger("asynctune")

_STOP_ALL_GRACE_S: Final = 60.0


class Watching(Protocol):
    """Who shows what happens."""

    def changed(self, trial_id: str) -> None:
        """Something about this trial is new."""
        ...


@dataclass(slots=True)
class _Run:
    """One start of a trial, while it runs."""

    decision: Decision = CONTINUE
    decided: tuple[Decision, int] | None = None  # before, of one that did not get as far
    is_over: bool = False  # it reports no more; what it has reported may still come
    has_ended: bool = False  # and its end is being told
    is_cancelled: bool = False
    has_reported: bool = False
    waits: bool = False  # to be started again
    begins_after: int | None = None  # the iteration, of one that was started before
    task: asyncio.Task[None] | None = None


class Driver:
    """Runs one experiment to its end.

    Args:
        store: Open for writing.
        runner: Started.
        deciding: Searcher and scheduler.
        stop: When a trial has done enough.
        failures: What a failed trial means.
        callbacks: Told of everything.
        limit: How many trials run at the same time at most.
        trial_prefix: What names of trials start with.
        watching: Who shows it.
        time_budget_s: When all trials are ended, in seconds from the start of `run`; `None`: never.
    """

    def __init__(
        self,
        store: ExperimentStore,
        runner: TrialRunner,
        deciding: Deciding,
        *,
        stop: StopRule,
        failures: FailureConfig,
        callbacks: Callbacks,
        limit: int,
        trial_prefix: str,
        watching: Watching,
        time_budget_s: float | None = None,
    ) -> None:
        self._store = store
        self._runner = runner
        self._deciding = deciding
        self._stop = stop
        self._failures = failures
        self._callbacks = callbacks
        self._limit = limit
        self._watching = watching
        self._time_budget_s = time_budget_s
        self._supply = Supply(store, deciding, trial_prefix)
        self._late = LateCheckpoints(store, self._committed, self._end)
        self._tasks: asyncio.TaskGroup | None = None
        self._rests = Rests()
        self._running: dict[str, _Run] = {}
        self._changed = asyncio.Event()
        self._ending: BaseException | None = None  # why nothing more is started
        self._hurries = False
        self._over = asyncio.Event()
        self._told_of_loss = False

    def interrupt(self) -> None:
        """End all trials soon; `run` raises `Interrupted` then, unless it was at its end already."""
        self._hurries = True
        self._changed.set()
        self._end(Interrupted())

    async def run(self) -> bool:
        """Run until every trial has ended; whether nothing is left to be done.

        `fail_fast` leaves something, and a scheduler that does not start every trial.

        Raises:
            Interrupted: After `interrupt`. Trials that ran are `PENDING`.
            TrialFailedError: `fail_fast="raise"`, and a trial failed.
            AsynctuneError: The searcher or scheduler failed, or the store did.
        """
        await self._supply.find()
        over: asyncio.TimerHandle | None = None
        if self._time_budget_s is not None:
            loop = asyncio.get_running_loop()
            over = loop.call_later(self._time_budget_s, self._end, AllStopped(TrialStatus.TERMINATED))
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                try:
                    await self._run_all(tasks)
                finally:
                    # also where this task is cancelled: its trials are, and may not report on
                    for run in self._running.values():
                        if run.task is not None and not run.has_ended:
                            run.is_cancelled = True
                            run.task.cancel()
        except* AsynctuneError as group:
            self._end(first_of(group))
        finally:
            if over is not None:
                over.cancel()
        await self._callbacks.tell("on_experiment_end", self._store.trials)
        ending = self._ending
        if isinstance(ending, AllStopped):
            return ending.status is TrialStatus.TERMINATED
        if ending is not None:
            raise ending
        return not self._supply

    async def _run_all(self, tasks: asyncio.TaskGroup) -> None:
        while self._ending is None:
            await self._start_trials(tasks)
            if not self._running:
                break
            await self._changed.wait()
            self._changed.clear()
        if self._stops_all:
            await self._let_stop()

    @property
    def _stops_all(self) -> bool:
        """Whether every trial has done enough."""
        return isinstance(self._ending, AllStopped) and self._ending.status is TrialStatus.TERMINATED

    async def _let_stop(self) -> None:
        """Wait for each trial to stop at its next report, with what it does then; for a while."""
        if self._running:
            logger.warning(
                "the experiment is at its end; %d trials stop at their next report, within %g s",
                len(self._running),
                _STOP_ALL_GRACE_S,
            )
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_STOP_ALL_GRACE_S):
                while self._running and not self._hurries:
                    await self._changed.wait()
                    self._changed.clear()

    # -- starting ------------------------------------------------------------------------------------------

    async def _start_trials(self, tasks: asyncio.TaskGroup) -> None:
        while self._ending is None and len(self._running) < self._limit:
            trial_id = self._supply.take()
            if trial_id is None:
                proposed = self._supply.grow(others_run=bool(self._running))
                if proposed is None:
                    if not self._running and self._supply:
                        logger.warning(
                            "%d trials are paused or pending, and the scheduler starts none of them; "
                            "restore the experiment to go on",
                            len(self._supply),
                        )
                    return
                self._watching.changed(proposed.trial_id)
            else:
                run = self._running[trial_id] = _Run()
                run.task = tasks.create_task(self._run_trial(trial_id, run))
            await asyncio.sleep(0)

    # -- one trial -----------------------------------------------------------------------------------------

    async def _run_trial(self, trial_id: str, run: _Run) -> None:
        try:
            await self._start(trial_id, run)
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self._end(error)  # before anything else is started
            # from a task these would end the event loop
            if not isinstance(error, SystemExit | KeyboardInterrupt):
                raise
        finally:
            del self._running[trial_id]
            if run.waits:
                self._supply.add(self._store.get_trial(trial_id))
            self._watching.changed(trial_id)
            self._changed.set()

    async def _start(self, trial_id: str, run: _Run) -> None:
        store = self._store
        trial = store.get_trial(trial_id)
        run.decided = decided(trial)
        if trial.status is TrialStatus.PAUSED:
            self._rewind(trial, run)
        store.set_status(trial_id, TrialStatus.RUNNING)
        self._watching.changed(trial_id)
        failed: TrialFailedError | None = None
        try:
            await self._tell("on_trial_start", trial_id)
            try:
                await self._go_on(trial, run, self._runner)
            except CheckpointNotFoundError as error:
                if run.has_reported:
                    raise
                logger.warning("trial %s gets its checkpoint by way of this machine: %s", trial_id, error)
                await self._go_on(trial, run)
        except asyncio.CancelledError:
            run.is_cancelled = True
        except TrialFailedError as error:
            failed = error
        except AsynctuneError as error:  # of the experiment, which ends: the trial has not failed
            self._end(error)
            run.is_over = True
            await self._late.over(trial_id)
            run.has_ended = True
            with contextlib.suppress(AsynctuneError):
                store.set_status(trial_id, TrialStatus.PENDING)
            raise
        run.is_over = True
        if not await self._late.over(trial_id):
            run.is_cancelled = True
        run.has_ended = True
        if run.is_cancelled and not self._stops_all:
            # Also one that ended in another way when it was cancelled. It goes on from the checkpoint it has.
            store.set_status(trial_id, TrialStatus.PENDING)
            raise asyncio.CancelledError
        if run.is_cancelled:
            run.decision = STOP
            await self._ended(trial_id, run)
        elif failed is not None:
            await self._failed(trial_id, run, failed)
        else:
            await self._ended(trial_id, run)

    async def _go_on(self, trial: Trial, run: _Run, fetcher: TrialRunner | None = None) -> None:
        """Run a trial from its checkpoint, which `fetcher` may get by itself; errors as for `run_trial`."""
        trial_id = trial.trial_id
        task = await task_of(self._store, trial_id, fetcher)
        if trial.started_at is not None and run.begins_after != task.iteration:
            run.begins_after = task.iteration
            self._deciding.rewound(trial_id, task.iteration)
        if run.decided is not None and run.decided[1] <= task.iteration:
            run.decision = run.decided[0]
        else:
            await self._runner.run_trial(task, lambda report: self._on_report(trial_id, run, report))

    def _rewind(self, trial: Trial, run: _Run) -> None:
        """Have a paused trial go on from the checkpoint that it has."""
        if self._store.rewind(trial.trial_id) and not trial.checkpoints and not self._told_of_loss:
            self._told_of_loss = True
            logger.warning(
                "trial %s was paused and has no checkpoint, so it starts over; one that can be paused has to "
                "report checkpoints",
                trial.trial_id,
            )
        if run.decided is not None:
            self._store.update_trial(trial.trial_id, metadata={DECIDED: None})
            run.decided = None

    async def _on_report(self, trial_id: str, run: _Run, report: TrialReport) -> Decision:
        """Take a report; what the trial did wrong is raised to it, everything else ends the experiment."""
        if run.is_cancelled:
            raise asyncio.CancelledError  # it has swallowed that once
        if run.is_over:
            raise ConfigError(
                f"trial {trial_id} has ended, and takes no more reports; await what it starts in it"
            )
        try:
            result = None
            if report.metrics is not None:
                # In one step, so that one commit holds the row and what the searcher has to know of it.
                self._store.report(trial_id, report.metrics)
                run.has_reported = True
                result = self._store.last_result(trial_id)
                decision = self._decide(trial_id, run, result)
                if run.decision == CONTINUE:  # one that reports on meanwhile has been told otherwise
                    run.decision = decision
            if report.checkpoint is not None:
                await self._commit(trial_id, report)
            if result is not None:
                self._watching.changed(trial_id)
                await self._tell("on_trial_result", trial_id, result)
        except (ConfigError, TrialFailedError):
            raise  # the latter from a runner whose worker died while it brought a checkpoint
        except (AsynctuneError, SystemExit, KeyboardInterrupt) as error:
            self._end(error)
            await asyncio.Event().wait()  # until this task is cancelled with all others
        # a trial that awaits nothing else must not keep the loop to itself; and a late checkpoint begins
        await asyncio.sleep(0)
        return run.decision

    async def _commit(self, trial_id: str, report: TrialReport) -> None:
        """Commit what a report brings; one that is late is only begun."""
        if is_late(report):
            assert self._tasks is not None
            self._late.begin(self._tasks, trial_id, report)
        elif (made := await commit_checkpoint(self._store, trial_id, report)) is not None:
            await self._committed(trial_id, made)

    async def _committed(self, trial_id: str, checkpoint: Checkpoint) -> None:
        await self._tell("on_checkpoint", trial_id, checkpoint)

    def _decide(self, trial_id: str, run: _Run, result: Mapping[str, Any]) -> Decision:
        decision = self._deciding.reported(trial_id, result)
        if self._stop.should_stop(trial_id, result):
            decision = STOP
        if self._stop.should_stop_all():
            self._end(AllStopped(TrialStatus.TERMINATED))
        iteration = int(result["training_iteration"])
        if self._stops_all:
            decision = STOP
        elif run.decided is not None:
            return CONTINUE if iteration < run.decided[1] else run.decided[0]
        if decision != CONTINUE and run.decision == CONTINUE:
            # in the commit of the row: a crash before the trial's end must not give it one more iteration
            self._store.update_trial(trial_id, metadata={DECIDED: [decision, iteration]})
        return decision

    # -- the end of a trial --------------------------------------------------------------------------------

    async def _ended(self, trial_id: str, run: _Run) -> None:
        if run.decision == PAUSE:
            self._store.set_status(trial_id, TrialStatus.PAUSED)
            run.waits = True
            return
        self._store.set_status(trial_id, TrialStatus.TERMINATED)
        trial = self._store.get_trial(trial_id)
        self._deciding.completed(trial_id, trial.last_result, failed=False)
        await self._callbacks.tell("on_trial_complete", trial)

    async def _failed(self, trial_id: str, run: _Run, error: TrialFailedError) -> None:
        failures = self._store.get_trial(trial_id).num_failures + 1
        limit = self._failures.max_failures
        if limit < 0 or failures <= limit:
            self._store.set_status(trial_id, TrialStatus.PENDING, error=str(error))
            await self._tell("on_trial_error", trial_id)
            await self._rest(trial_id, run)
            run.waits = True
            return
        self._store.set_status(trial_id, TrialStatus.ERROR, error=str(error))
        trial = self._store.get_trial(trial_id)
        self._deciding.completed(trial_id, trial.last_result or None, failed=True)
        await self._callbacks.tell("on_trial_error", trial)
        if self._failures.fail_fast == "raise":
            self._end(error)
        elif self._failures.fail_fast:
            self._end(AllStopped(TrialStatus.PENDING))

    async def _rest(self, trial_id: str, run: _Run) -> None:
        rest_s = self._rests.after_failure(trial_id, has_reported=run.has_reported)
        if rest_s:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(rest_s):
                    await self._over.wait()

    async def _tell(self, event: str, trial_id: str, *args: Any) -> None:
        if self._callbacks.listens(event):
            await self._callbacks.tell(event, self._store.get_trial(trial_id), *args)

    def _end(self, why: BaseException) -> None:
        if self._ending is None:
            self._ending = why
            self._over.set()
            self._changed.set()
