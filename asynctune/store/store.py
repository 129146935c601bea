"""Owns `ExperimentStore`, what users hold: each method checks, delegates to the room that does it, and returns.

What a record means is `store.trials`', the tasks and the order of things `store.engine`'s, bytes the rooms' below.
"""

from __future__ import annotations

import asyncio
import os
import warnings
from collections.abc import Mapping
from itertools import islice
from types import TracebackType
from typing import Any, Self

from asynctune.clock import Clock
from asynctune.config import CheckpointConfig, SyncConfig
from asynctune.errors import ConfigError, TransitionError
from asynctune.files import LocalFiles
from asynctune.store.opening import Mode
from asynctune.store.pending import PendingStore, prepare
from asynctune.store.searching import SearchingStore
from asynctune.trial import Trial, TrialStatus

__all__ = ["ExperimentStore"]


class ExperimentStore(SearchingStore):
    """One experiment: its trials, their results and checkpoints, its metadata; durable.

    Made by `ExperimentStore.open`. Methods that change something are plain calls: no I/O, safe anywhere on the event
    loop; what they did is durable with the next commit, at the latest when `await flush()` returns. All of them raise
    `StoreClosedError` after the close, in a forked child and outside of the event loop it was opened in,
    `ConfigError` where the store was opened with `mode="read"`, and the failure (`FencedError`, `StorageError`)
    once the store could not go on.
    """

    @classmethod
    def open(
        cls,
        location: str | os.PathLike[str],
        mode: Mode = "auto",
        local_dir: str | os.PathLike[str] | None = None,
        sync_config: SyncConfig | None = None,
        checkpoint_config: CheckpointConfig | None = None,
        checkpoint_period: float | str = "auto",
        storage_options: Mapping[str, Any] | None = None,
        *,
        max_interval_s: float | None = None,
        tensorboard: bool = False,
        clock: Clock | None = None,
        files: LocalFiles | None = None,
    ) -> PendingStore[Self]:
        """Open an experiment; `async with` the result, or `await` it and `aclose()` the store later.

        No trial's status is changed: what was running may run still. `requeue()` decides how to go on.

        Args:
            location: Directory of the experiment, or the URI of its copy (`s3://bucket/prefix/name`, `gs://...`).
            mode: `"create"` refuses an existing one, `"resume"` a missing one, `"auto"` takes what is there, `"read"`
                takes no lock and writes nothing, and leaves the settings about writing aside.
            local_dir: Where an experiment opened from a URI is staged, in a directory of its name; only for those. By
                default `TUNE_RESULT_DIR`, else `~/asynctune_results`.
            sync_config: Where it is mirrored to; by default as before, and nowhere for a new one.
            checkpoint_config: How many checkpoints are kept; by default as the experiment was made.
            checkpoint_period: Seconds between commits of the state, or `"auto"`: at most 5 % of the time goes into
                them. The environment variable `TUNE_GLOBAL_CHECKPOINT_S` overrides it.
            storage_options: Credentials and endpoint of a bucket, also of that where a directory's copy is; never
                stored, never logged.
            max_interval_s: The longest rest between commits, even where the 5 % rule asks for more.
            tensorboard: Write TensorBoard events too; needs the extra `tensorboard`.
            clock: Time, for tests.
            files: The disk, for tests.

        Raises:
            ConfigError: A setting that cannot work, or a place where no experiment can be.
            ExperimentExistsError, ExperimentNotFoundError: The place does not fit the mode.
            ExperimentLockedError: Another process on this host has it open for writing.
            CorruptStateError, UnsupportedFormatError: It cannot be read; nothing was changed.
            StorageError: The disk refused.
        """
        return prepare(
            cls,
            location,
            mode,
            local_dir=local_dir,
            sync_config=sync_config,
            checkpoint_config=checkpoint_config,
            checkpoint_period=checkpoint_period,
            storage_options=storage_options,
            max_interval_s=max_interval_s,
            tensorboard=tensorboard,
            clock=clock,
            files=files,
        )

    # -- trials ----------------------------------------------------------------------------------------------

    def add_trial(
        self,
        config: Mapping[str, Any],
        trial_id: str | None = None,
        trial_name: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Trial:
        """Add a `PENDING` trial.

        Args:
            config: Its hyperparameters; text keys, msgpack values (see `asynctune.packing`).
            trial_id: Unique, never reused; generated if left out, such as `3f9ac_00007`.
            trial_name: Name of its directory; the id by default.
            metadata: The driver's own notes.

        Raises:
            ConfigError: A name that is taken or cannot be a directory, or a value that cannot be stored.
        """
        engine = self._writable()
        made = self._table.add(config, trial_id, trial_name, metadata)
        self._added.add(made)
        engine.events.emit("trial_added", trial_id=made)
        return self.get_trial(made)

    def new_trial_id(self) -> str:
        """An id that no trial has; for a driver that needs it before the trial is added."""
        self._writable()
        return self._table.new_id()

    def update_trial(
        self,
        trial_id: str,
        config: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Replace a trial's config, and merge `metadata` into its notes; what is left out stays.

        Raises:
            TrialNotFoundError: No such trial.
            ConfigError: A value that cannot be stored.
        """
        engine = self._writable()
        engine.journal_rows(self._table.update(trial_id, config, metadata))

    def set_status(
        self, trial_id: str, status: TrialStatus | str, error: str | BaseException | None = None
    ) -> None:
        """Move a trial to another status; setting the present one changes nothing.

        A trial that goes back to `PENDING` (a retry, or one that is extended) goes on from its latest checkpoint: later
        result rows are cut off and kept aside.

        Args:
            trial_id: Which.
            status: See `TrialStatus`.
            error: What went wrong, for `ERROR`, and for `PENDING` as a retry; an exception is stored as its traceback.

        Raises:
            TrialNotFoundError: No such trial.
            TransitionError: Not allowed from the present status.
            ConfigError: Not a status, or an error where none belongs.
        """
        engine = self._writable()
        before, after, operations = self._table.set_status(trial_id, status, error)
        engine.journal_rows(operations)
        if before is not after:
            engine.events.emit("status_changed", trial_id=trial_id, status=after.value, before=before.value)
            if after.is_finished:
                engine.checkpoints.release(trial_id)

    def report(self, trial_id: str, metrics: Mapping[str, Any], iteration: int | None = None) -> None:
        """Add a result row to a trial.

        Args:
            trial_id: Which.
            metrics: Names with msgpack values; nested mappings are addressed as `"a/b"` elsewhere.
            iteration: The training iteration; by default `metrics["training_iteration"]`, else one more than the last.

        Raises:
            TrialNotFoundError: No such trial.
            TransitionError: The trial is finished.
            ConfigError: An iteration that is not above the last one, or a metric that cannot be stored.
        """
        engine = self._writable()
        number, row = self._table.report(trial_id, metrics, iteration)
        engine.journal_rows((row,))
        engine.events.emit("result", trial_id=trial_id, iteration=number)

    def rewind(self, trial_id: str) -> bool:
        """Cut off a trial's result rows after its newest checkpoint, before it goes on from that; whether there were.

        For one that goes on without having been `PENDING`, such as a `PAUSED` one; the rows are kept aside.

        Raises:
            TrialNotFoundError: No such trial.
            TransitionError: It is finished.
        """
        engine = self._writable()
        if (status := self._table.status(trial_id)).is_finished:
            msg = f"trial {trial_id!r} is {status}, and its rows are its result; requeue it first"
            raise TransitionError(msg)
        if is_ahead := self._table.is_ahead(trial_id):
            engine.journal_rows(self._table.rewind(trial_id, None))
        return is_ahead

    # -- experiment --------------------------------------------------------------------------------------------

    def set_metadata(self, key: str, value: Any) -> None:
        """Store a value of the driver's own under `key`; `None` is a value like others.

        Raises:
            ConfigError: The key is not a text, or the value cannot be stored.
        """
        self._writable()
        if not isinstance(key, str) or not key:
            msg = f"a metadata key must be a text of at least one character, not {key!r}"
            raise ConfigError(msg)
        self._records.put(f"meta/{key}", value, f"metadata {key!r}")

    def requeue(
        self, resume_unfinished: bool = True, resume_errored: bool = False, restart_errored: bool = False
    ) -> None:
        """Decide for all trials how the experiment goes on after a restart, by their saved status.

        `TERMINATED` stays. `PENDING` and `RUNNING` become `PENDING` and go on from the latest checkpoint, `PAUSED`
        stays; with `resume_unfinished=False` all three become `TERMINATED`. `ERROR` stays; with `resume_errored` it
        becomes `PENDING` likewise, with `restart_errored` the trial is started over under a new id, with its config
        and metadata, and the old one is left out of `trials`. Both: resume wins. Result rows after the checkpoint are
        cut off and kept aside. Looks at every trial.
        """
        engine = self._writable()
        before = len(self._records.trial_ids)
        changed, operations = self._table.requeue(
            resume_unfinished=resume_unfinished,
            resume_errored=resume_errored,
            restart_errored=restart_errored,
        )
        engine.journal_rows(operations)
        made = set(islice(self._records.trial_ids, before, None))
        self._added |= made
        for trial_id, status in changed:
            if trial_id in made:
                engine.events.emit("trial_added", trial_id=trial_id)
            else:
                engine.events.emit("status_changed", trial_id=trial_id, status=status.value)

    # -- durability --------------------------------------------------------------------------------------------

    async def flush(self, mirror: bool = False) -> int:
        """Return when everything done above is on this disk; the seq of the commit that has it.

        A cancelled caller stops waiting; the commit goes on.

        Args:
            mirror: And in the copy, with its checkpoints: only that survives this machine. While the bucket is away
                this waits until it is back, for `sync_timeout` at most.

        Raises:
            ConfigError: `mirror=True`, and there is no `upload_dir`.
            UploadError: Something cannot be copied, or not for `sync_timeout`; it is safe on this disk.
            CaptureError: A searcher's `get_state()` failed; everything else is durable.
            FencedError, StorageError: It cannot be made durable.
        """
        engine = self._writable()
        if not mirror:
            return await engine.flush()
        if engine.mirroring is None:
            msg = "flush(mirror=True) waits for the copy in upload_dir, and this experiment has none"
            raise ConfigError(msg)
        return await engine.flush_mirror()

    async def drain(self) -> None:
        """Return when all checkpoints of this moment are in the bucket; at once where there is no `upload_dir`.

        Raises:
            UploadError: Some cannot be copied; what and why. They are tried again, also at the next opening.
        """
        await self._writable().drain()

    # -- the end -----------------------------------------------------------------------------------------------

    async def aclose(self, drain_timeout_s: float | None = None) -> None:
        """Make everything durable, end all tasks, let go of the experiment. Again: does nothing.

        A cancelled caller stops waiting; the close goes on.

        Args:
            drain_timeout_s: How long to wait for a disk that is full, for deletions, and for what is not in the bucket
                yet; `None`: as long as it takes, for the bucket `sync_timeout`.

        Raises:
            StorageError, FencedError, CaptureError: Something is not durable; the experiment is let go all the same.
            UploadError: All is durable on this disk, and not all of it in the bucket; what, and how it gets there.
        """
        if self._engine is not None and not self._engine.is_owner:
            self._engine.check()
        self._check_process()
        if self._closing is not None and self._closing.done():
            return
        self._check_loop()
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._close(drain_timeout_s))
        await asyncio.shield(self._closing)

    async def _close(self, drain_timeout_s: float | None) -> None:
        if self._engine is not None:
            await self._engine.close(drain_timeout_s)
            return
        await self._checkpoints.aclose()
        await self._reading.stop()
        assert self._reader is not None
        await self._reader.aclose()
        self._events.emit("closed")
        self._events.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            await self.aclose()
        except Exception as failed:
            # the same failure on its way out already needs no second telling
            if failed is not error:
                raise

    def _drop(self) -> None:
        if self._engine is not None:
            self._engine.forget()
        else:
            self._reading.cancel_soon()

    def __del__(self, _warn: Any = warnings.warn) -> None:
        if getattr(self, "_closing", self) is not None or os.getpid() != self._pid:
            return
        _warn(
            f"{self!r} was never closed; use `async with`, or `await store.aclose()`",
            ResourceWarning,
            source=self,
        )
        self._drop()
