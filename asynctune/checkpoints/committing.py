"""Owns the commit of a staged directory: its turn, name, manifest and record. It fills no stage itself."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, Final

from asynctune.checkpoints.arriving import ArrivalPlace
from asynctune.checkpoints.context import Context, logger
from asynctune.checkpoints.deletion import Deletions
from asynctune.checkpoints.records import CheckpointRecord, check_step, directory_name
from asynctune.checkpoints.sizes import FileSizes
from asynctune.checkpoints.stage import Stage
from asynctune.checkpoints.staging import give_up
from asynctune.checkpoints.turns import Turns
from asynctune.errors import ConfigError
from asynctune.packing import pack, unpack
from asynctune.trial import Checkpoint

__all__ = ["MAX_COPIES", "Committer", "Wanted"]

MAX_COPIES: Final = 16
"""How many checkpoints are staged, restored or fetched at once; each holds a few megabytes of memory at most."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a new checkpoint is to be, as it was at the call."""

    trial_id: str
    trial_name: str
    attempt: int
    plain: bool
    metrics: Mapping[str, Any]
    timeline: Mapping[str, Any]

    @classmethod
    def of(
        cls,
        trial_id: str,
        trial_name: str,
        *,
        attempt: int = 0,
        plain: bool = True,
        metrics: Mapping[str, Any] | None = None,
        timeline: Mapping[str, Any] | None = None,
    ) -> Wanted:
        """Take it from a caller, whose later changes to `metrics` change nothing. See `TrialCheckpoints.save`.

        Raises:
            ConfigError: The metrics cannot be stored, or the name or attempt cannot be part of a path.
        """
        if not trial_name or trial_name.startswith(".") or "/" in trial_name or "\0" in trial_name:
            raise ConfigError(f"trial_name must be usable as the name of a directory, not {trial_name!r}")
        if not isinstance(attempt, int) or isinstance(attempt, bool) or attempt < 0:
            raise ConfigError(f"attempt must be a whole number from 0, not {attempt!r}")
        if metrics is not None and not isinstance(metrics, Mapping):
            raise ConfigError(f"metrics must be a mapping of names to values, not {type(metrics).__name__}")
        kept = unpack(pack(dict(metrics or {}), "metrics"))
        return cls(trial_id, trial_name, attempt, plain, kept, unpack(pack(dict(timeline or {}), "timeline")))


