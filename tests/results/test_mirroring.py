"""Result files get to the mirror: when, which, how many at once, and after failures."""

from __future__ import annotations

import asyncio
import errno
import os
import re
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from asynctune.errors import AuthenticationError, ConfigError, CorruptStateError, FencedError, StorageError
from asynctune.results.freezing import is_result_file
from asynctune.results.mirroring import ResultUploads
from asynctune.results.projector import ResultFiles
from asynctune.results.rows import Announce, Cut, TrialInfo, encode
from asynctune.storage.memory import MemoryStorage
from asynctune.storage.transfer import Transfer
from asynctune.storage.values import ObjectInfo
from asynctune.testing import FaultyFiles, FaultyStorage, ManualClock
from tests.results.world import OPENING, row, trial


class World:
    """An experiment's result files and their mirror."""

    def __init__(
        self,
        root: Path,
        *,
        period_s: float = 300,
        at_once: int = 8,
        finish: Any = None,
        named: Any = None,
    ) -> None:
        self.root = root
        self.disk = FaultyFiles()
        self.clock = ManualClock()
        self.storage = FaultyStorage(MemoryStorage())
        # in real time: that moves by hand while a thread reads a file, which is no reason to give a put up
        self.transfer = Transfer(self.storage)
        self.heard: list[str] = []
        self.covered: list[int] = []
        (root / ".asynctune").mkdir()
        self.results = ResultFiles(
            str(root),
            files=self.disk,
            clock=self.clock,
            emit=lambda kind, **_: None,
            written=self.written,
        )
        self.uploads = ResultUploads(
            self.transfer,
            self.results,
            root=str(root),
            stage_dir=str(root / ".asynctune/frozen"),
            files=self.disk,
            clock=self.clock,
            emit=lambda kind, **_: self.heard.append(kind),
            period_s=period_s,
            covered=self.covered.append,
            finish=finish,
            named=named,
            at_once=at_once,
        )
        self.seq = 0

    def written(self, trial_name: str) -> None:
        self.uploads.changed(trial_name)

    async def write(self, *operations: Any) -> None:
        self.add(*operations)
        await self.results.flush()

    def add(self, *operations: Any) -> int:
        self.seq += 1
        self.results.add(self.seq, [encode(each) for each in operations], self.lookup, OPENING)
        return self.seq

    def lookup(self, trial_id: str) -> TrialInfo:
        return trial(trial_id)

    async def there(self) -> dict[str, bytes]:
        """What the mirror has."""
        storage = self.storage.storage
        keys = [each.key async for each in storage.list_objects() if isinstance(each, ObjectInfo)]
        return {key: (await storage.read(key)).data for key in keys}

    def here(self) -> dict[str, bytes]:
        """What it should have."""
        return {
            str(path.relative_to(self.root)): path.read_bytes()
            for path in self.root.glob("*/*")
            if is_result_file(path.name)
        }

    @property
    def puts(self) -> list[str]:
        return [each.key for each in self.storage.log if each.operation == "put"]

    async def until(self, met: Any, seconds: float = 0.0) -> None:
        """Let tasks, threads and the clock run until `met()`."""
        for _ in range(5000):
            if met():
                return
            await self.clock.advance(seconds)
            await asyncio.sleep(0.001)
        raise AssertionError("it does not happen")


@asynccontextmanager
async def opened(world: World, *, running: bool = False):
    await world.uploads.begin()
    async with asyncio.TaskGroup() as tasks:
        if running:
            tasks.create_task(world.uploads.run())
        try:
            yield world
        finally:
            world.disk.heal()
            world.storage.heal()
            await world.uploads.aclose()
            await world.results.aclose()
            world.transfer.close()
    assert not os.listdir(world.root / ".asynctune/frozen"), "no copy is left"


