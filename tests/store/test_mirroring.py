"""The copy of an open experiment: what goes there in which order."""

from __future__ import annotations

import asyncio
import dataclasses
import os
from typing import Any

import pytest

from asynctune.checkpoints.catalog import TrialCheckpoints
from asynctune.config import CheckpointConfig, SyncConfig
from asynctune.errors import FencedError, StorageError, UploadError
from asynctune.state.mirror.named import read_named
from asynctune.state.mirror.swapping import Swapper
from asynctune.storage.memory import MemoryStorage
from asynctune.storage.uri import open_storage
from asynctune.store.store import ExperimentStore
from asynctune.testing import FaultyStorage
from asynctune.trial import Checkpoint
from tests.store.scenes import engine_of, mirroring_of


@pytest.fixture
def bucket():
    """The URI of a bucket in this process's memory."""
    name = f"bucket-{os.urandom(6).hex()}"
    yield f"memory://{name}/some/where"
    MemoryStorage.forget(name)


@pytest.fixture
def swaps(monkeypatch):
    """Cleared: the state does not get to the bucket. `asked` is set when it was to."""
    swap = Swapper.swap
    allowed: Any = asyncio.Event()
    allowed.asked = asyncio.Event()

    async def held(*arguments, **named):
        allowed.asked.set()
        await allowed.wait()
        return await swap(*arguments, **named)

    monkeypatch.setattr(Swapper, "swap", held)
    allowed.set()
    return allowed


async def in_bucket(store: ExperimentStore, key: str) -> bool:
    return await mirroring_of(store)._access.storage.head(key) is not None


async def test_result_files_do_not_get_ahead_of_the_state(location, bucket, swaps):
    config = SyncConfig(upload_dir=bucket)
    async with ExperimentStore.open(location, sync_config=config) as store:
        await store.flush(mirror=True)
        swaps.clear()
        swaps.asked.clear()
        store.add_trial({}, "t")
        store.set_status("t", "RUNNING")
        store.report("t", {"loss": 1})
        await store.flush()
        sending = asyncio.create_task(mirroring_of(store).results.project())
        await swaps.asked.wait()
        # the files are written and copied aside, and nothing else is waited for than the state
        await store.history("t")
        for _ in range(50):
            await asyncio.sleep(0.002)
            assert not await in_bucket(store, "t/result.json")
        swaps.set()
        await sending
        assert await in_bucket(store, "t/result.json")


async def test_a_flush_of_the_copy_ends_when_nothing_comes_of_it(location, bucket, swaps, monkeypatch):
    async with ExperimentStore.open(location, sync_config=SyncConfig(upload_dir=bucket)) as store:
        named = await store.flush(mirror=True)
        swaps.clear()
        store.add_trial({}, "t")
        impatient = dataclasses.replace(mirroring_of(store).remote.sync, sync_timeout=0.05)
        remote = dataclasses.replace(mirroring_of(store).remote, sync=impatient)
        monkeypatch.setattr(mirroring_of(store), "remote", remote)
        with pytest.raises(
            UploadError, match=rf"for 0\.05 s .* up to {named}, and not {named + 1}\. All of it"
        ):
            await store.flush(mirror=True)
        swaps.set()
        assert await store.flush(mirror=True) > named


async def test_result_files_do_not_wait_for_a_state_that_waits_for_them(location, bucket, swaps):
    config = SyncConfig(upload_dir=bucket)
    async with ExperimentStore.open(location, sync_config=config) as store:
        await store.flush(mirror=True)
        swaps.clear()
        store.add_trial({}, "t")
        store.set_status("t", "RUNNING")
        store.report("t", {"loss": 1})
        seq = await store.flush()
        regular = asyncio.create_task(mirroring_of(store).results.project())
        await asyncio.sleep(0)
        await mirroring_of(store).project(seq)  # as a swap does that is under way
        assert await in_bucket(store, "t/result.json")
        await regular
        swaps.set()


