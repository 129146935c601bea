"""Owns the way back: a verified private copy of a checkpoint, and what happens when it is damaged or elsewhere.

A committed directory is never handed out to be written in. What is restored is a copy (by reflink where the
filesystem can), verified while it is made. Damage is said aloud, in the log and as an event, each time it is
met. What is missing here or damaged is fetched from the bucket, if there is one that has it; only when that copy is
missing or damaged too is an older checkpoint taken. A bucket that cannot be asked is an error: going back would lose
what is there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

from asynctune.checkpoints.bucket import TreeCopies
from asynctune.checkpoints.context import Context, logger
from asynctune.checkpoints.disk import disk_errors
from asynctune.checkpoints.records import CheckpointRecord
from asynctune.checkpoints.stage import Stage
from asynctune.checkpoints.staging import Staging
from asynctune.checkpoints.target import Target
from asynctune.checkpoints.turns import Leases
from asynctune.checkpoints.verify import VerifyReport, copy_verified, verify_directory
from asynctune.errors import CheckpointNotFoundError
from asynctune.trial import Checkpoint

__all__ = ["Restorer"]

_OUT_OF_REACH: Final = "a complete copy is in upload_dir: open the experiment from there"
_ALTERNATIVES: Final = 3  # how many others are read to say which of them would do


class Restorer:
    """Restores checkpoints of one experiment.

    Args:
        context: What the room shares.
        leases: Keep what is being read.
        copies: Copies in a bucket, if there is one.
    """

    def __init__(self, context: Context, leases: Leases, copies: TreeCopies | None = None) -> None:
        self._context = context
        self._leases = leases
        self._copies = copies
        self._private: dict[str, set[str]] = {}
        self._fetched: dict[tuple[str, int], str] = {}
        self._fetching: dict[tuple[str, int], asyncio.Lock] = {}

    def pick(self, trial_id: str, step: int | None) -> CheckpointRecord:
        """The record of a checkpoint, the newest for `None`.

        Raises:
            CheckpointNotFoundError: There is none; the message says which there are.
        """
        live = self._context.records.live(trial_id)
        if not live:
            raise CheckpointNotFoundError(f"trial {trial_id} has no checkpoint; start it from the beginning")
        if step is None:
            return live[-1]
        for record in live:
            if record.step == step:
                return record
        steps = ", ".join(str(record.step) for record in live[-10:])
        raise CheckpointNotFoundError(f"trial {trial_id} has no checkpoint {step}; it has {steps}")

    async def newest(self, trial_id: str, to: str | None) -> Checkpoint:
        """The newest checkpoint that verifies, as a private copy or at `to`.

        Raises:
            CheckpointNotFoundError: There is none, or none that verifies.
        """
        record = self.pick(trial_id, None)
        damaged: list[str] = []
        for step in reversed([each.step for each in self._context.records.live(trial_id)]):
            now = self._context.records.get(trial_id, step)
            if now is None or now.deleting:
                continue
            record = now
            restored, report = await self._restore(record, to)
            if restored is not None:
                if damaged:
                    logger.warning("trial %s goes on from its older checkpoint %d", trial_id, step)
                return restored
            damaged.append(f"checkpoint {step}: {report}")
        instead = "start it from the beginning"
        if any(self._is_out_of_reach(each) for each in self._context.records.live(trial_id)):
            instead = _OUT_OF_REACH
        raise CheckpointNotFoundError(
            f"no checkpoint of trial {trial_id} is intact; {instead} ({'; '.join(damaged)})"
        )

    async def exactly(self, trial_id: str, step: int, to: str | None) -> Checkpoint:
        """This checkpoint and no other.

        Raises:
            CheckpointNotFoundError: It is not there or damaged; the message says which one would do.
        """
        restored, report = await self._restore(self.pick(trial_id, step), to)
        if restored is not None:
            return restored
        raise CheckpointNotFoundError(
            f"checkpoint {step} of trial {trial_id} is damaged ({report}); "
            f"{await self.alternative(trial_id, step)}"
        )

    async def alternative(self, trial_id: str, step: int) -> str:
        """What to use instead of a damaged checkpoint, for an error."""
        itself = self._context.records.get(trial_id, step)
        if itself is not None and self._is_out_of_reach(itself):
            return _OUT_OF_REACH
        others = [record for record in self._context.records.live(trial_id) if record.step != step]
        for record in others[: -_ALTERNATIVES - 1 : -1]:
            with self._leases.hold(trial_id, record.step):
                report = await verify_directory(
                    self._context.path_of(record),
                    record.manifest_sha256,
                    files=self._context.files,
                    threads=self._context.threads,
                )
            if report.intact:
                return f"checkpoint {record.step} verifies, so restore that one (step={record.step})"
            if self._elsewhere(record) is not None:
                return f"checkpoint {record.step} is in the bucket, so restore that one (step={record.step})"
        return (
            "no other one verifies" if len(others) <= _ALTERNATIVES else "the newest others are damaged too"
        )

    def report_damage(self, record: CheckpointRecord, report: VerifyReport) -> None:
        """Say aloud that a recorded checkpoint is not what it was."""
        message = f"checkpoint {record.step} of trial {record.trial_id} is damaged: {report}"
        logger.warning("%s", message)
        self._context.emit(
            "checkpoint_damaged",
            trial_id=record.trial_id,
            step=record.step,
            message=message,
            path=report.path,
            problems=[str(problem) for problem in report.problems],
        )

    async def readable(self, record: CheckpointRecord, *, look: bool = False) -> str:
        """A directory with the checkpoint's files, to be read only: its own, else one brought from the bucket.

        The latter is kept until it is released; who uses it holds a lease. Where no copy is elsewhere, its own is not
        looked at, unless `look` says so.

        Raises:
            CheckpointNotFoundError: It is neither here nor in the bucket.
            StorageError: The bucket or the disk said no.
        """
        context, path = self._context, self._context.path_of(record)
        copies = self._elsewhere(record)
        if copies is None and not look and not record.bucket_only:
            return path
        key = record.trial_id, record.step
        async with self._fetching.setdefault(key, asyncio.Lock()):
            if key in self._fetched:
                return self._fetched[key]
            doing = f"fetch checkpoint {record.step} of trial {record.trial_id}"
            with disk_errors(doing, path):
                report = await verify_directory(
                    path, record.manifest_sha256, files=context.files, threads=context.threads, contents=False
                )
                if report.intact:
                    return path
                if copies is None:
                    self.report_damage(record, report)
                    raise CheckpointNotFoundError(
                        f"checkpoint {record.step} of trial {record.trial_id} is damaged ({report}); "
                        f"{await self.alternative(record.trial_id, record.step)}"
                    )
                self._say_damaged(record, report)
                target = Target(context, None)
                fetched = await self._into(target, partial(self._fetch, record, copies, target.path))
            if not fetched.intact:
                self.report_damage(record, fetched)
                raise CheckpointNotFoundError(
                    f"checkpoint {record.step} of trial {record.trial_id} is neither here ({report}) nor in the bucket "
                    f"({fetched}); {await self.alternative(record.trial_id, record.step)}"
                )
            self._fetched[key] = target.path
            return target.path

    async def stage(self, record: CheckpointRecord, staging: Staging) -> tuple[Stage | None, VerifyReport]:
        """A stage with a verified copy of a committed checkpoint; none if that is damaged: see the report."""
        stage, report = await staging.of_committed(self._context.path_of(record), record.manifest_sha256)
        copies = self._elsewhere(record)
        if stage is not None or copies is None:
            return stage, report
        self._say_damaged(record, report)
        return await staging.of_filled(partial(self._fetch, record, copies))

    def release(self, trial_id: str) -> set[str]:
        """Forget the trial's private copies; their paths, for removal."""
        leased = self._leases.steps(trial_id)
        for step in [step for trial, step in self._fetched if trial == trial_id and step not in leased]:
            self._private.setdefault(trial_id, set()).add(self._fetched.pop((trial_id, step)))
            self._fetching.pop((trial_id, step), None)
        return self._private.pop(trial_id, set())

    def release_all(self) -> set[str]:
        """Forget every private copy; their paths, for removal."""
        paths = {path for each in self._private.values() for path in each} | set(self._fetched.values())
        self._private.clear()
        self._fetched.clear()
        return paths

    async def _restore(
        self, record: CheckpointRecord, to: str | None
    ) -> tuple[Checkpoint | None, VerifyReport]:
        context = self._context
        target = Target(context, to)
        source = context.path_of(record)
        doing = f"restore checkpoint {record.step} of trial {record.trial_id} to {target.path}"
        with self._leases.hold(record.trial_id, record.step), disk_errors(doing, target.path):
            report = await self._into(target, partial(self._copy, record, target.path))
            copies = self._elsewhere(record)
            if not report.intact and copies is not None:
                self._say_damaged(record, report)
                report = await self._into(target, partial(self._fetch, record, copies, target.path))
        if not report.intact:
            self.report_damage(record, report)
            return None, report
        if not report.ok:
            logger.warning("%s was restored without what does not belong to it: %s", source, report)
        if to is None:
            self._private.setdefault(record.trial_id, set()).add(target.path)
        return record.checkpoint(target.path), report

    async def _copy(self, record: CheckpointRecord, to: str) -> VerifyReport:
        return await copy_verified(
            self._context.path_of(record),
            record.manifest_sha256,
            to,
            files=self._context.files,
            threads=self._context.threads,
            durable=False,
        )

    async def _fetch(self, record: CheckpointRecord, copies: TreeCopies, to: str) -> VerifyReport:
        report = await copies.fetch_tree(record, to)
        if report.intact:
            self._context.emit(
                "checkpoint_fetched",
                trial_id=record.trial_id,
                step=record.step,
                message=f"checkpoint {record.step} of trial {record.trial_id} was fetched from the bucket",
                size_bytes=record.size_bytes,
            )
        return report

    async def _into(self, target: Target, fill: Callable[[], Awaitable[VerifyReport]]) -> VerifyReport:
        """Make the target and fill it; whatever fails leaves it as it was found."""
        try:
            await self._context.threads.run(target.make)
            report = await fill()
            if not report.intact:
                await self._context.threads.run(target.clear)
        except BaseException as error:
            await self._clear_after(target, error)
            raise
        return report

    def _elsewhere(self, record: CheckpointRecord) -> TreeCopies | None:
        """Where a complete copy is, if the bucket has one."""
        return self._copies if record.mirrored and not record.bucket_deleting else None

    def _is_out_of_reach(self, record: CheckpointRecord) -> bool:
        """Whether a complete copy is in a bucket that this reader does not know."""
        return self._copies is None and record.mirrored and not record.bucket_deleting

    def _say_damaged(self, record: CheckpointRecord, report: VerifyReport) -> None:
        """Damage on this disk, which the bucket makes good; that nothing is here at all is no damage."""
        if not report.absent:
            self.report_damage(record, report)

    async def _clear_after(self, target: Target, error: BaseException) -> None:
        try:
            await self._context.threads.run(target.clear)
        except OSError as left:
            error.add_note(f"what was copied to {target.path} could not be removed either: {left}")