async def test_everything_that_was_committed_is_there(tmp_path):
    async with opened(World(tmp_path)) as world:
        world.add(Announce(trial_id="t1"), row(1), row(1, trial_id="t2"))
        world.add(row(2))
        assert await world.uploads.project() == 2
        assert world.uploads.covered_seq == 2
        assert world.covered == [2]
        assert await world.there() == world.here()
        assert set(world.here()) == {
            f"name_{trial_id}/{name}"
            for trial_id in ("t1", "t2")
            for name in ("params.json", "progress.csv", "result.json")
        }
        files, size = world.uploads.sent
        assert (files, size) == (6, sum(map(len, world.here().values())))
        assert (world.uploads.pending, world.heard) == (0, [])


async def test_only_what_has_changed_is_sent_again(tmp_path):
    async with opened(World(tmp_path)) as world:
        world.add(Announce(trial_id="t1"), Announce(trial_id="t2"), row(1), row(1, trial_id="t2"))
        await world.uploads.project()
        world.storage.log.clear()
        assert await world.uploads.project() == 1
        world.uploads.changed("name_t2")
        await world.uploads.project()
        assert world.puts == []
        world.add(row(2))
        await world.uploads.project()
        assert world.puts == ["name_t1/progress.csv", "name_t1/result.json"]


async def test_what_is_covered_already_is_not_looked_at(tmp_path):
    async with opened(World(tmp_path)) as world:
        world.add(row(1))
        assert await world.uploads.project(1) == 1
        world.add(row(2))
        world.storage.log.clear()
        assert await world.uploads.project(1) == 1
        assert world.puts == []
        assert await world.uploads.project(2) == 2


async def test_cut_rows_logs_and_events_are_there_and_nothing_else(tmp_path):
    async with opened(World(tmp_path)) as world:
        world.add(Announce(trial_id="t1"), row(1), row(2), row(3))
        await world.results.flush()
        for name in ("stdout", "stderr", "weights.bin", "events.out.tfevents.1.oak.asynctune"):
            (tmp_path / "name_t1" / name).write_bytes(name.encode())
        (tmp_path / "name_t1/checkpoint_000001").mkdir()
        (tmp_path / "name_t1/checkpoint_000001/result.json").write_bytes(b"of the user")
        world.add(Cut(trial_id="t1", keep=1), row(2, at=20.0))
        await world.uploads.project()
        there = await world.there()
        assert there == world.here()
        assert {key.partition("/")[2] for key in there} == {
            *("params.json", "progress.csv", "result.json", "result.cut-1.json"),
            *("stdout", "stderr", "events.out.tfevents.1.oak.asynctune"),
        }


async def test_no_more_often_than_the_period_and_at_its_boundary(tmp_path):
    async with opened(World(tmp_path, period_s=60), running=True) as world:
        await world.write(row(1))
        await world.until(lambda: world.uploads.covered_seq == 1)
        began = world.clock.monotonic()
        for number in range(2, 12):
            await world.write(row(number))
            await world.clock.advance(5.9)
        assert world.uploads.covered_seq == 1
        assert 58 < world.clock.monotonic() - began < 60
        await world.clock.advance(60 - (world.clock.monotonic() - began))
        await world.until(lambda: world.uploads.covered_seq == 11)
        world.storage.log.clear()
        await world.clock.advance(1000)
        assert world.puts == [], "nothing has changed"


async def test_a_pass_on_request_counts_as_one(tmp_path):
    async with opened(World(tmp_path, period_s=60), running=True) as world:
        await world.write(row(1))
        await world.until(lambda: world.uploads.covered_seq == 1)
        await world.clock.advance(50)
        world.add(row(2))
        assert await world.uploads.project() == 2
        await world.write(row(3))
        await world.clock.advance(59)
        assert world.uploads.covered_seq == 2
        await world.clock.advance(1)
        await world.until(lambda: world.uploads.covered_seq == 3)


