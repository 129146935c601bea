"""Several drivers on one bucket, in a random order of events, with a bucket that fails at random.

`simulate(seed)` plays one interleaving and checks what has to hold in each:

- of all drivers exactly one goes on, and the others are fenced (or were refused when they opened);
- every commit that a `flush` acknowledged is in what the bucket holds at the end, with the content its driver gave it;
- what the bucket holds is at any time one of the states that some driver had, and never a mixture.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import dataclass, field
from unittest.mock import patch

from asynctune.errors import ExperimentLockedError, FencedError, StorageError
from asynctune.state.mirror import planning
from asynctune.state.mirror.journal_runs import JournalRuns
from asynctune.state.mirror.reading import read_mirror
from asynctune.storage.memory import MemoryStorage
from asynctune.storage.memory_bucket import MemoryBucket
from asynctune.testing import FaultyStorage
from asynctune.testing.storage_faults import StorageCall
from tests.state.mirror.world import Driver, QuickClock, opened

_MOST_STEPS = 6
_FAULTS = 0.08
_OPENINGS = 6


@dataclass
class Played:
    """How one interleaving came out."""

    outcomes: Counter[str] = field(default_factory=Counter)
    acknowledged: int = 0


class Bucket:
    """The storages of all drivers: each has its own faults, and all have the same objects."""

    def __init__(self, rng: random.Random, *, conditions: bool = True) -> None:
        self._rng = rng
        self._bucket = MemoryBucket()
        self._conditions = conditions
        self.quiet = False

    def plain(self) -> MemoryStorage:
        return MemoryStorage(self._bucket, supports_conditions=self._conditions)

    def storage(self) -> FaultyStorage:
        faulty = FaultyStorage(self.plain())

        async def shake(call: StorageCall) -> None:
            for _ in range(self._rng.randrange(6)):
                await asyncio.sleep(0)
            if self.quiet or self._rng.random() > _FAULTS:
                return
            kind = self._rng.choice(("before", "after", "own copy"))
            if kind == "own copy" and call.operation == "put":
                faulty.conflict(on="put", applied=True)
            else:
                faulty.fail(on=call.operation, applied=kind == "after")

        # a fault that is set in a call strikes the next operation of that kind, which may be a reading back
        faulty.call(shake, lasting=True)
        return faulty


class Player:
    """One driver's life: it opens, commits, flushes, and ends."""

    def __init__(self, name: str, directory: str, bucket: Bucket, rng: random.Random, played: Played) -> None:
        self.name = name
        self.directory = directory
        self.bucket = bucket
        self.rng = rng
        self.played = played
        self.driver: Driver | None = None
        self.fenced = False
        self.acknowledged: dict[int, str] = {}

    async def live(self) -> None:
        clock = QuickClock(rounds=2)
        # together, or when another is in the middle of its life
        for _ in range(self.rng.choice((0, 20, 200, 1000, 3000))):
            await asyncio.sleep(0)
        storage = self.bucket.storage()
        for _ in range(_OPENINGS):
            try:
                self.driver = await opened(self.directory, storage, name=self.name, clock=clock)
                break
            except ExperimentLockedError:
                self.played.outcomes["refused"] += 1
                return
            except StorageError:
                self.played.outcomes["bucket away at the opening"] += 1
        if self.driver is None:
            return
        try:
            for _ in range(self.rng.randint(1, _MOST_STEPS)):
                await self._step(self.driver)
        except FencedError:
            self.fenced = True

    async def _step(self, driver: Driver) -> None:
        size = self.rng.choice((20, 20, 20, 70_000))
        seq = 0
        for _ in range(self.rng.randint(1, 3)):
            puts = {f"by/{self.name}": b"%d" % driver.journal.seq, "big": self.rng.randbytes(size)}
            seq = await driver.commit(puts, rows=(b"row",))
        if self.rng.random() < 0.3:
            await driver.snapshot(prune=self.rng.random() < 0.5)
        if self.rng.random() < 0.3:  # the result files have been brought there
            driver.mirror.projected(self.rng.randint(0, driver.mirror.mirrored_seq))
        if self.rng.random() < 0.7:
            await driver.mirror.flush(seq)
            self._promised(driver, seq)
        for _ in range(self.rng.randrange(20)):
            await asyncio.sleep(0)

    def _promised(self, driver: Driver, seq: int) -> None:
        for each in range(driver.recovered.seq + 1, seq + 1):
            self.acknowledged[each] = self.name
        self.played.acknowledged += 1

    async def goes_on(self) -> bool:
        """Whether it can still bring something into the bucket."""
        if self.driver is None or self.fenced:
            return False
        try:
            seq = await self.driver.commit({f"by/{self.name}": b"last"}, rows=(b"row",))
            await self.driver.mirror.flush(seq)
        except FencedError:
            self.fenced = True
            return False
        self._promised(self.driver, seq)
        return True

    async def end(self) -> None:
        if self.driver is not None:
            await self.driver.kill()