class Held:
    """A sender that waits before it sends; like a process that is stopped just then."""

    def __init__(self, sender):
        self.sender, self.came, self.free = sender, asyncio.Event(), asyncio.Event()

    async def send(self, *arguments, **named):
        self.came.set()
        await self.free.wait()
        return await self.sender.send(*arguments, **named)


async def test_a_late_result_file_of_a_fenced_driver_replaces_nothing(
    location, bucket, tmp_path, monkeypatch
):
    monkeypatch.setattr("asynctune.store.reconcile.QUIET_S", 0.05)
    store = await ExperimentStore.open(location, sync_config=SyncConfig(upload_dir=bucket))
    store.add_trial({}, "t")
    store.set_status("t", "RUNNING")
    store.report("t", {"loss": 3})
    await store.flush(mirror=True)
    results = mirroring_of(store).results
    batches = results._batches
    batches._sender = held = Held(batches._sender)
    late = asyncio.create_task(results.project())
    await held.came.wait()
    async with ExperimentStore.open(f"{bucket}/{location.name}", local_dir=tmp_path / "other") as other:
        other.report("t", {"loss": 2})
    held.free.set()
    await asyncio.wait([late])
    assert isinstance(late.exception(), FencedError)
    with pytest.raises(FencedError):
        await store.aclose()
    async with ExperimentStore.open(f"{bucket}/{location.name}", "read") as reader:
        assert [row["loss"] for row in await reader.history("t")] == [3, 2]


async def fall_behind(store, count=40):
    """Commit so much that the journal is cut several times; nothing of it gets to the bucket. The last `tick`."""
    number = 0
    async with asyncio.timeout(40):
        # a slow disk makes one snapshot of what would be several
        while number < count or store.stats().snapshots < 4:
            number += 1
            store.set_metadata("filler", os.urandom(2000))
            store.set_metadata("tick", number)
            await store.flush()
    return number


@pytest.fixture
def small(monkeypatch):
    """Snapshots after a few commits."""
    monkeypatch.setattr("asynctune.state.generations._MIN_JOURNAL_BYTES", 5000)


def oldest_segment(location):
    names = os.listdir(location / ".asynctune")
    return min((name for name in names if name.startswith("wal-")), key=lambda name: int(name.split("-")[2]))


async def test_a_copy_that_is_behind_gets_every_commit(location, bucket, swaps, small, monkeypatch):
    monkeypatch.setattr(Swapper, "_rebased", None)
    async with ExperimentStore.open(location, sync_config=SyncConfig(upload_dir=bucket)) as store:
        await store.flush(mirror=True)
        before = oldest_segment(location)
        swaps.clear()
        try:
            last = await fall_behind(store)
            assert oldest_segment(location) == before
        finally:
            swaps.set()
        await store.flush(mirror=True)
        async with ExperimentStore.open(f"{bucket}/{location.name}", "read") as reader:
            assert reader.metadata["tick"] == last


async def test_the_journal_is_not_kept_for_ever_for_a_copy(location, bucket, swaps, small, monkeypatch):
    monkeypatch.setattr("asynctune.store.mirroring._MOST_KEPT_BYTES", 0)
    async with ExperimentStore.open(location, sync_config=SyncConfig(upload_dir=bucket)) as store:
        await store.flush(mirror=True)
        before = oldest_segment(location)
        swaps.clear()
        try:
            await fall_behind(store)
            async with asyncio.timeout(20):
                while oldest_segment(location) == before:  # noqa: ASYNC110 - the snapshot is told before the cut
                    await asyncio.sleep(0.005)
        finally:
            swaps.set()


async def test_the_journal_may_forget_what_is_mirrored_and_what_is_too_much(
    location, bucket, swaps, monkeypatch
):
    async with ExperimentStore.open(location, sync_config=SyncConfig(upload_dir=bucket)) as store:
        named = await store.flush(mirror=True)
        mirroring = mirroring_of(store)
        swaps.clear()
        try:
            store.set_metadata("any", os.urandom(1000))
            seq = await store.flush()
            assert seq > mirroring.mirror.mirrored_seq >= named
            assert mirroring.may_forget(mirroring.mirror.mirrored_seq)
            assert not mirroring.may_forget(mirroring.mirror.mirrored_seq + 1)
            monkeypatch.setattr("asynctune.store.mirroring._MOST_KEPT_BYTES", 500)
            assert mirroring.may_forget(seq), "a bucket that is away does not fill the disk"
        finally:
            swaps.set()
        await store.flush(mirror=True)
        assert mirroring.may_forget(seq)
        for number in range(2):  # what was committed while a swap was under way counts until the next
            store.set_metadata("small", number)
            seq = await store.flush(mirror=True)
        assert not mirroring.may_forget(seq + 1), "what was mirrored counts no more"