async def test_a_pass_that_became_due_during_one_on_request_waits_for_its_period(tmp_path):
    async with opened(World(tmp_path, period_s=60), running=True) as world:
        await world.write(row(1))
        await world.until(lambda: world.uploads.covered_seq == 1)
        await world.clock.advance(59)
        await world.write(row(2))
        hung = world.storage.hang(on="put")
        asked = asyncio.create_task(world.uploads.project())
        await world.until(lambda: hung.hits == 1)
        await world.clock.advance(2)
        await world.write(row(3))
        world.storage.heal()
        assert await asked == 2
        await world.clock.advance(50)
        assert world.uploads.covered_seq == 2
        await world.clock.advance(10)
        await world.until(lambda: world.uploads.covered_seq == 3)


async def test_a_pass_is_not_doubled_and_what_comes_meanwhile_is_not_forgotten(tmp_path):
    async with opened(World(tmp_path, period_s=60), running=True) as world:
        hung = world.storage.hang(on="put")
        await world.write(row(1))
        await world.until(lambda: hung.hits == 1)
        await world.write(row(2))
        asked = asyncio.create_task(world.uploads.project())
        await world.clock.advance(1)
        assert world.puts == ["name_t1/params.json"]
        assert not asked.done()
        world.storage.heal()
        assert await asked == 2
        assert await world.there() == world.here()


async def test_several_at_once_but_not_more(tmp_path):
    async with opened(World(tmp_path, at_once=3)) as world:
        hung = world.storage.hang(on="put", lasting=True)
        world.add(*(row(1, trial_id=f"t{n}") for n in range(10)))
        asked = asyncio.create_task(world.uploads.project())
        await world.until(lambda: hung.hits == 3)
        await world.clock.advance(1)
        assert hung.hits == 3
        world.storage.heal()
        await asked
        assert await world.there() == world.here()


async def test_the_state_is_asked_for_once_a_batch_and_no_file_is_ahead_of_it(tmp_path):
    """While rows go on coming: each file that is sent was frozen before the state was brought to name what it holds."""
    trials, named, asked, most = 200, [0], [0], [0]
    rows = {f"t{n}": 1 for n in range(trials)}

    class Watched(Transfer):
        async def send(self, key, path, **options):
            seqs = re.findall(rb'"committed": (\d+)', await asyncio.to_thread(Path(path).read_bytes))
            assert all(int(each) <= named[0] for each in seqs), key
            found = await asyncio.to_thread(os.listdir, tmp_path / ".asynctune/frozen")
            most[0] = max(most[0], len(found))
            sent = await super().send(key, path, **options)
            if key.endswith("result.json"):
                await write_more(key.split("/")[0].removeprefix("name_"))
            return sent

    async def name():
        asked[0] += 1
        before = world.seq
        await write_more(f"t{trials - 1}")
        named[0] = before

    async def write_more(trial_id):
        rows[trial_id] += 1
        at = rows[trial_id]
        await world.write(row(at, {"committed": world.seq + 1}, trial_id=trial_id, at=float(at)))

    world = World(tmp_path, named=name)
    world.transfer.close()
    world.transfer = world.uploads._batches._sender = Watched(world.storage)
    async with opened(world):
        world.add(*(row(1, {"committed": 1}, trial_id=each, at=1.0) for each in rows))
        await world.uploads.project()
        assert asked[0] == 4
        assert 3 <= most[0] <= 3 * 64, "neither the disk nor the memory has to hold all trials"
        assert len(set(world.puts)) == 3 * trials


# -- failures ----------------------------------------------------------------------------------------------


def refused(kind=StorageError):
    return kind("no", operation="put", retryable=False)


async def test_a_failed_file_is_told_and_tried_again_sooner_than_the_period(tmp_path):
    async with opened(World(tmp_path, period_s=1e6), running=True) as world:
        world.storage.fail(refused(), on="put", nth=2)
        await world.write(row(1), row(1, trial_id="t2"))
        await world.until(lambda: world.heard == ["results_upload_failed"])
        assert (world.uploads.covered_seq, world.covered, world.uploads.pending) == (0, [], 1)
        world.storage.fail(refused(), on="put", lasting=True)
        before = world.clock.monotonic()
        await world.until(lambda: len(world.puts) > 6, 1)
        await world.clock.advance(5)
        assert world.heard == ["results_upload_failed"], "once"
        world.storage.heal()
        await world.until(lambda: world.uploads.covered_seq == 1, 1)
        assert world.clock.monotonic() - before < 1e6
        assert world.heard == ["results_upload_failed", "results_upload_back"]
        assert await world.there() == world.here()


