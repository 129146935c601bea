"""Result files come back from a bucket, in few requests, whole or not at all."""

from __future__ import annotations

import asyncio
import errno
import os
import threading

import pytest

from asynctune.errors import ConditionFailedError, StorageError
from asynctune.files import LocalFiles
from asynctune.results import fetching
from asynctune.results.fetching import fetch_results
from asynctune.results.fresh_files import FreshFiles
from asynctune.storage.memory import MemoryStorage
from asynctune.storage.threads import Threads
from asynctune.storage.transfer import Transfer
from asynctune.testing import FaultyStorage, ManualClock
from tests.results.world import tree


class World:
    """A bucket, and an empty directory."""

    def __init__(self, root):
        self.root = root
        self.storage = FaultyStorage(MemoryStorage())
        self.clock = ManualClock()
        self.transfer = Transfer(self.storage, clock=self.clock, timeout_s=20)

    async def put(self, **content):
        for trial_name, names in content.items():
            for name, data in names.items():
                await self.storage.storage.put(f"{trial_name}/{name}", data)

    async def fetch(self, wanted=lambda _: True, receiver=None):
        return await fetch_results(
            self.storage,
            receiver or self.transfer,
            str(self.root),
            wanted=wanted,
            files=LocalFiles(),
            clock=self.clock,
        )

    def counted(self, operation):
        return [each.key for each in self.storage.log if each.operation == operation]


@pytest.fixture
async def world(tmp_path):
    made = World(tmp_path)
    yield made
    made.storage.heal()
    made.transfer.close()


@pytest.fixture(params=["small", "large"])
def way(request, monkeypatch):
    """How files come: whole through memory, or by `receive`."""
    if request.param == "large":
        monkeypatch.setattr(fetching, "_SMALL_BYTES", -1)
    return request.param


async def test_the_files_of_all_trials_come_back(world, tmp_path, way):
    mine = {"params.json": b"{}", "result.json": b"1\n", "progress.csv": b"a\n", "result.cut-1.json": b"2\n"}
    await world.put(t1=mine, t2={"params.json": b"{}", "stdout": b"out" * 1000})
    fetched = await world.fetch()
    assert (fetched.files, fetched.size_bytes) == (6, 2 + 2 + 2 + 2 + 2 + 3000)
    assert tree(tmp_path) == {
        **{f"t1/{name}": data for name, data in mine.items()},
        "t2/params.json": b"{}",
        "t2/stdout": b"out" * 1000,
    }
    assert len(world.counted("list_objects")) == 1
    assert os.stat(tmp_path / "t1/result.json").st_mode & 0o777 == 0o644
    assert await world.fetch() == fetched, "it can be called again"


async def test_what_is_no_result_file_of_a_trial_stays_there(world, tmp_path):
    await world.put(
        t1={"result.json": b"1\n", "notes.txt": b"of the user", "checkpoint_000001/result.json": b"model"},
        t2={"result.json": b"2\n"},
        **{".asynctune": {"CURRENT": b"state", "result.json": b"no trial"}},
    )
    await world.storage.storage.put("result.json", b"of nobody")
    fetched = await world.fetch(lambda name: name == "t1")
    assert fetched.files == 1
    assert tree(tmp_path) == {"t1/result.json": b"1\n"}


async def test_checkpoints_are_jumped_over(world, tmp_path):
    for trial_name in ("a", "b"):
        await world.put(
            **{
                trial_name: {
                    **{
                        f"checkpoint_{n:06d}{end}/part-{m}": b""
                        for n in (1, 2)
                        for end in ("", "-2.1")
                        for m in range(200)
                    },
                    **{f"checkpoint_mine/{m}": b"" for m in range(300)},
                    "result.json": trial_name.encode(),
                }
            }
        )
    await world.put(gone={f"x{n}": b"" for n in range(300)}, z={"result.json": b"z"})
    seen = []
    listing = world.storage.storage.list_objects

    async def counting(*arguments, **options):
        async for each in listing(*arguments, **options):
            seen.append(each.key)
            yield each

    world.storage.storage.list_objects = counting
    fetched = await world.fetch(lambda name: name != "gone")
    assert tree(tmp_path) == {f"{name}/result.json": name.encode() for name in "abz"}
    assert fetched.files == 3
    assert len(seen) < 2 * (101 + 301) + 102 + 10
    assert len(world.counted("list_objects")) == 4


async def test_a_file_that_was_replaced_meanwhile_is_read_as_it_is(world, tmp_path, way):
    await world.put(t1={"result.json": b"1\n", "params.json": b"{}"})

    class Late(Transfer):
        late = True

        async def replace(self, key):
            if self.late and key == "t1/result.json":
                self.late = False
                await world.put(t1={"result.json": b"1\n22\n"})

        async def read(self, key, **options):
            await self.replace(key)
            return await super().read(key, **options)

        async def receive(self, key, path, **options):
            await self.replace(key)
            await super().receive(key, path, **options)

    receiver = Late(world.storage, clock=ManualClock(), timeout_s=20)
    await world.fetch(receiver=receiver)
    receiver.close()
    assert tree(tmp_path) == {"t1/result.json": b"1\n22\n", "t1/params.json": b"{}"}