async def test_a_checkpoint_stays_in_the_bucket_until_the_state_names_the_next_one(location, bucket, swaps):
    async with ExperimentStore.open(
        location,
        sync_config=SyncConfig(upload_dir=bucket),
        checkpoint_config=CheckpointConfig(num_to_keep=1),
    ) as store:
        store.add_trial({}, "t")
        manifest = "t/checkpoint_{:06d}/.manifest.json"
        await store.save_checkpoint("t", Checkpoint.from_dict({"n": 1}))
        await store.drain()
        await store.flush(mirror=True)
        assert await in_bucket(store, manifest.format(1))
        swaps.clear()
        swaps.asked.clear()
        try:
            await store.save_checkpoint("t", Checkpoint.from_dict({"n": 2}))
            await store.drain()
            await store.flush()
            await swaps.asked.wait()
            for _ in range(50):  # for a deletion that would come too early
                await asyncio.sleep(0.002)
                assert await in_bucket(store, manifest.format(1))
            assert await in_bucket(store, manifest.format(2))
        finally:
            swaps.set()
        await store.flush(mirror=True)
        async with asyncio.timeout(20):
            while await in_bucket(store, manifest.format(1)):  # noqa: ASYNC110 - nothing else tells of it
                await asyncio.sleep(0.005)


async def test_the_journal_is_cut_again_when_the_copy_has_caught_up(location, bucket, swaps, small):
    async with ExperimentStore.open(location, sync_config=SyncConfig(upload_dir=bucket)) as store:
        await store.flush(mirror=True)
        swaps.clear()
        await fall_behind(store)
        names = set(os.listdir(location / ".asynctune"))
        swaps.set()
        await store.flush(mirror=True)
        before = store.stats().snapshots
        async with asyncio.timeout(20):
            while store.stats().snapshots < before + 3:
                store.set_metadata("filler", os.urandom(2000))
                await store.flush(mirror=True)
        oldest = min(name for name in names if name.startswith("snap-"))
        assert oldest not in os.listdir(location / ".asynctune")


@pytest.mark.parametrize("restarted", [False, True], ids=["in the middle of a run", "at an opening"])
async def test_a_copy_that_is_damaged_is_healed_from_this_disk(
    location, bucket, small, restarted, caplog, monkeypatch
):
    monkeypatch.setattr("asynctune.state.mirror.planning.MAX_SEGMENTS", 3)
    config = SyncConfig(upload_dir=bucket)
    store = await ExperimentStore.open(location, sync_config=config)
    store.add_trial({}, "t")
    store.set_status("t", "RUNNING")
    for number in range(40):
        store.report("t", {"loss": number, "filler": os.urandom(12_000)})
        await store.flush(mirror=True)
    storage = mirroring_of(store)._access.storage
    segments = mirroring_of(store).mirror._swapper.current.segments
    assert segments
    for ref in segments:
        await storage.delete([ref.key])
    if restarted:
        await store.aclose()
        store = await ExperimentStore.open(location, sync_config=config)
    events = store.events()
    for number in range(40, 60):
        store.report("t", {"loss": number, "filler": os.urandom(12_000)})
        await store.flush(mirror=True)
    await store.aclose()
    (healed,) = [event async for event in events if event.kind == "mirror_healed"]
    assert caplog.messages.count(healed.message) == 1
    assert healed.data["object"] in healed.message
    async with ExperimentStore.open(f"{bucket}/{location.name}", "read") as reader:
        assert [row["loss"] for row in await reader.history("t")] == list(range(60))