async def test_project_says_what_failed_and_how_much(tmp_path):
    async with opened(World(tmp_path)) as world:
        world.storage.fail(refused(), on="put", lasting=True)
        world.add(row(1), row(1, trial_id="t2"))
        with pytest.raises(StorageError, match=r"no \(and 1 more\)"):
            await world.uploads.project()
        world.storage.heal()
        assert await world.uploads.project() == 1
        assert await world.there() == world.here()


@pytest.mark.parametrize(("error", "most"), [(StorageError, 10), (AuthenticationError, 3)])
async def test_a_mirror_that_refuses_everything_is_not_asked_for_every_trial(tmp_path, error, most):
    async with opened(World(tmp_path, at_once=2)) as world:
        world.storage.fail(refused(error), on="put", lasting=True)
        world.add(*(row(1, trial_id=f"t{n}") for n in range(50)))
        with pytest.raises(StorageError):
            await world.uploads.project()
        assert len(world.puts) <= most
        assert world.uploads.pending == 50


@pytest.mark.parametrize(
    "error", [ConfigError("no such key"), KeyError("no such key")], ids=["name", "fault"]
)
async def test_a_trial_whose_name_the_mirror_cannot_hold_harms_no_other(tmp_path, error):
    class Choosy(Transfer):
        async def send(self, key, path, **options):
            if "t1/" in key:
                raise error
            return await super().send(key, path, **options)

    world = World(tmp_path)
    world.transfer.close()
    world.transfer = world.uploads._batches._sender = Choosy(world.storage)
    async with opened(world):
        world.add(row(1), row(1, trial_id="t2"))
        with pytest.raises(StorageError, match="no such key"):
            await world.uploads.project()
        assert {key.partition("/")[0] for key in await world.there()} == {"name_t2"}


async def test_a_state_that_cannot_name_the_files_keeps_them_all_here(tmp_path):
    calls = [0]

    async def name():
        calls[0] += 1
        if calls[0] == 1:
            raise CorruptStateError("the journal is damaged")

    async with opened(World(tmp_path, named=name)) as world:
        world.add(*(row(1, trial_id=f"t{n}") for n in range(100)))
        with pytest.raises(StorageError, match="the journal is damaged"):
            await world.uploads.project()
        assert (world.puts, world.uploads.pending, calls) == ([], 100, [1])
        assert not os.listdir(tmp_path / ".asynctune/frozen")
        assert await world.uploads.project() == 1
        assert await world.there() == world.here()


async def test_who_was_fenced_sends_nothing_more(tmp_path):
    async def name():
        raise FencedError("another driver has it")

    async with opened(World(tmp_path, named=name)) as world:
        world.add(*(row(1, trial_id=f"t{n}") for n in range(100)))
        with pytest.raises(FencedError):
            await world.uploads.project()
        assert (world.puts, world.uploads.pending) == ([], 100)
        assert not os.listdir(tmp_path / ".asynctune/frozen")


async def test_local_files_that_cannot_be_written_are_not_said_to_be_there(tmp_path):
    async with opened(World(tmp_path)) as world:
        world.add(row(1))
        await world.uploads.project()
        world.add(row(2), row(1, trial_id="t2"))
        world.disk.fail(errno.ENOSPC, on="write", lasting=True)
        with pytest.raises(StorageError, match="result files"):
            await world.uploads.project()
        assert world.uploads.covered_seq == 1
        world.disk.heal()
        assert await world.uploads.project() == 2
        assert await world.there() == world.here()


