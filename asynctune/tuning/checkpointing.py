"""Owns what a trial is started with, and how a checkpoint that it reports becomes one of the store."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Final

from asynctune.checkpoints.arriving import ArrivingCheckpoint
from asynctune.checkpoints.staging import StagedCheckpoint
from asynctune.errors import CheckpointNotFoundError, StorageError
from asynctune.protocols import CheckpointPlace, TrialReport, TrialRunner, TrialTask
from asynctune.runners.space import is_for_space
from asynctune.store.store import ExperimentStore
from asynctune.trial import Checkpoint

__all__ = ["commit_checkpoint", "task_of"]

_BETWEEN_S: Final = 1.0

logger = logging.getLogger("asynctune")


async def task_of(store: ExperimentStore, trial_id: str, runner: TrialRunner | None = None) -> TrialTask:
    """The next start of a trial: from its newest checkpoint that is intact, else from the beginning.

    Args:
        store: Has it.
        trial_id: Which.
        runner: Asked whether it fetches the checkpoint by itself; `None`: it is brought here.
    """
    checkpoint: Checkpoint | None = None
    place = store.newest_place(trial_id)
    if place is not None and not _fetches(runner, place, store.upload_uri):
        place = None
    if place is None and store.checkpoints(trial_id):
        try:
            checkpoint = await store.restore_checkpoint(trial_id)
        except CheckpointNotFoundError as error:
            logger.warning("trial %s starts over: %s", trial_id, error)
    directory = await store.trial_dir(trial_id)
    trial = store.get_trial(trial_id)  # after the checkpoint: an older one than the newest cuts its rows
    return TrialTask(
        trial_id=trial_id,
        trial_name=trial.trial_name,
        trial_dir=directory,
        config=trial.config,
        iteration=int(trial.last_result.get("training_iteration", 0)),
        checkpoint=checkpoint,
        place=place,
        epoch=store.opening.epoch,
        copy=store.upload_uri,
    )


def _fetches(runner: TrialRunner | None, place: CheckpointPlace, copy: str | None) -> bool:
    can_fetch = getattr(runner, "can_fetch", None)
    return can_fetch is not None and bool(can_fetch(place, copy))


async def commit_checkpoint(store: ExperimentStore, trial_id: str, report: TrialReport) -> Checkpoint | None:
    """Commit what a report brings, as the step of its iteration, or one above all that there are.

    On a full disk it waits for space, as the store does for its own writes. `None`: an `ArrivingCheckpoint` that does
    not come. What its `bring` raises passes.
    """
    trial = store.get_trial(trial_id)
    step = max(int(trial.last_result.get("training_iteration", 0)), store.last_step(trial_id) + 1)
    what = report.checkpoint
    if isinstance(what, Mapping):
        what = StagedCheckpoint.from_value(what)
    if isinstance(what, StagedCheckpoint | ArrivingCheckpoint):
        return await store.adopt_checkpoint(trial_id, what, step=step)
    is_told = False
    while True:
        try:
            return await store.save_checkpoint(trial_id, what, step=step, move=report.move)
        except StorageError as error:
            if not is_for_space(error):
                raise
            if not is_told:
                logger.warning("trial %s waits for space: %s", trial_id, error)
                is_told = True
        await asyncio.sleep(_BETWEEN_S)
