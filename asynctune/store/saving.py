"""Owns the part of a store that commits checkpoints: each method names the trial's place and hands over."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, overload

from asynctune.checkpoints.arriving import ArrivingCheckpoint
from asynctune.checkpoints.committing import Wanted
from asynctune.checkpoints.staging import StagedCheckpoint
from asynctune.store.readable import ReadableStore
from asynctune.store.runs import reported
from asynctune.trial import Checkpoint

__all__ = ["SavingStore"]


class SavingStore(ReadableStore):
    """What commits checkpoints. `ExperimentStore` adds trials, results and the end."""

    async def save_checkpoint(
        self,
        trial_id: str,
        directory: str | os.PathLike[str] | Checkpoint,
        step: int | None = None,
        metrics: Mapping[str, Any] | None = None,
        move: bool = False,
    ) -> Checkpoint:
        """Commit a directory's files as a checkpoint of the trial; durable when this returns.

        Args:
            trial_id: Whose.
            directory: Its files; or a `Checkpoint` made by `from_directory` or `from_dict`.
            step: Above every recorded one; by default one more than the highest.
            metrics: What it is ranked by; by default what the trial reported last, with its `training_iteration`.
            move: Give the directory away: it is renamed into place instead of copied.

        Raises:
            TrialNotFoundError: No such trial.
            CheckpointExistsError: The step is not above every recorded one.
            ConfigError: Something in the directory cannot be stored.
            StorageError: The disk refused, or the files were written to meanwhile.
        """
        place = self._place(trial_id, metrics)
        return await self._checkpoints.save(trial_id, directory, step=step, move=move, **place)

    @overload
    async def adopt_checkpoint(
        self,
        trial_id: str,
        manifest: StagedCheckpoint | str | os.PathLike[str],
        step: int | None = None,
        metrics: Mapping[str, Any] | None = None,
    ) -> Checkpoint: ...

    @overload
    async def adopt_checkpoint(
        self,
        trial_id: str,
        manifest: ArrivingCheckpoint,
        step: int | None = None,
        metrics: Mapping[str, Any] | None = None,
    ) -> Checkpoint | None: ...

    async def adopt_checkpoint(
        self,
        trial_id: str,
        manifest: StagedCheckpoint | ArrivingCheckpoint | str | os.PathLike[str],
        step: int | None = None,
        metrics: Mapping[str, Any] | None = None,
    ) -> Checkpoint | None:
        """Commit a directory that a worker staged on this filesystem (`stage_for_adoption`); nothing is read again.

        Args and errors as for `save_checkpoint`; `manifest` is what the staging returned. Of an `ArrivingCheckpoint`
        the step is promised at once, and metrics and place in the timeline are those of now, however long it takes to
        come; `None`: it does not. The close does not wait for it.
        """
        place = self._place(trial_id, metrics)
        if isinstance(manifest, ArrivingCheckpoint):
            return await self._checkpoints.arrivals.adopt(Wanted.of(trial_id, **place), manifest, step)
        return await self._checkpoints.adopt(trial_id, manifest, step=step, **place)

    async def clone_checkpoint(
        self, source_trial_id: str, step: int | None = None, *, to_trial: str
    ) -> Checkpoint:
        """Commit a verified copy of one trial's checkpoint (the newest by default) as another's.

        Raises:
            TrialNotFoundError: No such trial.
            CheckpointNotFoundError: There is no such checkpoint, or it is damaged.
            StorageError: The disk refused.
        """
        self._table.given(source_trial_id)
        place = {**self._place(to_trial, None), "metrics": None}
        return await self._checkpoints.clone(source_trial_id, step, to_trial=to_trial, **place)

    def _place(self, trial_id: str, metrics: Mapping[str, Any] | None) -> dict[str, Any]:
        """What the checkpoints' room needs to know of a trial, as of the call."""
        engine = self._writable()
        name = self._table.given(trial_id)[0]
        run = self._table.run(trial_id)
        return {
            "trial_name": name,
            "attempt": run.attempt,
            "plain": run.attempt == 0 and (engine.opening.epoch == 1 or self._is_ours_alone(trial_id)),
            "metrics": reported(run) if metrics is None else metrics,
            "timeline": self._table.timeline(trial_id),
        }

    def _is_ours_alone(self, trial_id: str) -> bool:
        """Whether no opening before this one can have a trial of this id.

        One that a copy was taken over from may: of a trial that the copy did not know yet the id is given again, and
        what the old driver still sends would be put into the new one's directory.
        """
        assert self._engine is not None
        return trial_id in self._added and self._engine.mirroring is None

    def last_step(self, trial_id: str) -> int:
        """The highest step of a trial: recorded (also of one that is being deleted, or was lost), or on its way.

        The next one has to be above it. 0: there is none.

        Raises:
            TrialNotFoundError: No such trial.
        """
        self._writable()
        self._table.given(trial_id)
        return self._checkpoints.last_step(trial_id, self._table.run(trial_id).attempt)

    async def trial_dir(self, trial_id: str) -> str:
        """Absolute path of the trial's directory, which is made if it is missing.

        Raises:
            TrialNotFoundError: No such trial.
            StorageError: The disk refused.
        """
        self._writable()
        path = os.path.join(self._path, self._table.given(trial_id)[0])
        await self._checkpoints.make_directory(path)
        return path
