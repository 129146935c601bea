"""Checkpoints that workers bring: awaited without holding anything up, then committed whole or not at all."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from pathlib import Path
from typing import Any

import pytest

from asynctune.checkpoints import arriving_commits
from asynctune.checkpoints.arriving import ArrivalPlace, InBucket
from asynctune.checkpoints.committing import MAX_COPIES, Wanted
from asynctune.checkpoints.staging import StagedCheckpoint, stage_for_adoption
from asynctune.clock import SystemClock
from asynctune.config import CheckpointConfig
from asynctune.errors import (
    CheckpointExistsError,
    CheckpointNotFoundError,
    ConfigError,
    FencedError,
    StorageError,
    StoreClosedError,
    UploadError,
)
from tests.checkpoints.bringing import SMALL, Worker, another
from tests.checkpoints.buckets import BucketRoom, QuickClock, quiet
from tests.checkpoints.fakes import MemorySink, Room, disk_full, read_tree, tree, where
from tests.checkpoints.travel import left_in
from tests.store.test_cancellation import cancelled_at

KEEP_ONE = CheckpointConfig(num_to_keep=1)


@pytest.fixture
async def room(tmp_path):
    """Without a bucket."""
    async with Room(tmp_path / "exp") as made:
        yield made


@pytest.fixture
async def bucket(tmp_path):
    """With one that is claimed, and workers who put their checkpoints there."""
    async with BucketRoom(tmp_path / "exp") as made:
        await made.catalog.reconcile([])
        made.watch()
        yield made


def worker(room: Room, name: str = "node", **options: Any) -> Worker:
    """One on a machine of its own; with a bucket it brings things there."""
    storage = room.storage if isinstance(room, BucketRoom) else None
    return Worker(room.path.parent / name, **{"storage": storage, **options})


def adopt(
    room: Room, brings: Worker, trial_id: str = "t", step: int | None = None, **options: Any
) -> asyncio.Task[Any]:
    wanted = Wanted.of(trial_id, trial_id, **options)
    return asyncio.ensure_future(room.catalog.arrivals.adopt(wanted, brings.checkpoint, step))


async def brought(room: Room, step: int, trial_id: str = "t", **options: Any) -> Any:
    return await adopt(room, worker(room, f"node-{trial_id}-{step}"), trial_id, step=step, **options)


def objects(room: BucketRoom, directory: str = "t/") -> list[str]:
    return [name for name in room.names() if name.startswith(directory)]


# -- home --------------------------------------------------------------------------------------------------


async def test_what_comes_home_is_committed_as_if_it_had_been_staged_here(room):
    brings = worker(room)
    made = await adopt(room, brings, step=5, attempt=2, plain=False, metrics={"acc": 1}, timeline={"rows": 3})
    assert brings.places == [
        ArrivalPlace(trial_id="t", step=5, epoch=1, attempt=2, directory="t/checkpoint_000005-1.2")
    ]
    assert read_tree(where(made)) == SMALL
    assert where(made) == room.path / "t/checkpoint_000005-1.2"
    assert (made.step, made.metrics, made.mirrored) == (5, {"acc": 1}, False)
    assert all(report.ok for report in await room.verify())
    assert room.sink.durable


async def test_what_comes_home_beside_a_bucket_is_uploaded_from_here(bucket):
    await adopt(bucket, worker(bucket, storage=None), step=1)
    await bucket.catalog.drain()
    assert bucket.states() == {1: "live+"}
    assert bucket.directories() == ["checkpoint_000001"]


async def test_what_came_home_and_cannot_be_recorded_does_not_stay(room):
    room.sink.put_error = disk_full()
    with pytest.raises(StorageError, match="the journal cannot be written"):
        await adopt(room, worker(room), step=1)
    room.sink.put_error = None
    await room.deleted()
    assert room.directories() == []
    assert room.leftovers() == []
    assert (await brought(room, 1)).step == 1, "its step is free: nothing is in a bucket"


@pytest.mark.parametrize(
    "path",
    [
        "exp/t/checkpoint_000001",
        "exp/t",
        "exp/t/",
        "exp/other/.staged-1",
        "elsewhere",
        "exp/t/.staged-1/..",
        "exp\0/.staged-1",
    ],
    ids=["committed", "trial", "trial-slash", "another-trials", "outside", "up", "nul"],
)
async def test_a_path_that_no_staged_directory_of_the_trial_has_is_neither_taken_nor_removed(
    room, tmp_path, path
):
    await brought(room, 1)
    staged = await stage_for_adoption(tree(tmp_path / "made", SMALL), tmp_path)
    for place in ("exp/other/.staged-1", "exp/t/.staged-1", "elsewhere"):
        shutil.copytree(staged.path, tmp_path / place)
    before = read_tree(tmp_path)
    brings = worker(room)
    brings.answer = StagedCheckpoint(str(tmp_path) + "/" + path, staged.manifest)
    with pytest.raises(ConfigError, match="which is no staged directory beside the trial"):
        await adopt(room, brings, step=2)
    await room.deleted()
    assert read_tree(tmp_path) == before


async def test_one_that_is_given_up_while_all_slots_are_taken_does_not_stay(room):
    async with contextlib.AsyncExitStack() as slots:
        for _ in range(MAX_COPIES):
            await slots.enter_async_context(room.catalog._committer.slots)
        brings = worker(room)
        task = adopt(room, brings, step=1)
        while brings.ended == "not":  # noqa: ASYNC110 - nothing else tells of it
            await asyncio.sleep(0.001)
        await quiet(3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await room.deleted()
    assert left_in(room.path / "t") == []


async def test_a_name_that_is_taken_on_this_disk_is_not_told(bucket):
    (bucket.path / "t/checkpoint_000001").mkdir(parents=True)
    made = await brought(bucket, 1)
    assert bucket.record(1).directory == "t/checkpoint_000001-1.0"
    assert made.mirrored


# -- in the bucket -----------------------------------------------------------------------------------------


async def test_what_is_in_the_bucket_is_recorded_and_nothing_of_it_is_here(bucket):
    made = await adopt(bucket, worker(bucket), step=3, metrics={"acc": 1}, timeline={"rows": 3})
    assert (made.path, made.step, made.mirrored, made.metrics) == (None, 3, True, {"acc": 1})
    assert made.files == {name: len(data) for name, data in SMALL.items()}
    assert bucket.directories() == []
    assert bucket.states() == {3: "live+"}
    assert bucket.stored(3)["bucket_only"] is True
    assert bucket.stored(3)["timeline"] == {"rows": 3}
    assert bucket.catalog.list("t") == (made,)
    assert bucket.catalog.uploads.pending == 0
    saved, mirrored = bucket.events.of("checkpoint_saved") + bucket.events.of("checkpoint_mirrored")
    assert (saved["step"], saved["how"], saved["files"]) == (3, "bucket", len(SMALL))
    assert saved["path"].endswith("/t/checkpoint_000003")
    assert mirrored["sent_bytes"] == 0


async def test_it_is_used_as_any_other(bucket, tmp_path):
    made = await brought(bucket, 1)
    catalog = bucket.catalog
    restored = await catalog.restore("t")
    assert read_tree(where(restored)) == SMALL
    assert read_tree(Path(await catalog.fetch(made))) == SMALL
    assert read_tree(Path(await catalog.fetch(made, tmp_path / "to"))) == SMALL
    async with catalog.lease("t") as leased:
        assert read_tree(where(leased)) == SMALL
    cloned = await catalog.clone("t", None, to_trial="other", trial_name="other")
    assert read_tree(where(cloned)) == SMALL
    saved = await catalog.save("third", made, trial_name="third")
    assert read_tree(where(saved)) == SMALL
    assert not bucket.events.of("checkpoint_damaged")
    (bucket.path / "t").mkdir(exist_ok=True)
    assert bucket.directories() == []


@pytest.mark.parametrize("how", ["here", "elsewhere", "emptied"])
async def test_the_next_opening_takes_it_for_neither_damaged_nor_lost(tmp_path, how):
    first = BucketRoom(tmp_path / "exp")
    async with first:
        await first.catalog.reconcile([])
        await brought(first, 1)
        await brought(first, 2)
    path = tmp_path / ("other" if how == "elsewhere" else "exp")
    sink = first.sink.crashed()
    async with BucketRoom(path, held=first.held, sink=sink, epoch=2) as again:
        report = await again.catalog.reconcile(
            ["t"], from_bucket=how == "elsewhere", bucket_is_new=how == "emptied"
        )
        assert report == type(report)()
        settled = await again.catalog.settle({"t": "t"}.get)
        assert settled == type(settled)()
        assert again.states() == {1: "live+", 2: "live+"}
        assert [each.path for each in again.catalog.list("t")] == [None, None]
        assert read_tree(where(await again.catalog.restore("t", 1))) == SMALL
        assert (await brought(again, 3, plain=False)).step == 3
        assert again.record(3).directory == "t/checkpoint_000003-2.0"


async def test_it_is_out_of_reach_where_no_bucket_is_known(tmp_path, bucket):
    await brought(bucket, 1)
    async with Room(tmp_path / "exp", sink=bucket.sink.crashed(), epoch=2) as again:
        assert [each.path for each in again.catalog.list("t")] == [None]
        with pytest.raises(CheckpointNotFoundError, match="upload_dir"):
            async with again.catalog.lease("t"):
                pass


async def test_retention_gives_up_here_and_there(tmp_path):
    async with BucketRoom(tmp_path / "exp", config=KEEP_ONE) as room:
        await room.catalog.reconcile([])
        room.watch()
        room.mirror.open.clear()
        await brought(room, 1)
        await brought(room, 2)
        assert room.states() == {1: "deleting-", 2: "live+"}
        await room.mirror.waiting.acquire()  # the deletion waits to be named
        await quiet()
        assert objects(room, "t/checkpoint_000001/"), "the mirror has not named its successor yet"
        room.mirror.open.set()
        await room.settled()
        assert room.states() == {2: "live+"}
        assert room.trees() == ["t/checkpoint_000002"]
        assert len(room.names()) == len(SMALL) + 1
        assert len(room.events.of("bucket_copy_deleted")) == 1
        # a local one replaces it, and the other way round
        await room.save("t", step=3)
        await room.catalog.drain()
        await brought(room, 4)
        await room.settled()
        assert room.states() == {4: "live+"}
        assert room.trees() == ["t/checkpoint_000004"]
        assert room.directories() == []


async def test_a_lease_keeps_it(tmp_path):
    async with BucketRoom(tmp_path / "exp", config=KEEP_ONE) as room:
        await room.catalog.reconcile([])
        await brought(room, 1)
        async with room.catalog.lease("t") as leased:
            await brought(room, 2)
            await room.settled()
            assert read_tree(where(leased)) == SMALL
            assert room.trees() == ["t/checkpoint_000001", "t/checkpoint_000002"]
        await room.settled()
        assert room.trees() == ["t/checkpoint_000002"]


async def test_it_waits_until_the_bucket_is_this_openings(tmp_path):
    async with BucketRoom(tmp_path / "exp", clock=SystemClock()) as room:
        brings = worker(room)
        waiting = adopt(room, brings, step=1)
        await quiet()
        assert not brings.asked.is_set()
        await room.catalog.reconcile([])
        assert (await waiting).step == 1


async def test_it_does_not_wait_for_ever_for_a_bucket_that_is_away(tmp_path):
    async with BucketRoom(tmp_path / "exp", options={"patience_s": 20.0}) as room:
        brings = worker(room)
        with pytest.raises(UploadError, match="not been reached since the opening, and not for 20 s"):
            await adopt(room, brings, step=1)
        assert not brings.places


# -- what is refused, and what fails -----------------------------------------------------------------------


async def test_without_a_bucket_it_has_to_come_home(room):
    brings = worker(room)
    brings.answer = InBucket(b"")
    with pytest.raises(ConfigError, match="there is no upload_dir; let the worker send it here"):
        await adopt(room, brings, step=1)


async def test_a_syncers_place_is_only_the_syncers(tmp_path):
    async with BucketRoom(tmp_path / "exp", options={"direct": False}) as room:
        brings = worker(room, storage=None)  # and nobody waits for it to be reached
        brings.answer = InBucket(b"")
        with pytest.raises(ConfigError, match="which only it can reach"):
            await adopt(room, brings, step=1)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (InBucket(b"{}"), "cannot be used"),
        ("there", "is a str, and neither"),
    ],
    ids=["no-manifest", "another-value"],
)
async def test_what_is_no_checkpoint_is_refused(bucket, answer, message):
    brings = worker(bucket)
    brings.answer = answer
    with pytest.raises(ConfigError, match=message):
        await adopt(bucket, brings, step=1)
    assert bucket.states() == {}


@pytest.mark.parametrize("changed", ["step", "epoch", "attempt"])
async def test_a_manifest_of_another_checkpoint_is_refused(bucket, changed):
    brings = worker(bucket)
    brings.make = lambda place: brings.made(another(place, **{changed: 7}))
    with pytest.raises(ConfigError, match="is that of another one"):
        await adopt(bucket, brings, step=1)
    assert bucket.states() == {}


async def test_what_is_not_there_is_not_recorded_and_taken_back(bucket):
    brings = worker(bucket)
    brings.then(lambda place: bucket.storage.delete([f"{place.directory}/.manifest.json"]))
    with pytest.raises(UploadError, match=r"is not complete in .*, though its worker said so"):
        await adopt(bucket, brings, step=1)
    assert bucket.states() == {}
    assert bucket.names() == []


async def test_what_cannot_be_recorded_is_taken_back(bucket):
    bucket.sink.put_error = FencedError("another opening owns it")
    with pytest.raises(FencedError):
        await brought(bucket, 1)
    assert bucket.names() == []


async def test_what_cannot_be_taken_back_does_not_hide_the_error(bucket, monkeypatch):
    monkeypatch.setattr(arriving_commits, "_TAKE_BACK_S", 0.05)
    bucket.sink.put_error = FencedError("another opening owns it")
    brings = worker(bucket)
    brings.then(lambda _: bucket.storage.fail(StorageError("no", retryable=False), on="delete", lasting=True))
    with pytest.raises(FencedError) as caught:
        await adopt(bucket, brings, step=1)
    assert "`inspect gc` finds it" in caught.value.__notes__[0]
    assert len(bucket.names()) == len(SMALL) + 1


async def test_what_may_be_durable_is_never_taken_back(bucket):
    bucket.sink.commit_error = disk_full()
    with pytest.raises(StorageError, match="the journal cannot be written"):
        await brought(bucket, 1)
    assert len(bucket.names()) == len(SMALL) + 1
    bucket.sink.commit_error = None


async def test_a_bucket_that_is_away_for_a_moment_is_asked_again(bucket):
    brings = worker(bucket)
    brings.then(lambda _: bucket.storage.fail(StorageError("away", retryable=True), on="read"))
    assert (await adopt(bucket, brings, step=1)).step == 1


async def test_a_bucket_that_is_away_does_not_hold_up_the_close(tmp_path):
    async with BucketRoom(tmp_path / "exp", clock=SystemClock()) as room:
        await room.catalog.reconcile([])
        brings = worker(room)
        brings.then(
            lambda _: room.storage.fail(StorageError("away", retryable=True), on="read", lasting=True)
        )
        task = adopt(room, brings, step=1)
        while brings.ended == "not":  # noqa: ASYNC110 - nothing else tells of it
            await asyncio.sleep(0.001)
        await quiet()
        assert not task.done()
        async with asyncio.timeout(10):
            await room.catalog.aclose()
        with pytest.raises(StorageError, match="away"):
            await task
        assert room.states() == {}
        assert room.names() == []


async def test_unfinished_parts_are_taken_back_too(bucket):
    brings = worker(bucket)
    brings.then(
        lambda place: bucket.storage.begin_upload(
            f"{place.directory}/model.bin", size_bytes=99, part_bytes=50
        )
    )
    bucket.sink.put_error = FencedError("another opening owns it")
    with pytest.raises(FencedError):
        await adopt(bucket, brings, step=1)
    assert bucket.names() == []
    assert not bucket.held.uploads


def dying(bucket, last):
    """A worker whose machine is lost when nearly all is in the bucket, as far as `last` lets it come."""
    brings = worker(bucket)

    async def lost(place):
        await brings.made(place)
        await bucket.storage.delete([f"{place.directory}/{name}" for name in last])
        await bucket.storage.begin_upload(f"{place.directory}/model.bin", size_bytes=99, part_bytes=50)
        raise ConnectionResetError("the node is gone")

    brings.make = lost
    return brings


@pytest.mark.parametrize("last", [[".manifest.json", "model.bin"], []], ids=["half", "all"])
async def test_what_a_worker_that_died_had_sent_is_removed(bucket, last):
    """Also where all of it is there: that was told to nobody."""
    with pytest.raises(ConnectionResetError, match="the node is gone"):
        await adopt(bucket, dying(bucket, last), step=1)
    assert bucket.names() == []
    assert not bucket.held.uploads
    assert bucket.states() == {}


async def test_what_a_worker_that_died_had_sent_and_stays_is_told(bucket):
    bucket.storage.fail(StorageError("no", retryable=False), on="list_uploads", lasting=True)
    with pytest.raises(ConnectionResetError) as caught:
        await adopt(bucket, dying(bucket, []), step=1)
    assert "`inspect gc` finds it" in caught.value.__notes__[0]


async def test_what_it_raises_passes(bucket):
    brings = worker(bucket)
    brings.error = ConnectionResetError("the node is gone")
    with pytest.raises(ConnectionResetError, match="the node is gone") as caught:
        await adopt(bucket, brings, step=1)
    assert caught.value is brings.error
    brings.error = TimeoutError("its own")
    with pytest.raises(TimeoutError, match="its own"):
        await adopt(bucket, brings, step=2)


# -- steps -------------------------------------------------------------------------------------------------


async def test_one_that_does_not_come_leaves_its_step_free(bucket):
    brings = worker(bucket)
    brings.answer = None
    assert await adopt(bucket, brings, step=4) is None
    assert bucket.catalog.last_step("t", 0) == 0
    assert (await brought(bucket, 4)).step == 4
    assert not bucket.events.of("checkpoint_damaged")


async def test_a_name_that_may_be_in_the_bucket_in_part_is_not_given_again(bucket):
    brings = worker(bucket)
    brings.error = ConnectionResetError("gone")
    with pytest.raises(ConnectionResetError):
        await adopt(bucket, brings, step=4)
    assert bucket.catalog.last_step("t", 0) == 4
    with pytest.raises(CheckpointExistsError, match="checkpoint 4, which did not come whole from its worker"):
        await brought(bucket, 4)
    with pytest.raises(CheckpointExistsError, match="did not come whole"):
        await bucket.save("t", step=4)
    # another start of the trial uses other names
    assert bucket.catalog.last_step("t", 1) == 0
    made = await brought(bucket, 4, attempt=1, plain=False)
    assert made.step == 4
    assert bucket.trees() == ["t/checkpoint_000004-1.1"]


async def test_a_step_is_promised_at_once_and_the_order_is_that_of_the_calls(bucket):
    workers = [worker(bucket, f"node-{number}") for number in range(3)]
    for each in workers:
        each.may_go.clear()
    tasks = [adopt(bucket, each, step=number + 1) for number, each in enumerate(workers)]
    await workers[0].asked.wait()
    assert bucket.catalog.last_step("t", 0) == 3
    with pytest.raises(CheckpointExistsError, match="checkpoint 3, which is being saved"):
        await bucket.save("t", step=3)
    saving = asyncio.ensure_future(bucket.save("t"))
    for each in reversed(workers):
        each.may_go.set()
    assert [(await task).step for task in tasks] == [1, 2, 3]
    assert (await saving).step == 4


async def test_metrics_are_those_of_the_call(bucket):
    metrics = {"acc": 1}
    brings = worker(bucket)
    brings.may_go.clear()
    task = adopt(bucket, brings, step=1, metrics=metrics)
    await brings.asked.wait()
    metrics["acc"] = 2
    brings.may_go.set()
    assert (await task).metrics == {"acc": 1}


# -- nobody else waits -------------------------------------------------------------------------------------


async def test_no_slot_is_held_meanwhile(bucket):
    workers = [worker(bucket, f"node-{number}") for number in range(MAX_COPIES + 2)]
    for each in workers:
        each.may_go.clear()
    tasks = [adopt(bucket, each, f"t{number}", step=1) for number, each in enumerate(workers)]
    for each in workers:
        await each.asked.wait()
    async with asyncio.timeout(10):
        await bucket.save("another")
        await bucket.catalog.restore("another")
        await bucket.catalog.drain()
    for each in workers:
        each.may_go.set()
    assert {(await task).step for task in tasks} == {1}


async def test_the_close_does_not_wait_for_what_has_not_come(tmp_path):
    async with BucketRoom(tmp_path / "exp") as room:
        await room.catalog.reconcile([])
        workers = [worker(room, f"node-{number}") for number in range(3)]
        for each in workers:
            each.may_go.clear()
        tasks = [adopt(room, each, step=number + 1) for number, each in enumerate(workers)]
        await workers[0].asked.wait()
        saving = asyncio.ensure_future(room.save("t"))
        await quiet(3)
        async with asyncio.timeout(10):
            await room.catalog.aclose()
        for task in tasks:
            with pytest.raises(StoreClosedError, match="before a checkpoint of trial t had come"):
                await task
        assert isinstance(workers[0].ended, asyncio.CancelledError)
        assert not workers[1].places
        assert (await saving).step == 4, "what was under way is not lost"
        with pytest.raises(StoreClosedError):
            await adopt(room, worker(room), step=9)


async def test_the_close_waits_for_a_commit_that_has_begun(tmp_path):
    async with BucketRoom(tmp_path / "exp") as room:
        await room.catalog.reconcile([])
        while not room.sink.asked.locked():
            await room.sink.asked.acquire()
        room.sink.gate.clear()
        task = adopt(room, worker(room), step=1)
        await room.sink.asked.acquire()
        closing = asyncio.ensure_future(room.catalog.aclose())
        await quiet()
        assert not closing.done()
        room.sink.gate.set()
        assert (await task).step == 1
        await closing
        assert room.stored(1)["mirrored"] is True


async def test_what_comes_in_the_moment_of_the_close_is_committed(tmp_path):
    async with BucketRoom(tmp_path / "exp") as room:
        await room.catalog.reconcile([])
        brings = worker(room)
        there, answer = asyncio.Event(), asyncio.get_running_loop().create_future()

        async def made_before(place):
            came = await brings.made(place)
            there.set()
            await answer
            return came

        brings.make = made_before
        task = adopt(room, brings, step=1)
        await there.wait()
        answer.set_result(None)
        await room.catalog.aclose()
        assert (await task).step == 1
        assert room.stored(1)["bucket_only"] is True


async def test_a_store_that_fails_does_not_wait_for_it(tmp_path):
    async with BucketRoom(tmp_path / "exp") as room:
        await room.catalog.reconcile([])
        brings = worker(room)
        brings.may_go.clear()
        task = adopt(room, brings, step=1)
        await brings.asked.wait()
        async with asyncio.timeout(10):
            await room.end(cancel=True)
            await room.catalog.abandon()
            await room.catalog.abandon()
        with pytest.raises(StoreClosedError):
            await task
        room._run = None


@pytest.mark.parametrize("delay", [0.0, 0.0008], ids=["at-once", "later"])
@pytest.mark.parametrize("way", ["home", "bucket"])
async def test_cancelled_at_every_await_it_is_committed_whole_or_not_at_all(tmp_path, way, delay):
    ended = False
    suspension = 0
    while not ended:
        suspension += 1
        path = tmp_path / str(suspension)
        async with BucketRoom(path / "exp", clock=QuickClock()) as room:
            await room.catalog.reconcile([])
            room.watch()
            brings = worker(room, storage=room.storage if way == "bucket" else None)
            call = room.catalog.arrivals.adopt(Wanted.of("t", "t"), brings.checkpoint, 1)
            ended = await cancelled_at(call, suspension, delay)
            recorded = room.states()
            assert recorded in ({}, {1: "live"}, {1: "live+"})
            assert recorded or not ended
            await room.catalog._context.records.commit()
            with contextlib.suppress(CheckpointExistsError):
                await brought(room, 1, attempt=1, plain=False)
            assert room.states()
            if way == "bucket" and not recorded and brings.ended is None:
                assert objects(room, "t/checkpoint_000001/") == [], "what nobody names is taken back"
            await room.catalog.drain()
            room.check()
            left: MemorySink = room.sink.crashed()
        async with BucketRoom(path / "exp", held=room.held, sink=left, epoch=2) as again:
            await again.catalog.reconcile(["t"])
            assert read_tree(where(await again.catalog.restore("t"))) == SMALL
            assert not again.events.of("checkpoint_damaged")
    assert suspension > 5
