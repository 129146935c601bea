"""Records, bucket and disk under any order of saves, faults, deaths and takeovers."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from asynctune.config import CheckpointConfig
from asynctune.errors import CheckpointNotFoundError, StorageError, UploadError
from asynctune.storage.memory_bucket import MemoryBucket
from asynctune.trial import MANIFEST_FILE
from tests.checkpoints.buckets import BucketRoom, Mirror, wrong_with
from tests.checkpoints.fakes import MemorySink, read_tree, tree, where

T = TypeVar("T")

TRIALS = ("a", "b")


class Openings(RuleBasedStateMachine):
    """One experiment, opened again and again, here and elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.home = Path(tempfile.mkdtemp(prefix="asynctune-machine-"))
        self.runner = asyncio.Runner()
        self.held = MemoryBucket()
        self.content: dict[tuple[str, int], dict[str, bytes]] = {}
        self.saves = 0
        self.disks = 0
        self.epoch = 0
        self.room: BucketRoom | None = None
        self.disturbed = False

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    @property
    def now(self) -> BucketRoom:
        assert self.room is not None
        return self.room

    # -- openings ------------------------------------------------------------------------------------

    @initialize(keep=st.sampled_from([None, 1, 2]), tasks=st.integers(1, 2))
    def begin(self, keep: int | None, tasks: int) -> None:
        self.config = CheckpointConfig(num_to_keep=keep, checkpoint_score_attribute="acc")
        self.tasks = tasks
        self.run(self._open(MemorySink(), {}, from_bucket=False))

    async def _open(self, sink: MemorySink, named: dict[str, bytes], *, from_bucket: bool) -> None:
        self.epoch += 1
        self.room = BucketRoom(
            self.home / f"disk{self.disks}",
            held=self.held,
            sink=sink,
            mirror=Mirror(sink, named),
            epoch=self.epoch,
            config=self.config,
            options={"max_concurrency": self.tasks},
        )
        await self.room.__aenter__()
        self.room.watch()
        report = await self.room.catalog.reconcile(TRIALS, from_bucket=from_bucket)
        assert from_bucket or not (report.lost or report.revived)
        for key in report.lost:  # again, if CURRENT was not told the first time
            self.content.pop(key, None)
        await self.room.catalog.settle({trial: trial for trial in TRIALS}.get)
        self.disturbed = False

    async def _kill(self) -> MemorySink:
        sink = await self.now.kill()
        await self.now.catalog.abandon()
        return sink

    @rule()
    def die_and_open_again(self) -> None:
        async def both() -> None:
            sink = await self._kill()
            await self._open(sink, self.now.mirror.named, from_bucket=False)

        self.run(both())

    @rule(swap=st.booleans())
    def open_elsewhere(self, swap: bool) -> None:
        async def both() -> None:
            if swap:
                self.now.mirror.swap()
            await self._kill()
            named = dict(self.now.mirror.named)
            sink = MemorySink()
            sink.records, sink.durable = dict(named), dict(named)
            self.disks += 1
            kept = {key for key in self.content if f"checkpoint/{key[0]}/{key[1]}" in named}
            self.content = {key: value for key, value in self.content.items() if key in kept}
            await self._open(sink, named, from_bucket=True)

        self.run(both())

    @precondition(lambda self: not self.disturbed)
    @rule()
    def close_and_open_again(self) -> None:
        async def both() -> None:
            left = await self.now.catalog.aclose()
            assert not left
            await self.now.end()
            self._check_bucket()
            await self._open(self.now.sink.crashed(), self.now.mirror.named, from_bucket=False)

        self.run(both())

    # -- work ----------------------------------------------------------------------------------------

    @rule(trial=st.sampled_from(TRIALS), acc=st.integers(0, 3))
    def save(self, trial: str, acc: int) -> None:
        self.saves += 1
        content = {"number": str(self.saves).encode(), "model/weights": bytes([self.saves % 256]) * 700}
        source = tree(self.home / f"source{self.saves}", content)
        # As the store has it: a plain name in the first opening only.
        plain = self.epoch == 1
        saved = self.run(self.now.save(trial, source, metrics={"acc": acc}, plain=plain, move=True))
        assert saved.step is not None
        self.content[trial, saved.step] = content

    @rule()
    def drain(self) -> None:
        async def drain() -> None:
            try:
                await self.now.catalog.drain()
            except UploadError:
                assert self.disturbed
                return
            assert self.now.catalog.uploads.pending == 0

        self.run(drain())

    @rule()
    def let_deletions_go_on(self) -> None:
        self.run(self.now.deleted())

    @rule()
    def let_it_run(self) -> None:
        self.run(asyncio.sleep(0.002))

    @rule()
    def name(self) -> None:
        self.now.mirror.swap()

    @rule(trial=st.sampled_from(TRIALS))
    def restore_every_one(self, trial: str) -> None:
        async def restore() -> None:
            for listed in self.now.catalog.list(trial):
                assert listed.step is not None
                try:
                    restored = await self.now.catalog.restore(trial, listed.step)
                except StorageError:
                    assert self.disturbed
                    continue
                except CheckpointNotFoundError:  # retired meanwhile: its upload has just ended
                    assert listed.step not in self.now.steps(trial)
                    continue
                assert read_tree(where(restored)) == self.content[trial, listed.step]
            self.now.catalog.release(trial)

        self.run(restore())

    # -- trouble -------------------------------------------------------------------------------------

    @rule(nth=st.integers(1, 8), applied=st.booleans(), retryable=st.booleans())
    def an_operation_will_fail(self, nth: int, applied: bool, retryable: bool) -> None:
        self.now.storage.fail(StorageError("no", retryable=retryable), nth=nth, applied=applied)
        self.disturbed = True

    @invariant()
    def what_records_say_is_true(self) -> None:
        if self.room is not None:
            self.room.check()

    @invariant()
    def what_is_listed_was_saved(self) -> None:
        if self.room is not None:
            for trial in TRIALS:
                for step in self.room.steps(trial):
                    assert (trial, step) in self.content

    # -- the end -------------------------------------------------------------------------------------

    def _check_bucket(self) -> None:
        """Nothing is pending: each live checkpoint is there; what retention gave up is not."""
        for trial in TRIALS:
            for record in self.now.catalog._context.records.all(trial):
                assert record.mirrored
                assert not record.bucket_deleting
                assert wrong_with(record, self.held) is None
                # Retired ones stay only as long as nothing newer or better is there.
                assert not record.deleting or self.config.num_to_keep is None

    def teardown(self) -> None:
        try:
            if self.room is not None:
                self.run(self._finish())
        finally:
            self.runner.close()
            shutil.rmtree(self.home)

    async def _finish(self) -> None:
        room = self.now
        room.storage.heal()
        room.watch()
        while True:
            try:
                await room.catalog.drain()
                break
            except UploadError:
                continue
        await room.settled()
        self._check_bucket()
        expected = {
            f"{record.directory}/{name}"
            for trial in TRIALS
            for record in room.catalog._context.records.all(trial)
            for name in [*record.files, MANIFEST_FILE]
        }
        assert expected <= set(room.names())
        if self.disks == 0:  # else what CURRENT never named may be left, which `inspect gc` finds
            assert expected == set(room.names())
            assert not self.held.uploads
        await room.catalog.aclose()
        await room.end()


TestOpenings = Openings.TestCase
TestOpenings.settings = settings(max_examples=max(15, settings().max_examples // 4), stateful_step_count=25)