async def test_a_file_that_was_removed_meanwhile_is_left_out(world, tmp_path, way):
    await world.put(t1={"result.json": b"1\n", "params.json": b"{}"})

    class Late(Transfer):
        async def read(self, key, **options):
            await world.storage.storage.delete(["t1/result.json"])
            return await super().read(key, **options)

        async def receive(self, key, path, **options):
            await world.storage.storage.delete(["t1/result.json"])
            await super().receive(key, path, **options)

    receiver = Late(world.storage, clock=ManualClock(), timeout_s=20)
    assert (await world.fetch(receiver=receiver)).files == 1
    receiver.close()
    assert tree(tmp_path) == {"t1/params.json": b"{}"}


async def test_a_file_that_is_replaced_again_and_again_is_an_error(world):
    await world.put(t1={"result.json": b"1\n"})

    class Never:
        async def read(self, key, **options):
            raise StorageError("larger", operation="read", key=key)

        async def receive(self, key, path, **options):
            raise ConditionFailedError("another version", operation="get", key=key)

    with pytest.raises(ConditionFailedError):
        await world.fetch(receiver=Never())


@pytest.mark.parametrize(("operation", "nth"), [("list_objects", 1), ("get", 1), ("get", 2), ("get", 4)])
async def test_a_failure_is_raised_and_leaves_no_half_file(world, tmp_path, operation, nth, way):
    files = {f"t{n}": {"result.json": b"%d\n" % n * 1000} for n in range(4)}
    await world.put(**files)
    on = {"get", "read"} if operation == "get" else operation
    world.storage.fail(StorageError("no", operation=operation), on=on, nth=nth, lasting=True)
    with pytest.raises(StorageError, match="no"):
        await world.fetch()
    for name, data in tree(tmp_path).items():
        if not os.path.basename(name).startswith("."):
            assert data == files[os.path.dirname(name)]["result.json"]
    world.storage.heal()
    await world.fetch()
    assert tree(tmp_path) == {f"{name}/result.json": each["result.json"] for name, each in files.items()}


async def test_a_body_that_is_damaged_on_its_way_is_fetched_again(world, tmp_path, way):
    await world.put(**{f"t{n}": {"result.json": b"%d\n" % n} for n in range(3)})
    world.storage.damage(0, nth=2)
    await world.fetch()
    assert tree(tmp_path) == {f"t{n}/result.json": b"%d\n" % n for n in range(3)}


async def test_a_bucket_that_is_away_for_a_moment_is_waited_for(world, tmp_path, way):
    await world.put(**{f"t{n}": {"result.json": b"%d\n" % n} for n in range(3)})
    world.storage.fail(on={"get", "read"}, lasting=True)
    task = asyncio.create_task(world.fetch())
    while len(world.counted("get")) < 6:
        await world.clock.advance(1.0)
    assert not task.done()
    world.storage.heal()
    while not task.done():
        await world.clock.advance(1.0)
    assert (await task).files == 3
    assert len(tree(tmp_path)) == 3


async def test_what_a_killed_opening_left_is_replaced(world, tmp_path, way):
    await world.put(t1={"result.json": b"1\n"})
    (tmp_path / "t1").mkdir()
    (tmp_path / "t1" / ".result.json.fetched").write_bytes(b"the half of it, or more")
    await world.fetch()
    assert tree(tmp_path) == {"t1/result.json": b"1\n"}


async def test_small_files_cost_few_hops_and_a_large_one_does_not_go_through_memory(
    world, tmp_path, monkeypatch
):
    hops, received = [], []
    real = Threads.run

    async def counted(self, function, *arguments, **options):
        hops.append(function)
        return await real(self, function, *arguments, **options)

    class Watched(Transfer):
        async def receive(self, key, path, **options):
            received.append(key)
            await super().receive(key, path, **options)

    large = b"l" * ((256 << 10) + 1)
    await world.put(**{f"t{n}": {"result.json": b"%d\n" % n, "params.json": b"{}"} for n in range(200)})
    await world.put(big={"stdout": large})
    monkeypatch.setattr(Threads, "run", counted)
    receiver = Watched(world.storage, clock=ManualClock(), timeout_s=20)
    assert (await world.fetch(receiver=receiver)).files == 401
    receiver.close()
    assert received == ["big/stdout"]
    assert (tmp_path / "big/stdout").stat().st_size == len(large)
    assert len(hops) < 20


async def test_the_memory_that_waits_to_be_written_is_bounded(world, tmp_path, monkeypatch):
    monkeypatch.setattr(fetching, "_BYTES_AT_ONCE", 3000)
    written = []
    real = FreshFiles.write

    def write(self, batch):
        written.append(sum(len(each.data) for each in batch))
        real(self, batch)

    monkeypatch.setattr(FreshFiles, "write", write)
    await world.put(**{f"t{n}": {"stdout": b"x" * 1000} for n in range(30)})
    assert (await world.fetch()).size_bytes == sum(written) == 30_000
    assert max(written) <= 3000
    assert len(tree(tmp_path)) == 30