async def simulate(directory: str, seed: int, *, drivers: int = 2, conditions: bool = True) -> Played:
    """Play one interleaving; what has to hold is asserted.

    Without conditions it is less: what one of two acknowledged, that did not know of each other yet, may be lost.

    Snapshots are worth it, and pieces are full, after a few commits, so that all of it happens in a short life.
    """
    with (
        patch.object(planning, "_MIN_JOURNAL_BYTES", 1000),
        patch.object(JournalRuns.read, "__defaults__", (100_000,)),
    ):
        return await _simulate(directory, seed, drivers, conditions=conditions)


async def _simulate(directory: str, seed: int, drivers: int, *, conditions: bool) -> Played:
    rng = random.Random(seed)
    played = Played()
    bucket = Bucket(rng, conditions=conditions)
    players = [
        Player(f"driver {number}", f"{directory}/machine-{number}", bucket, rng, played)
        for number in range(drivers)
    ]
    try:
        async with asyncio.TaskGroup() as group:
            for player in players:
                group.create_task(player.live())
            group.create_task(_look(bucket, players, rng))
        bucket.quiet = True
        alive = [player for player in players if player.driver is not None and not player.fenced]
        went_on = [player for player in alive if await player.goes_on()]
        found = await read_mirror(bucket.plain(), rows_after=lambda _records, current: current.projected)
        owners = [player for player in players if player.driver is not None]
        if owners:
            _check_end(players, went_on, found, conditions=conditions)
        played.outcomes["went on"] += len(went_on)
        played.outcomes["fenced"] += sum(player.fenced for player in players)
    finally:
        for player in players:
            await player.end()
    return played


def _check_end(players, went_on, found, *, conditions: bool) -> None:
    assert len(went_on) <= 1, [player.name for player in went_on]
    assert found is not None
    records = found.recovered.records
    if went_on:
        driver = went_on[0].driver
        assert driver is not None
        assert same_owner_is(found.current, driver)
        assert records == driver.records
    else:
        # the last owner was killed by its own opening: claimed, and then refused
        assert all(player.fenced or player.driver is None for player in players)
    for player in players if conditions else []:
        for seq, name in player.acknowledged.items():
            assert records[f"commit/{seq}"] == name.encode(), f"commit {seq} of {name} is lost"
    rows = [at for part in found.recovered.rows for at, _ in part]
    assert rows == list(range(found.current.projected + 1, found.recovered.seq + 1))


def same_owner_is(current, driver: Driver) -> bool:
    return (current.claim.epoch, current.claim.nonce) == (driver.claim.epoch, driver.claim.nonce)


async def _look(bucket: Bucket, players: list[Player], rng: random.Random) -> None:
    """A reader beside: whatever it finds is whole."""
    for _ in range(3):
        for _ in range(rng.randrange(60)):
            await asyncio.sleep(0)
        found = await read_mirror(bucket.plain(), clock=QuickClock(rounds=2))
        if found is None:
            continue
        records = found.recovered.records
        wrote = [records[f"commit/{seq}"] for seq in range(1, found.recovered.seq + 1)]
        assert set(wrote) <= {player.name.encode() for player in players}