async def test_who_waits_for_uploads_learns_of_a_takeover(location, bucket, tmp_path, monkeypatch):
    monkeypatch.setattr("asynctune.store.reconcile.QUIET_S", 0.05)
    started = asyncio.Event()

    async def never(*_, **__):
        started.set()
        await asyncio.Event().wait()

    store = await ExperimentStore.open(location, sync_config=SyncConfig(upload_dir=bucket))
    store.add_trial({}, "t")
    await store.flush(mirror=True)
    monkeypatch.setattr("asynctune.checkpoints.mirroring.BucketCopies.put_tree", never)
    await store.save_checkpoint("t", Checkpoint.from_dict({}))
    waiting = asyncio.create_task(store.flush(mirror=True))
    await started.wait()
    engine = engine_of(store)
    await engine.mirroring.mirror.flush(engine.writer.committed_seq)  # it is quiet from now on
    async with ExperimentStore.open(f"{bucket}/{location.name}", local_dir=tmp_path / "other"):
        store.set_metadata("any", 1)
        await store.flush()
        with pytest.raises(FencedError):
            await waiting
    with pytest.raises(FencedError):
        await store.aclose()


async def test_what_the_records_say_of_another_bucket_does_not_get_into_a_new_one(
    location, bucket, monkeypatch
):
    async with ExperimentStore.open(location, sync_config=SyncConfig(upload_dir=f"{bucket}/one")) as store:
        store.add_trial({}, "t")
        await store.save_checkpoint("t", Checkpoint.from_dict(1))
    reconcile, allowed, asked = TrialCheckpoints.reconcile, asyncio.Event(), asyncio.Event()

    async def held(*arguments, **named):
        asked.set()
        await allowed.wait()
        return await reconcile(*arguments, **named)

    monkeypatch.setattr(TrialCheckpoints, "reconcile", held)

    async def reopened():
        return await ExperimentStore.open(location, sync_config=SyncConfig(upload_dir=f"{bucket}/two"))

    opening = asyncio.create_task(reopened())
    await asked.wait()
    for _ in range(50):
        await asyncio.sleep(0.002)
    found = await read_named(await open_storage(f"{bucket}/two/{location.name}"))
    assert found is not None
    assert found.current.seq == 0
    allowed.set()
    async with await opening as store:
        await store.flush(mirror=True)
        async with ExperimentStore.open(f"{bucket}/two/{location.name}", "read") as reader:
            assert (await reader.fetch(reader.checkpoints("t")[0])).is_dir()


async def until(check) -> None:
    """Wait for something that nothing else tells of."""
    async with asyncio.timeout(20):
        while not await check():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def test_checkpoints_wait_for_the_period_where_the_config_says_so(location, bucket):
    config = SyncConfig(upload_dir=bucket, sync_on_checkpoint=False, sync_period=3600)
    async with ExperimentStore.open(location, sync_config=config) as store:
        store.add_trial({}, "t")
        await store.save_checkpoint("t", Checkpoint.from_dict(1))
        for _ in range(50):
            await asyncio.sleep(0.002)
        assert (store.stats().uploads_pending, store.stats().uploads_done) == (1, 0)
        await store.drain()
        assert store.stats().uploads_done == 1


async def test_the_period_of_the_config_is_that_of_checkpoints_and_result_files(location, bucket):
    config = SyncConfig(upload_dir=bucket, sync_on_checkpoint=False, sync_period=0.05)
    async with ExperimentStore.open(location, sync_config=config) as store:
        store.add_trial({}, "t")
        store.set_status("t", "RUNNING")
        saved = await store.save_checkpoint("t", Checkpoint.from_dict(1))
        assert saved.path is not None
        await until(lambda: in_bucket(store, f"t/{saved.path.name}/.manifest.json"))
        before = -1
        for loss in (3, 2):
            store.report("t", {"loss": loss})

            async def sent_again(before: int = before) -> bool:
                info = await mirroring_of(store)._access.storage.head("t/result.json")
                return info is not None and info.size_bytes > before

            await until(sent_again)
            before = (location / "t" / "result.json").stat().st_size


