"""Owns the way back: a verified private copy of a checkpoint, and what happens when it is damaged.

A committed directory is never handed out to be written in. What is restored is a copy (by reflink where the
filesystem can), verified while it is made. Damage is said aloud, in the log and as an event, each time it is
met.
"""

from __future__ import annotations

import os
import secrets
from typing import Final

from asynctune.checkpoints.context import Context, logger
from asynctune.checkpoints.disk import disk_errors
from asynctune.checkpoints.records import CheckpointRecord
from asynctune.checkpoints.stage import ensure_directory
from asynctune.checkpoints.turns import Leases
from asynctune.checkpoints.verify import VerifyReport, copy_verified, verify_directory
from asynctune.errors import CheckpointNotFoundError, ConfigError
from asynctune.trial import Checkpoint

__all__ = ["Restorer"]

_ALTERNATIVES: Final = 3  # how many others are read to say which of them would do


class Restorer:
    """Restores checkpoints of one experiment.

    Args:
        context: What the room shares.
        leases: Keep what is being read.
    """

    def __init__(self, context: Context, leases: Leases) -> None:
        self._context = context
        self._leases = leases
        self._private: dict[str, set[str]] = {}

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
        raise CheckpointNotFoundError(
            f"no checkpoint of trial {trial_id} is intact; start it from the beginning ({'; '.join(damaged)})"
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

    def release(self, trial_id: str) -> set[str]:
        """Forget the trial's private copies; their paths, for removal."""
        return self._private.pop(trial_id, set())

    def release_all(self) -> set[str]:
        """Forget every private copy; their paths, for removal."""
        paths = {path for each in self._private.values() for path in each}
        self._private.clear()
        return paths

    async def _restore(
        self, record: CheckpointRecord, to: str | None
    ) -> tuple[Checkpoint | None, VerifyReport]:
        context = self._context
        target = _Target(context, to)
        source = context.path_of(record)
        doing = f"restore checkpoint {record.step} of trial {record.trial_id} to {target.path}"
        with self._leases.hold(record.trial_id, record.step), disk_errors(doing, target.path):
            try:
                await context.threads.run(target.make)
                report = await copy_verified(
                    source,
                    record.manifest_sha256,
                    target.path,
                    files=context.files,
                    threads=context.threads,
                    durable=False,
                )
                if not report.intact:
                    await context.threads.run(target.clear)
            except BaseException as error:
                await self._clear_after(target, error)
                raise
        if not report.intact:
            self.report_damage(record, report)
            return None, report
        if not report.ok:
            logger.warning("%s was restored without what does not belong to it: %s", source, report)
        if to is None:
            self._private.setdefault(record.trial_id, set()).add(target.path)
        return record.checkpoint(target.path), report

    async def _clear_after(self, target: _Target, error: BaseException) -> None:
        try:
            await self._context.threads.run(target.clear)
        except OSError as left:
            error.add_note(f"what was copied to {target.path} could not be removed either: {left}")


class _Target:
    """The directory a checkpoint is restored to. Every method is for a thread."""

    def __init__(self, context: Context, to: str | None) -> None:
        self._files = context.files
        self._private = to is None
        self._made = False
        self._entered = False
        self.path = (
            os.path.join(context.scratch_dir, f"{context.nonce}-{secrets.token_hex(4)}") if to is None else to
        )

    def make(self) -> None:
        """Make it; one that was given may exist if it is empty."""
        if self._private:
            ensure_directory(self._files, os.path.dirname(self.path), private=True)
        self.path = os.path.abspath(self.path)
        if os.path.isdir(self.path):
            if os.listdir(self.path):
                raise ConfigError(f"{self.path} is not empty; restore to a new or empty directory")
        else:
            parent = os.path.dirname(self.path)
            if not self._private and not os.path.isdir(parent):
                os.makedirs(parent)
            try:
                self._files.make_dir(self.path)
            except FileExistsError as error:
                raise ConfigError(
                    f"{self.path} is not a directory; restore to a new or empty directory"
                ) from error
            except OSError:
                self._made = os.path.isdir(self.path)
                raise
            self._made = True
        self._entered = True

    def clear(self) -> None:
        """Leave it as it was found."""
        if self._made:
            if self._files.exists(self.path):
                self._files.remove_tree(self.path)
        elif self._entered:
            for name in os.listdir(self.path):
                path = os.path.join(self.path, name)
                if os.path.isdir(path) and not os.path.islink(path):
                    self._files.remove_tree(path)
                else:
                    self._files.unlink(path)
        self._made = self._entered = False
