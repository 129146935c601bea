"""A bucket beside a room: a storage in memory with faults, a mirror that names commits, and how they have to fit."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Final

import google_crc32c

from asynctune.checkpoints.bucket import Bucket
from asynctune.checkpoints.manifest import Manifest, digest_of
from asynctune.checkpoints.mirroring import BucketCopies
from asynctune.checkpoints.records import CheckpointRecord
from asynctune.clock import Clock, SystemClock
from asynctune.packing import unpack
from asynctune.storage.memory import MemoryStorage
from asynctune.storage.memory_bucket import MemoryBucket
from asynctune.storage.notes import UploadNotes
from asynctune.storage.transfer import Transfer
from asynctune.storage.values import UploadRules
from asynctune.testing import FaultyStorage
from asynctune.trial import MANIFEST_FILE
from tests.checkpoints.fakes import MemorySink, Room

RULES: Final = UploadRules(min_part_bytes=16, max_part_bytes=1 << 20, max_parts=100, max_put_bytes=1 << 20)
PART_BYTES: Final = 256
PUT_BYTES: Final = 300


class QuickClock(SystemClock):
    """Nobody sleeps: the time goes on by as much instead."""

    def __init__(self) -> None:
        self._slept = 0.0
        self.dead = False
        """Nobody waits long for a good end."""

    def timeout(self, seconds: float | None) -> AbstractAsyncContextManager[object]:
        return super().timeout(min(seconds or 0.0, 0.001) if self.dead else seconds)

    def monotonic(self) -> float:
        return super().monotonic() + self._slept

    async def sleep(self, seconds: float) -> None:
        self._slept += max(0.0, seconds)
        await asyncio.sleep(0)

    async def wait(self, event: asyncio.Event, seconds: float | None) -> bool:
        if seconds is None:
            return await event.wait()
        if not await super().wait(event, min(seconds, 0.002)):
            self._slept += seconds
        return event.is_set()


class Mirror:
    """CURRENT, as far as checkpoints see it. It names what is durable as late as it may: when somebody waits for it."""

    def __init__(self, sink: MemorySink, named: Mapping[str, bytes] | None = None) -> None:
        self.sink = sink
        self.named: dict[str, bytes] = dict(named or {})
        self.error: Exception | None = None
        self.waiting = asyncio.Semaphore(0)
        """Released once for each call that waits."""
        self.open = asyncio.Event()
        self.open.set()
        self.swaps = 0

    async def reached(self, seq: int) -> None:
        self.waiting.release()
        await self.open.wait()
        if self.error is not None:
            raise self.error
        assert self.sink.commits >= seq
        self.swap()

    def swap(self) -> None:
        self.named = dict(self.sink.durable)
        self.swaps += 1


class BucketRoom(Room):
    """A room with a bucket."""

    def __init__(
        self,
        path: Path,
        *,
        held: MemoryBucket | None = None,
        sink: MemorySink | None = None,
        mirror: Mirror | None = None,
        clock: Clock | None = None,
        rules: UploadRules = RULES,
        claimed: asyncio.Event | None = None,
        options: Mapping[str, Any] | None = None,
        timeout_s: float = 5.0,
        notes: bool = True,
        **others: Any,
    ) -> None:
        self.held = MemoryBucket() if held is None else held
        self.storage = FaultyStorage(MemoryStorage(self.held, rules=rules))
        made = MemorySink() if sink is None else sink
        self.mirror = Mirror(made) if mirror is None else mirror
        self.clock = time = QuickClock() if clock is None else clock
        written = (
            UploadNotes(str(path / ".asynctune/uploads"), location=self.storage.location) if notes else None
        )
        self.transfer = Transfer(
            self.storage,
            clock=time,
            notes=written,
            part_bytes=PART_BYTES,
            put_bytes=PUT_BYTES,
            timeout_s=timeout_s,
            rng=random.Random(7),
        )
        self.copies = BucketCopies(self.storage, self.transfer, notes=written)
        settings = dict(options or {})
        if claimed is not None:
            settings["claimed"] = claimed.wait
        bucket = Bucket(copies=self.copies, reached=self.mirror.reached, **settings)
        super().__init__(path, sink=made, clock=time, bucket=bucket, **others)

    async def __aexit__(self, *exc: object) -> None:
        if exc[0] is not None:  # what a failed test has left hanging
            self.storage.heal()
            self.mirror.open.set()
            self.sink.gate.set()
        try:
            await super().__aexit__(*exc)
        finally:
            self.copies.close()
            self.transfer.close()

    async def kill(self) -> MemorySink:
        """Everything that was only in memory is gone; what the next opening finds."""
        left = self.sink.crashed()
        if isinstance(self.clock, QuickClock):
            self.clock.dead = True
        self.storage.hang(lasting=True)  # nothing reaches the bucket any more
        self.sink.gate.clear()
        self.mirror.open.clear()
        if self._run is not None:
            self._run.cancel()
            await asyncio.gather(self._run, return_exceptions=True)
        self.copies.close()
        self.transfer.close()
        return left

    async def settled(self) -> None:
        """Wait until nothing is left to be deleted, here and in the bucket."""
        side = self.catalog._side
        assert side is not None
        await self.deleted()
        while side._deletions.pending:
            await quiet(1)
            await self.deleted()

    def record(self, step: int, trial_id: str = "t") -> CheckpointRecord:
        found = self.catalog._context.records.get(trial_id, step)
        assert found is not None
        return found

    def stored(self, step: int, trial_id: str = "t") -> dict[str, Any]:
        """The fields of a record as the disk has it."""
        found = self.sink.crashed().get(f"checkpoint/{trial_id}/{step}")
        assert found is not None
        return dict(found)

    async def end(self, *, cancel: bool = False) -> None:
        """Wait for the end of `run`, after a close or failure that the test made itself."""
        assert self._run is not None
        if cancel:
            self._run.cancel()
            await asyncio.gather(self._run, return_exceptions=True)
        else:
            await self._run
        self.copies.close()
        self.transfer.close()

    def states(self, trial_id: str = "t") -> dict[int, str]:
        """What the records say: `live` or `deleting`, and `+` for a copy in the bucket, `-` while that is deleted."""
        found = {}
        for record in self.catalog._context.records.all(trial_id):
            state = "deleting" if record.deleting else "live"
            sign = "-" if record.bucket_deleting else "+" if record.mirrored else ""
            found[record.step] = state + sign
        return found

    def names(self) -> list[str]:
        return sorted(self.held.objects)

    def trees(self) -> list[str]:
        """Directories in the bucket that hold a manifest."""
        return sorted(key.rpartition("/")[0] for key in self.held.objects if key.endswith(MANIFEST_FILE))

    def check(self) -> None:
        """What records say to be in the bucket is there, whole: here, on the disk, and in CURRENT."""
        for records in (self.sink.records, self.sink.durable, self.mirror.named):
            check_fits(records, self.held)

    def watch(self) -> None:
        """Check before every operation of the storage, and around every commit."""
        self.storage.call(lambda _call: self.check(), lasting=True)
        inner = MemorySink.commit

        async def commit() -> int:
            self.check()
            seq = await inner(self.sink)
            self.check()
            return seq

        self.sink.commit = commit  # type: ignore[method-assign]


async def quiet(rounds: int = 30) -> None:
    """Let threads and tasks do what they are about to do: to see that something does not happen."""
    for _ in range(rounds):
        await asyncio.sleep(0.001)


def record(step: int, state: str = "live+", acc: float = 0.0) -> CheckpointRecord:
    """A record as `BucketRoom.states` spells it."""
    return CheckpointRecord(
        trial_id="t",
        step=step,
        directory=f"t/checkpoint_{step:06d}",
        manifest_sha256="ab" * 32,
        files={"a": 1},
        size_bytes=1,
        committed_at=0.0,
        metrics={"acc": acc},
        epoch=1,
        attempt=0,
        mirrored=state[-1] in "+-",
        deleting=state.startswith("deleting"),
        bucket_deleting=state.endswith("-"),
    )


def records_in(packed: Mapping[str, bytes]) -> Iterable[CheckpointRecord]:
    for key, value in packed.items():
        _, trial_id, step = key.split("/")
        yield CheckpointRecord.from_value(trial_id, int(step), unpack(value))


def check_fits(packed: Mapping[str, bytes], held: MemoryBucket) -> None:
    """Whoever takes these records for true finds a whole checkpoint where they say so."""
    for record in records_in(packed):
        assert record.deleting or not record.bucket_deleting
        if record.mirrored and not record.bucket_deleting:
            problem = wrong_with(record, held)
            assert problem is None, f"checkpoint {record.step} of {record.trial_id}: {problem}"


def wrong_with(record: CheckpointRecord, held: MemoryBucket) -> str | None:
    encoded = content(held, f"{record.directory}/{MANIFEST_FILE}")
    if encoded is None:
        return "it has no manifest in the bucket"
    if digest_of(encoded) != record.manifest_sha256:
        return "it has another manifest"
    for file in Manifest.decode(encoded).files:
        data = content(held, f"{record.directory}/{file.path}")
        if data is None:
            return f"{file.path} is missing"
        if len(data) != file.size_bytes or google_crc32c.value(data) != file.crc32c:
            return f"{file.path} is another"
    return None


def content(held: MemoryBucket, key: str) -> bytes | None:
    there = held.objects.get(key)
    return None if there is None else b"".join(there[1].chunks)
