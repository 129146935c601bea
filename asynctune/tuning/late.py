"""Owns the checkpoints of trials that go on meanwhile: their commits, each a task, and what their end means.

A report whose checkpoint is late is answered at once; the worker brings the bytes some time later. Before its trial is
anything else than running, all of its late ones have come, or have been given up.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

from asynctune.checkpoints.arriving import ArrivingCheckpoint
from asynctune.errors import AsynctuneError, TrialFailedError
from asynctune.protocols import TrialReport
from asynctune.store.store import ExperimentStore
from asynctune.trial import Checkpoint
from asynctune.tuning.checkpointing import commit_checkpoint

__all__ = ["LateCheckpoints", "is_late"]

logger = logging.getLogger("asynctune")


def is_late(report: TrialReport) -> bool:
    """Whether a report is to be answered before its checkpoint is committed."""
    return isinstance(report.checkpoint, ArrivingCheckpoint) and report.checkpoint.late


class LateCheckpoints:
    """The late checkpoints of one driver's trials.

    Args:
        store: Open for writing.
        committed: Told of each one that was committed.
        failed: Told what ends the experiment.
    """

    def __init__(
        self,
        store: ExperimentStore,
        committed: Callable[[str, Checkpoint], Awaitable[None]],
        failed: Callable[[BaseException], None],
    ) -> None:
        self._store = store
        self._committed = committed
        self._fail = failed
        self._under_way: dict[str, set[asyncio.Task[None]]] = {}
        self._lacking: set[str] = set()

    def begin(self, tasks: asyncio.TaskGroup, trial_id: str, report: TrialReport) -> None:
        """Begin to commit one: its metrics and its step are taken in the next turn of the loop, before the answer.

        Args:
            tasks: Where its task belongs to.
            trial_id: Whose it is.
            report: What brought it.
        """
        task = tasks.create_task(self._commit(trial_id, report))
        self._under_way.setdefault(trial_id, set()).add(task)
        task.add_done_callback(lambda task: self._ended(trial_id, task))

    async def over(self, trial_id: str) -> bool:
        """Wait for those of a trial whose runner has returned, which ends them soon, in one way or another.

        Returns:
            Whether the trial's end may be told. Otherwise the store has failed, or this call was cancelled, and the
            commits with it: the trial has to go on from the checkpoint that it has.
        """
        try:
            while trial_id in self._under_way:
                await asyncio.wait(self._under_way[trial_id])
        except asyncio.CancelledError:
            for task in self._under_way.get(trial_id, ()):
                task.cancel()
            while trial_id in self._under_way:
                with contextlib.suppress(asyncio.CancelledError):  # asked again
                    await asyncio.wait(self._under_way[trial_id])
            return False
        finally:
            is_lacking = trial_id in self._lacking
            self._lacking.discard(trial_id)
        return not is_lacking

    async def _commit(self, trial_id: str, report: TrialReport) -> None:
        try:
            made = await commit_checkpoint(self._store, trial_id, report)
            if made is not None:
                await self._committed(trial_id, made)
        except (ConnectionError, TrialFailedError) as error:
            # Its worker is gone, which is for the runner to tell. The trial has the checkpoints before.
            logger.warning("a checkpoint of trial %s did not come, and is left out: %s", trial_id, error)
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self._lacking.add(trial_id)
            self._fail(error)
            # from a task these would end the event loop
            if not isinstance(error, AsynctuneError | SystemExit | KeyboardInterrupt):
                raise

    def _ended(self, trial_id: str, task: asyncio.Task[None]) -> None:
        under_way = self._under_way[trial_id]
        under_way.discard(task)
        if not under_way:
            del self._under_way[trial_id]