class Committer:
    """Commits stages, one after the other for each trial.

    Args:
        context: What the room shares.
        deletions: Applies retention with every commit.
        recorded: Told trial and step of each new record, before it is durable.

    Attributes:
        slots: Bounds how many directories are copied at once.
        being_placed: Directories, relative to the experiment, that may have no record for a moment.
    """

    def __init__(self, context: Context, deletions: Deletions, recorded: Callable[[str, int], None]) -> None:
        self._context = context
        self._deletions = deletions
        self._recorded = recorded
        self._turns = Turns(context.records.steps)
        self._spent: dict[str, tuple[int, int]] = {}  # by trial: attempt, and its highest such step
        self.slots: Final = asyncio.Semaphore(MAX_COPIES)
        self.being_placed: Final[set[str]] = set()

    @asynccontextmanager
    async def turn(self, wanted: Wanted, step: int | None, *, at_least: int = 0) -> AsyncIterator[int]:
        """Promise the step at once, then wait for the trial's turn and for a slot. Errors as for `order`."""
        async with self.order(wanted, step, at_least=at_least) as turn, self.slots:
            yield turn

    @asynccontextmanager
    async def order(self, wanted: Wanted, step: int | None, *, at_least: int = 0) -> AsyncIterator[int]:
        """Promise the step at once, then wait for the trial's turn.

        Raises:
            CheckpointExistsError: The step is not above every recorded or promised one.
            ConfigError: It is no step at all.
        """
        asked = None if step is None else check_step(step)
        spent = self._spent_by(wanted.trial_id, wanted.attempt)
        async with self._turns.take(wanted.trial_id, asked, at_least=at_least, spent=spent) as turn:
            yield check_step(turn)

    def spend(self, wanted: Wanted, step: int) -> None:
        """Never give this step to this start of the trial again: what has its name may be in the bucket in part."""
        before = self._spent_by(wanted.trial_id, wanted.attempt) or 0
        self._spent[wanted.trial_id] = wanted.attempt, max(before, step)

    def last_step(self, trial_id: str, attempt: int) -> int:
        """The highest step that this start of a trial cannot use any more; 0: there is none."""
        return max(
            self._turns.highest(trial_id) or 0,
            self._spent_by(trial_id, attempt) or 0,
        )

    def _spent_by(self, trial_id: str, attempt: int) -> int | None:
        whose, step = self._spent.get(trial_id, (attempt, None))
        return step if whose == attempt else None

    async def arrival_place(self, wanted: Wanted, step: int) -> ArrivalPlace:
        """Where a checkpoint goes that somebody brings, as far as that can be told before."""
        context = self._context
        name, *others = self._names(wanted, step)
        for other in others:
            path = os.path.join(context.experiment_dir, wanted.trial_name, name)
            if await context.threads.run(context.files.exists, path):
                name = other
        return ArrivalPlace(
            trial_id=wanted.trial_id,
            step=step,
            epoch=context.epoch,
            attempt=wanted.attempt,
            directory=f"{wanted.trial_name}/{name}",
        )

    def _names(self, wanted: Wanted, step: int) -> list[str]:
        """Names for its directory, the best first."""
        long_name = directory_name(step, epoch=self._context.epoch, attempt=wanted.attempt)
        return [directory_name(step), long_name] if wanted.plain else [long_name]

    async def commit(self, wanted: Wanted, step: int, stage: Stage) -> Checkpoint:
        """Put the stage in its place and record it; whatever fails before the record gives the stage up."""
        context = self._context
        names = self._names(wanted, step)
        with self._placing(wanted.trial_name, names):
            try:
                record = await context.threads.run(self._place, wanted, step, stage, names)
                context.records.put(record)
            except BaseException as error:
                await give_up(context.threads, stage, error)
                raise
        # From here on it is recorded, even if the caller is cancelled: the commit goes on without them.
        self._recorded(wanted.trial_id, step)
        self._deletions.retire(wanted.trial_id)
        await context.records.commit()
        context.emit(
            "checkpoint_saved",
            trial_id=wanted.trial_id,
            step=step,
            message=f"checkpoint {step} of trial {wanted.trial_id} was saved",
            path=stage.path,
            size_bytes=record.size_bytes,
            files=len(record.files),
            how=stage.how,
        )
        await self._remove_source(stage)
        return record.checkpoint(stage.path)

    def _place(self, wanted: Wanted, step: int, stage: Stage, names: Sequence[str]) -> CheckpointRecord:
        """In a thread: with many files, the manifest alone takes a while."""
        manifest = stage.manifest().named(
            trial_id=wanted.trial_id, step=step, epoch=self._context.epoch, attempt=wanted.attempt
        )
        parent = os.path.join(self._context.experiment_dir, wanted.trial_name)
        digest = stage.place(manifest, parent, names)
        return CheckpointRecord(
            trial_id=wanted.trial_id,
            step=step,
            directory=f"{wanted.trial_name}/{os.path.basename(stage.path)}",
            manifest_sha256=digest,
            files=FileSizes.of(manifest.sizes),  # packed here, in the thread
            size_bytes=manifest.size_bytes,
            committed_at=self._context.clock.time(),
            metrics=wanted.metrics,
            timeline=wanted.timeline,
            epoch=manifest.epoch,
            attempt=manifest.attempt,
        )

    @contextmanager
    def _placing(self, trial_name: str, names: Sequence[str]) -> Iterator[None]:
        relative = {f"{trial_name}/{name}" for name in names}
        self.being_placed.update(relative)
        try:
            yield
        finally:
            self.being_placed.difference_update(relative)

    async def _remove_source(self, stage: Stage) -> None:
        """Finish a move that had to copy."""
        if stage.source is None:
            return
        try:
            await self._context.threads.run(self._context.files.remove_tree, stage.source)
        except OSError as error:
            # The checkpoint is committed: failing now would say that it is not.
            logger.warning("%s was given away and copied, but cannot be removed: %s", stage.source, error)