async def test_a_disk_without_room_for_copies_is_told(tmp_path):
    async with opened(World(tmp_path)) as world:
        world.add(row(1))
        await world.results.flush()
        world.disk.fail(errno.ENOSPC, on="create")
        with pytest.raises(StorageError, match="cannot copy result files aside") as failed:
            await world.uploads.project()
        assert failed.value.retryable
        assert await world.uploads.project() == 1


async def test_a_copy_that_cannot_be_removed_does_not_end_the_passes(tmp_path):
    calls = [0]

    async def name():
        calls[0] += 1
        if calls[0] == 1:
            world.disk.fail(errno.EIO, on="unlink")
            raise StorageError("away", retryable=True)

    async with opened(World(tmp_path, named=name), running=True) as world:
        world.add(row(1), row(1, trial_id="t2"))
        await world.results.flush()
        await world.until(lambda: world.heard == ["results_upload_failed"])
        await world.until(lambda: world.heard[1:] == ["results_upload_back"], 1.0)
        assert await world.there() == world.here()
        for left in (tmp_path / ".asynctune/frozen").iterdir():
            left.unlink()


async def test_a_pass_that_is_cancelled_forgets_nothing(tmp_path):
    async with opened(World(tmp_path)) as world:
        for nth in range(1, 4):
            world.add(row(nth), row(nth, trial_id="t2"))
            hung = world.storage.hang(on="put", nth=nth)
            asked = asyncio.create_task(world.uploads.project())
            await world.until(lambda hung=hung: hung.hits == 1)
            asked.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asked
            world.storage.heal()
            assert not os.listdir(tmp_path / ".asynctune/frozen")
        assert await world.uploads.project() == 3
        assert await world.there() == world.here()


async def test_what_was_sent_counts_when_it_is_finished(tmp_path):
    calls: list[int] = []

    async def finish():
        calls.append(len(calls))
        if len(calls) == 1:
            raise StorageError("the syncer failed", operation="sync_up", retryable=True)

    async with opened(World(tmp_path, finish=finish), running=True) as world:
        world.add(row(1))
        with pytest.raises(StorageError, match="the syncer failed"):
            await world.uploads.project()
        assert (world.covered, world.uploads.pending) == ([], 0)
        await world.until(lambda: world.covered == [1], 1)
        assert len(calls) == 2


async def test_whatever_the_end_of_a_pass_raises_it_goes_on(tmp_path):
    errors = [ConfigError("no such option"), StorageError("away", operation="sync_up", retryable=True)]

    async def finish():
        if errors:
            raise errors.pop()

    async with opened(World(tmp_path, finish=finish), running=True) as world:
        await world.write(row(1))
        await world.until(lambda: world.covered == [1], 1)
        assert world.heard == ["results_upload_failed", "results_upload_back"]


async def test_a_file_is_sent_as_it_is_between_two_writes(tmp_path, rng):
    """Rewound and written all the time, what arrives is always the whole lines of one moment."""
    async with opened(World(tmp_path, at_once=2)) as world:
        ordinal = at = 0
        for _ in range(60):
            if ordinal and rng.random() < 0.3:
                ordinal = rng.randrange(ordinal)
                world.add(Cut(trial_id="t1", keep=ordinal))
            for _ in range(rng.randrange(1, 20)):
                ordinal, at = ordinal + 1, at + 1
                world.add(row(ordinal, {"x": "y" * rng.randrange(2000)}, at=float(at)))
            asked = [asyncio.create_task(world.uploads.project()) for _ in range(2)]
            await world.results.flush()
            await asyncio.gather(*asked)
            assert await world.there() == world.here()


@pytest.mark.parametrize("settings", [{"period_s": 0}, {"at_once": 0}], ids=["period", "at_once"])
def test_numbers_that_make_no_sense(tmp_path, settings):
    with pytest.raises(ConfigError, match="must be above 0 and at_once at least 1"):
        World(tmp_path, **settings)