async def test_a_long_way_is_told_in_the_log(world, tmp_path, caplog):
    caplog.set_level("INFO", logger="asynctune")
    await world.put(**{f"t{n}": {"result.json": b"%d\n" % n} for n in range(40)})
    await world.fetch()
    assert caplog.messages == [], "it was short"

    class Slow(Transfer):
        async def read(self, key, **options):
            await world.clock.advance(1.0)
            return await super().read(key, **options)

    receiver = Slow(world.storage, clock=ManualClock(), timeout_s=20)
    await world.fetch(receiver=receiver)
    receiver.close()
    assert 3 <= len(caplog.messages) <= 5
    assert caplog.messages[0].startswith(f"fetching result files of {world.storage.location}: ")
    assert caplog.messages[-1].startswith("fetched all result files of ")
    assert ": 40 of them, 0.0 MB, in " in caplog.messages[-1]


async def test_a_disk_that_refuses_is_a_storage_error(world, tmp_path, way):
    await world.put(t1={"result.json": b"1\n"})
    (tmp_path / "t1").write_bytes(b"a file in its place")
    with pytest.raises(StorageError, match="cannot fetch result files"):
        await world.fetch()


class Watched(LocalFiles):
    """Writes down what is synced and what is renamed, and refuses what it is asked to."""

    def __init__(self, refused=""):
        self.refused = refused
        self.calls = []

    def _did(self, what, path):
        self.calls.append((what, os.path.basename(path)))
        if what == self.refused:
            raise OSError(errno.EIO, "refused", path)

    def sync_data(self, fd):
        self._did("sync", os.readlink(f"/proc/self/fd/{fd}"))
        super().sync_data(fd)

    def sync(self, fd):
        if os.path.isfile(path := os.readlink(f"/proc/self/fd/{fd}")):  # a directory is told of by itself
            self._did("sync", path)
        super().sync(fd)

    def sync_filesystem(self, fd):
        self._did("sync all", "")
        return super().sync_filesystem(fd)

    def sync_dir(self, path):
        self._did("sync names", path)
        super().sync_dir(path)

    def rename(self, source, target):
        self._did("rename", target)
        super().rename(source, target)


async def fetched_by(world, files):
    receiver = Transfer(world.storage, clock=ManualClock(), timeout_s=20, files=files)
    try:
        await fetch_results(
            world.storage, receiver, str(world.root), wanted=lambda _: True, files=files, clock=world.clock
        )
    finally:
        receiver.close()


async def test_what_is_named_is_on_the_disk_and_the_names_are_in_the_end(world, tmp_path, way):
    await world.put(t1={"result.json": b"1\n", "params.json": b"{}"}, t2={"result.json": b"2\n"})
    files = Watched()
    await fetched_by(world, files)
    assert sorted(files.calls[:3]) == [
        ("sync", ".params.json.fetched"),
        ("sync", ".result.json.fetched"),
        ("sync", ".result.json.fetched"),
    ]
    assert {what for what, _ in files.calls[3:6]} == {"rename"}
    assert sorted(files.calls[6:8]) == [("sync names", "t1"), ("sync names", "t2")]
    assert files.calls[8:] == [("sync names", tmp_path.name)]


async def test_very_many_are_synced_at_once(world, tmp_path, monkeypatch):
    monkeypatch.setattr("asynctune.results.unsynced._VERY_MANY", 1)
    await world.put(**{f"t{n}": {"result.json": b"%d\n" % n} for n in range(9)})
    files = Watched()
    await fetched_by(world, files)
    whats = [what for what, _ in files.calls]
    if "sync" in whats:
        pytest.skip("a filesystem that cannot be synced at once")
    assert whats == ["sync all", *["rename"] * 9, "sync all", "sync names"]
    assert len(tree(tmp_path)) == 9


@pytest.mark.parametrize("refused", ["sync", "rename"])
async def test_what_cannot_be_made_durable_replaces_nothing(world, tmp_path, refused, way):
    await world.put(t1={"result.json": b"1\n2\n"})
    (tmp_path / "t1").mkdir()
    (tmp_path / "t1/result.json").write_bytes(b"1\n")
    with pytest.raises(StorageError, match="cannot fetch result files"):
        await fetched_by(world, Watched(refused))
    assert tree(tmp_path) == {"t1/result.json": b"1\n"}
    await fetched_by(world, Watched())
    assert tree(tmp_path) == {"t1/result.json": b"1\n2\n"}


async def test_a_caller_that_is_cancelled_does_not_wait_for_all_syncs(world, tmp_path):
    await world.put(**{f"t{n}": {"result.json": b"%d\n" % n} for n in range(9)})
    loop, begun, go_on = asyncio.get_running_loop(), asyncio.Event(), threading.Event()

    class Slow(Watched):
        def sync_data(self, fd):
            loop.call_soon_threadsafe(begun.set)
            assert go_on.wait(20)
            super().sync_data(fd)

    files = Slow()
    task = asyncio.create_task(fetched_by(world, files))
    await begun.wait()
    task.cancel()
    for _ in range(5):
        await asyncio.sleep(0)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [what for what, _ in files.calls] == ["sync"]
    assert tree(tmp_path) == {}