async def test_a_copy_of_which_nothing_comes_fails_after_the_timeout_of_the_config(
    location, bucket, monkeypatch
):
    storages = []

    async def open_faulty(uri, options):
        storages.append(FaultyStorage(await open_storage(uri, options)))
        return storages[-1]

    monkeypatch.setattr("asynctune.store.access.open_storage", open_faulty)
    async with ExperimentStore.open(
        location, sync_config=SyncConfig(upload_dir=bucket, sync_timeout=0.2)
    ) as store:
        store.add_trial({}, "t")
        await store.flush(mirror=True)
        storages[0].call(_hangs, on="put", lasting=True)
        await store.save_checkpoint("t", Checkpoint.from_dict(1))
        async with asyncio.timeout(20):
            with pytest.raises(UploadError, match="checkpoint 1 of trial t"):
                await store.drain()
        assert store.stats().uploads_failed == 1
        storages[0].heal()


async def _hangs(call) -> None:
    if "/checkpoint_" in call.key:
        await asyncio.Event().wait()


async def test_a_close_without_a_limit_waits_once_for_a_bucket_that_is_away(location, bucket, monkeypatch):
    storages = []

    async def open_faulty(uri, options):
        storages.append(FaultyStorage(await open_storage(uri, options)))
        return storages[-1]

    monkeypatch.setattr("asynctune.store.access.open_storage", open_faulty)
    limits = []
    config = SyncConfig(upload_dir=bucket, sync_timeout=0.5)
    store = await ExperimentStore.open(location, sync_config=config)
    store.add_trial({}, "t")
    await store.flush(mirror=True)
    mirroring = mirroring_of(store)
    assert mirroring.times_for_close(None) == (None, None)
    assert mirroring.times_for_close(10.0) == (10.0, 8.0), "the state gets its share"
    away = storages[0].fail(StorageError("nobody answers", retryable=True), lasting=True)
    store.set_metadata("more", 1)
    await store.flush()
    await away.struck.wait()
    await until(lambda: _is(mirroring.mirror.stats.away_s is not None))
    finish = mirroring.finish

    async def seen(left, timeout_s):
        limits.append(timeout_s)
        return await finish(left, timeout_s)

    monkeypatch.setattr(mirroring, "finish", seen)
    with pytest.raises(UploadError, match="not everything is in"):
        await store.aclose()
    (limit,) = limits
    assert limit is not None
    assert limit <= 0.5


async def _is(value: bool) -> bool:
    return value


async def test_no_credential_is_written_or_shown(location, monkeypatch, caplog):
    caplog.set_level(0)
    secret = "hush-hush-hush"
    inside = MemoryStorage()
    given = []

    async def open_inside(_uri, options):
        given.append(options)
        return inside

    monkeypatch.setattr("asynctune.store.access.open_storage", open_inside)
    config = SyncConfig(upload_dir="s3://bucket/some", storage_options={"secret_access_key": secret})
    async with ExperimentStore.open(location, sync_config=config) as store:
        store.add_trial({}, "t")
        await store.save_checkpoint("t", Checkpoint.from_dict(1))
        await store.flush(mirror=True)
        shown = f"{store!r} {config!r} {engine_of(store).remote!r} {store._place!r} {store.stats()!r}"
    assert given == [{"secret_access_key": secret}]
    written = [path for path in location.rglob("*") if path.is_file()]
    assert location / ".asynctune" / "MIRROR" in written
    assert [path for path in written if secret.encode() in path.read_bytes()] == []
    assert secret not in shown
    assert secret not in caplog.text


async def test_an_opening_that_fails_after_the_claim_gives_the_copy_back(location, bucket, monkeypatch):
    def refused(*_):
        raise OSError("the disk refused")

    with monkeypatch.context() as patched:
        patched.setattr("asynctune.store.reconcile.remember", refused)
        with pytest.raises(StorageError, match="the disk refused"):
            await ExperimentStore.open(location, sync_config=SyncConfig(upload_dir=bucket))
    found = await read_named(await open_storage(f"{bucket}/{location.name}"))
    assert found is not None
    assert found.current.closed
