"""Owns what a trial is started with, and how a checkpoint that it reports becomes one of the store."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Final

from asynctune.checkpoints.arriving import ArrivingCheckpoint
from asynctune.checkpoints.staging import StagedCheckpoint
from asynctune.errors import CheckpointNotFoundError, StorageError
from asynctune.protocols import TrialReport, TrialTask
from asynctune.runners.space import is_for_space
from asynctune.store.store import ExperimentStore
from asynctune.trial import Checkpoint

__all__ = ["commit_checkpoint", "task_of"]

_BETWEEN_S: Final = 1.0

logger = logging.getLogger("asynctune")


async def task_of(store: ExperimentStore, trial_id: str) -> TrialTask:
    """The next start of a trial: from its newest checkpoint that is intact, else from the beginning."""
    checkpoint: Checkpoint | None = None
    if store.checkpoints(trial_id):
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
        copy=store.upload_uri,
    )


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
