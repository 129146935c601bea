"""What the tests of the mirror share: a driver that has a journal and a mirror, and a clock that does not wait."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from asynctune.clock import Clock, SystemClock
from asynctune.files import LocalFiles
from asynctune.state.epochs import claim_epoch, list_epochs
from asynctune.state.journal import Batch, Journal
from asynctune.state.mirror.claiming import Claimed, claim_mirror
from asynctune.state.mirror.installing import install, is_being_replaced
from asynctune.state.mirror.mirror import StateMirror
from asynctune.state.mirror.offline import Identity
from asynctune.state.mirror.relations import Position
from asynctune.state.recovered import Recovered
from asynctune.state.recovery import recover
from asynctune.state.snapshot import write_snapshot
from asynctune.storage.base import ObjectStorage

NODE_IP = "192.0.2.7"


class QuickClock(SystemClock):
    """Time that jumps over each wait: what has to wait lets others run first, and does not take long."""

    def __init__(self, rounds: int = 10) -> None:
        self._ahead = 0.0
        self._rounds = rounds

    def monotonic(self) -> float:
        return super().monotonic() + self._ahead

    async def sleep(self, seconds: float) -> None:
        for _ in range(self._rounds):
            await asyncio.sleep(0)
        self._ahead += max(0.0, seconds)

    async def wait(self, event: asyncio.Event, seconds: float | None) -> bool:
        if seconds is None:
            return await event.wait()
        for _ in range(self._rounds):
            if event.is_set():
                return True
            await asyncio.sleep(0)
        self._ahead += max(0.0, seconds)
        return event.is_set()


@dataclass
class Told:
    """An observer that keeps what it is told."""

    events: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)
    projected: list[int] = field(default_factory=list)

    def happened(self, kind: str, message: str, **data: Any) -> None:
        self.events.append((kind, message, data))

    async def project(self, seq: int) -> None:
        self.projected.append(seq)

    def kinds(self, *, but: str = "mirrored") -> list[str]:
        return [kind for kind, _, _ in self.events if kind != but]


def local_position(directory: str) -> Position | None:
    """Where the local copy stands; blocking."""
    if not os.path.isdir(directory) or is_being_replaced(directory, LocalFiles()):
        return None
    found = recover(directory, LocalFiles())
    return Position(found.experiment_id, found.history, found.seq, found.crc)


class Driver:
    """One opening for writing, with a local journal and a mirror. Made by `opened`."""

    def __init__(
        self,
        directory: str,
        storage: ObjectStorage,
        claimed: Claimed | None,
        journal: Journal,
        recovered: Recovered,
        clock: Clock,
        name: str,
        files: LocalFiles,
    ) -> None:
        self.directory = directory
        self.storage = storage
        self.claimed = claimed
        self.journal = journal
        self.recovered = recovered
        self.records = dict(recovered.records)
        self.claim = journal.claim
        self.name = name
        self.told = Told()
        self.identity = Identity(journal.experiment_id, journal.claim, journal.history, NODE_IP)
        self.mirror = StateMirror(
            storage,
            claimed,
            identity=self.identity,
            committed_seq=journal.seq,
            state_dir=directory,
            files=files,
            clock=clock,
            observer=self.told,
            quiet_s=0.0,
            rng=random.Random(1),
        )
        self.mirror.settled()  # no record here says anything of the bucket
        self.task: asyncio.Task[None] | None = None

    def start(self) -> Driver:
        self.task = asyncio.ensure_future(self.mirror.run())
        return self

    async def commit(
        self, puts: dict[str, bytes] | None = None, rows: tuple[bytes, ...] = (), **options: Any
    ) -> int:
        """One commit, durable here, and told to the mirror."""
        seq = self.journal.seq + 1
        batch = Batch(seq, {f"commit/{seq}": self.name.encode(), **(puts or {})}, rows=list(rows), **options)
        kept = dict(batch.puts)
        await asyncio.to_thread(self.journal.commit, batch)
        self.records |= kept
        self.mirror.committed(seq)
        return seq

    async def commits(self, count: int, size: int = 20) -> int:
        for number in range(count):
            await self.commit({f"run/{number % 7}": os.urandom(size)}, rows=(b"row %d" % self.journal.seq,))
        return self.journal.seq

    async def snapshot(self, *, prune: bool = False) -> int:
        """A local snapshot, and what `Generations` removes after it."""

        def write() -> tuple[int, int]:
            journal = self.journal
            image = journal.capture()
            size = write_snapshot(
                self.directory,
                image,
                experiment_id=journal.experiment_id,
                claim=journal.claim,
                history=journal.history,
                files=LocalFiles(),
            )
            if prune:
                journal.prune(image.seq)
            return image.seq, size

        seq, size = await asyncio.to_thread(write)
        self.mirror.snapshot_written(seq, size)
        return seq

    async def kill(self) -> None:
        """End without a word."""
        if self.task is not None:
            self.task.cancel()
            await asyncio.wait([self.task])
            if not self.task.cancelled():
                self.task.exception()  # seen
        await self.mirror.aclose()
        await asyncio.to_thread(self.journal.close)

    async def close(self, timeout_s: float | None = None) -> bool:
        try:
            return await self.mirror.close(timeout_s)
        finally:
            await self.kill()


async def opened(
    directory: str,
    storage: ObjectStorage,
    *,
    name: str = "driver",
    clock: Clock | None = None,
    offline: bool = False,
    quiet_s: float = 0.0,
    files: LocalFiles | None = None,
    start: bool = True,
    **options: Any,
) -> Driver:
    """Open as the store does: the bucket's claim first, then the local one, then what is there."""
    clock = clock or QuickClock()
    files = files or LocalFiles()
    os.makedirs(directory, exist_ok=True)
    local = await asyncio.to_thread(local_position, directory)
    epochs = await asyncio.to_thread(list_epochs, directory, LocalFiles())
    claimed: Claimed | None = None
    if not offline:
        claimed = await claim_mirror(
            storage,
            local,
            clock=clock,
            node_ip=NODE_IP,
            at_least=epochs[-1] + 1 if epochs else 1,
            quiet_s=quiet_s,
            is_dead=lambda _claim: False,
            **options,
        )

    def begin() -> tuple[Journal, Recovered]:
        if claimed is None:
            claim = claim_epoch(directory, files, clock, local.epoch + 1 if local is not None else 1)
        else:
            claim = claim_epoch(directory, files, clock, given=claimed.claim)
            if claimed.mirrored is not None:
                install(
                    directory,
                    claimed.mirrored,
                    claim=claim,
                    history=claimed.history,
                    node_ip=NODE_IP,
                    files=files,
                )
        found = recover(directory, files)
        history = [*found.history, (claim.epoch, claim.nonce, found.seq)]
        journal = Journal(
            directory,
            experiment_id=(claimed.experiment_id if claimed else found.experiment_id) or "e4be1c0f",
            claim=claim,
            node_ip=NODE_IP,
            history=history if claimed is None else claimed.history,
            records=dict(found.records),
            seq=found.seq,
            crc=found.crc,
            files=files,
            clock=clock,
        )
        journal.start_segment()
        return journal, found

    journal, found = await asyncio.to_thread(begin)
    driver = Driver(directory, storage, claimed, journal, found, clock, name, files)
    return driver.start() if start else driver


@asynccontextmanager
async def driving(directory: str, storage: ObjectStorage, **options: Any) -> AsyncIterator[Driver]:
    """`opened`, and killed at the end."""
    driver = await opened(directory, storage, **options)
    try:
        yield driver
    finally:
        await driver.kill()


async def until(condition: Callable[[], object]) -> None:
    """Until it holds; what it is about happens in threads, too."""
    while not condition():  # noqa: ASYNC110 - there is no event that tells it
        await asyncio.sleep(0.001)


async def until_async(condition: Callable[[], Awaitable[object]]) -> None:
    """The same for what has to be asked."""
    while not await condition():  # noqa: ASYNC110 - likewise
        await asyncio.sleep(0.001)
