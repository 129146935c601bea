from __future__ import annotations

import asyncio

import pytest

from asynctune.checkpoints.uploads import UploadStats
from asynctune.config import CheckpointConfig
from asynctune.errors import AuthenticationError, FencedError, StorageError, StoreClosedError, UploadError
from asynctune.testing import ManualClock
from asynctune.trial import MANIFEST_FILE
from tests.checkpoints.buckets import PUT_BYTES, BucketRoom, quiet
from tests.checkpoints.fakes import TREE, Room, disk_full

BYTES = sum(map(len, TREE.values()))


@pytest.fixture
async def room(tmp_path):
    async with BucketRoom(tmp_path / "exp") as made:
        made.watch()
        yield made


def completed(room: BucketRoom) -> list[str]:
    """Directories in the order in which their manifests were put."""
    return [
        call.key.removesuffix(f"/{MANIFEST_FILE}")
        for call in room.storage.log
        if call.operation in {"put", "complete_upload"} and call.key.endswith(MANIFEST_FILE)
    ]


async def test_a_saved_checkpoint_comes_to_the_bucket(room):
    saved = await room.save("t")
    assert not saved.mirrored
    await room.catalog.drain()
    (now,) = room.catalog.list("t")
    assert now.mirrored
    assert room.stored(1)["mirrored"] is True
    assert room.trees() == ["t/checkpoint_000001"]
    room.check()
    assert [event["kind"] for event in room.events] == [
        "checkpoint_saved",
        "upload_started",
        "checkpoint_mirrored",
    ]
    stats = room.catalog.uploads
    assert stats == UploadStats(pending=0, done=1, failed=0, sent_bytes=stats.sent_bytes)
    assert stats.sent_bytes > BYTES


async def test_a_save_does_not_wait_for_the_bucket(room):
    room.storage.hang(lasting=True)
    for _ in range(3):
        await room.save("t")
    assert room.catalog.uploads.pending == 3
    assert [each.mirrored for each in room.catalog.list("t")] == [False] * 3
    room.storage.heal()
    await room.catalog.drain()
    assert room.catalog.uploads.pending == 0


async def test_clones_and_adopted_ones_are_uploaded_too(room):
    await room.save("t")
    await room.catalog.clone("t", 1, to_trial="u", trial_name="u")
    await room.catalog.drain()
    assert room.trees() == ["t/checkpoint_000001", "u/checkpoint_000001"]


async def test_nothing_is_sent_before_the_record_is_durable(room):
    room.sink.gate.clear()
    saving = asyncio.create_task(room.save("t"))
    await room.sink.asked.acquire()
    for _ in range(20):
        await asyncio.sleep(0)
    assert room.storage.count() == 0
    room.sink.gate.set()
    await saving
    await room.catalog.drain()
    assert room.trees() == ["t/checkpoint_000001"]


async def test_the_newest_first_one_of_a_trial_at_a_time_and_trials_in_turn(tmp_path):
    claimed = asyncio.Event()
    async with BucketRoom(tmp_path / "exp", claimed=claimed, options={"max_concurrency": 1}) as room:
        for trial in "ab":
            for _ in range(3):
                await room.save(trial)
        claimed.set()
        await room.catalog.drain()
        order = [name.removeprefix("/") for name in completed(room)]
        assert order == [f"{trial}/checkpoint_00000{step}" for step in (3, 2, 1) for trial in "ab"]


async def test_no_more_than_allowed_at_once(tmp_path):
    async with BucketRoom(tmp_path / "exp", options={"max_concurrency": 2}) as room:
        hung = room.storage.hang(lasting=True)
        for trial in "abcd":
            await room.save(trial)
        await hung.struck.wait()
        await quiet()
        assert {call.key.partition("/")[0] for call in room.storage.log} == {"a", "b"}
        room.storage.heal()
        await room.catalog.drain()
        assert len(room.trees()) == 4


async def test_nothing_is_sent_before_the_bucket_is_owned(tmp_path):
    claimed = asyncio.Event()
    async with BucketRoom(tmp_path / "exp", claimed=claimed) as room:
        await room.save("t")
        waiting = asyncio.create_task(room.catalog.drain())
        await quiet()
        assert room.storage.count() == 0
        assert not waiting.done()
        claimed.set()
        await waiting
        assert room.trees() == ["t/checkpoint_000001"]


# -- retention ---------------------------------------------------------------------------------------------


async def test_what_is_retired_before_it_begins_is_never_sent(tmp_path):
    claimed = asyncio.Event()
    async with BucketRoom(tmp_path / "exp", config=CheckpointConfig(num_to_keep=1), claimed=claimed) as room:
        for _ in range(5):
            await room.save("t")
        await room.deleted()
        assert room.catalog.uploads.pending == 1
        assert room.states() == {5: "live"}
        claimed.set()
        await room.catalog.drain()
        assert room.trees() == ["t/checkpoint_000005"]
        assert completed(room) == ["t/checkpoint_000005"]


async def test_what_has_begun_is_finished_though_it_would_be_retired(tmp_path):
    async with BucketRoom(tmp_path / "exp", config=CheckpointConfig(num_to_keep=1)) as room:
        room.watch()
        hung = room.storage.hang(on="put", nth=2)
        await room.save("t")
        await hung.struck.wait()
        for _ in range(3):
            await room.save("t")
        await room.deleted()
        assert room.states() == {1: "live", 4: "live"}  # the source of the upload is leased
        room.storage.heal()
        await room.catalog.drain()
        await room.settled()
        assert completed(room) == ["t/checkpoint_000001", "t/checkpoint_000004"]
        assert room.states() == {4: "live+"}
        assert room.trees() == ["t/checkpoint_000004"]


# -- failures ----------------------------------------------------------------------------------------------


async def test_a_failed_upload_is_told_counted_and_tried_again(room):
    room.storage.fail(AuthenticationError("who are you"), on="put", lasting=True)
    await room.save("t")
    with pytest.raises(UploadError, match=r"1 of the pending .* checkpoint 1 of trial t: who are you"):
        await room.catalog.drain()
    assert room.catalog.uploads.failed == 1
    assert room.catalog.uploads.pending == 1
    first = room.events.of("upload_failed")[0]
    assert (first["trial_id"], first["step"], first["failures"]) == ("t", 1, 1)
    assert "who are you" in first["message"]
    with pytest.raises(UploadError):
        await room.catalog.drain()  # tried at once, whatever the backoff says
    assert len(room.events.of("upload_failed")) >= 2
    room.storage.heal()
    await room.catalog.drain()
    assert room.catalog.uploads == UploadStats(done=1, sent_bytes=room.catalog.uploads.sent_bytes)
    assert room.trees() == ["t/checkpoint_000001"]


async def test_it_is_tried_again_by_itself_after_a_while(tmp_path):
    clock = ManualClock()
    async with BucketRoom(tmp_path / "exp", clock=clock) as room:
        room.storage.fail(AuthenticationError("no"), on="put", nth=1)
        await room.save("t")
        failed = await room.events.happened("upload_failed")
        await clock.advance(failed["again_in_s"] + 1)
        await room.events.happened("checkpoint_mirrored")
        assert room.trees() == ["t/checkpoint_000001"]


async def test_one_that_fails_holds_up_no_other(tmp_path):
    claimed = asyncio.Event()
    async with BucketRoom(tmp_path / "exp", claimed=claimed) as room:
        for trial in "ttu":
            await room.save(trial)
        (room.path / "t/checkpoint_000002/z.json").write_bytes(b"[]")
        claimed.set()
        with pytest.raises(UploadError, match=r"1 of the pending .* checkpoint 2 of trial t: "):
            await room.catalog.drain()
        assert room.states() == {1: "live+", 2: "live"}
        assert room.states("u") == {1: "live+"}
        (room.path / "t/checkpoint_000002/z.json").write_bytes(TREE["z.json"])


async def test_many_failures_are_summed_up(room):
    room.storage.fail(AuthenticationError("no"), lasting=True)
    for number in range(8):
        await room.save(f"t{number}")
    with pytest.raises(
        UploadError, match=r"8 of the pending .* again: 8 checkpoints \(1 of trial t\d, .* 5 more\):.* no$"
    ):
        await room.catalog.drain()


async def test_a_journal_that_fails_ends_the_uploads(tmp_path):
    room = BucketRoom(tmp_path / "exp", deleting=False)
    await room.save("t")
    room.sink.commit_error = disk_full()
    with pytest.raises(BaseExceptionGroup) as caught:
        await room.catalog.run()
    assert caught.group_contains(StorageError)
    with pytest.raises(StoreClosedError):
        await room.catalog.drain()
    await room.catalog.abandon()
    room.copies.close()
    room.transfer.close()


async def test_whoever_is_fenced_stops(tmp_path):
    room = BucketRoom(tmp_path / "exp", deleting=False)
    await room.save("t")
    room.storage.call(lambda _: setattr(room.sink, "put_error", FencedError("another")), on="put")
    with pytest.raises(BaseExceptionGroup) as caught:
        await room.catalog.run()
    assert caught.group_contains(FencedError)
    assert not room.record(1).mirrored
    await room.catalog.abandon()
    room.copies.close()
    room.transfer.close()


# -- periods -----------------------------------------------------------------------------------------------


async def test_uploads_begin_at_each_period_only(tmp_path):
    clock = ManualClock()
    options = {"sync_on_checkpoint": False, "sync_period_s": 100.0}
    async with BucketRoom(tmp_path / "exp", clock=clock, options=options) as room:
        await room.save("t")
        await clock.advance(99.0)
        assert room.storage.count() == 0
        await clock.advance(1.0)
        await room.events.happened("checkpoint_mirrored")
        await room.save("t")
        await clock.advance(99.0)
        assert room.catalog.uploads.done == 1
        await clock.advance(1.0)
        await room.events.happened("checkpoint_mirrored", 2)
        await room.save("t")
        await room.catalog.drain()  # does not wait for the period
        assert room.catalog.uploads.done == 3


# -- the end -----------------------------------------------------------------------------------------------


async def test_the_close_uploads_what_is_pending(tmp_path):
    room = BucketRoom(tmp_path / "exp")
    async with room:
        for trial in "tu":
            await room.save(trial)
    assert room.trees() == ["t/checkpoint_000001", "u/checkpoint_000001"]
    assert room.catalog.uploads.pending == 0
    assert not room.events.of("uploads_left")


async def test_the_close_ends_at_its_deadline_and_says_what_is_left(tmp_path, caplog):
    clock = ManualClock()
    room = BucketRoom(tmp_path / "exp", clock=clock, options={"max_concurrency": 1}, timeout_s=1000.0)
    await room.__aenter__()
    await room.save("a")
    await room.catalog.drain()
    hung = room.storage.hang(on="put", nth=3, lasting=True)
    await room.save("t")
    await room.save("u")
    await hung.struck.wait()
    closing = asyncio.create_task(room.catalog.aclose(drain_timeout_s=30.0))
    await clock.advance(29.0)
    assert not closing.done()
    await clock.advance(1.0)
    left = await closing
    assert [(each.trial_id, each.step) for each in left] == [("t", 1), ("u", 1)]
    assert left[0].reason == "its upload had not ended"
    assert left[1].reason == "its upload had not begun"
    (event,) = room.events.of("uploads_left")
    assert "2 checkpoints are not in memory://bucket yet" in event["message"]
    assert event["message"] in caplog.text
    await room.end()
    assert room.stored(1)["mirrored"] is False
    # The next opening finishes it, and sends nothing again that is there.
    there = set(room.names())
    async with BucketRoom(room.path, held=room.held, sink=room.sink.crashed(), epoch=2) as again:
        report = await again.catalog.reconcile(["a", "t", "u"])
        assert report.pending == 2
        await again.catalog.drain()
        assert len(again.trees()) == 3
        assert not there.intersection(call.key for call in again.storage.log if call.operation == "put")


async def test_the_close_does_not_wait_for_a_bucket_that_hangs_to_let_go(tmp_path):
    clock = ManualClock()
    room = BucketRoom(tmp_path / "exp", clock=clock, timeout_s=1000.0)
    await room.__aenter__()
    hung = room.storage.hang(on="begin_upload", lasting=True)
    (tmp_path / "large").mkdir()
    (tmp_path / "large" / "weights.bin").write_bytes(bytes(2 * PUT_BYTES))
    await room.save("t", tmp_path / "large")
    await hung.struck.wait()
    closing = asyncio.create_task(room.catalog.aclose(drain_timeout_s=30.0))
    await clock.advance(30.0)
    async with asyncio.timeout(20):
        (left,) = await closing
    assert left.reason == "its upload had not ended"
    room.storage.heal()
    await room.end()
    assert room.stored(1)["mirrored"] is False


async def test_what_fails_at_the_close_is_tried_once(tmp_path):
    room = BucketRoom(tmp_path / "exp")
    await room.__aenter__()
    room.storage.fail(AuthenticationError("no more"), lasting=True)
    await room.save("t")
    left = await room.catalog.aclose()
    assert [each.reason for each in left] == ["no more"]
    await room.end()


async def test_a_bucket_that_was_never_reached_does_not_hold_up_the_close(tmp_path):
    room = BucketRoom(tmp_path / "exp", claimed=asyncio.Event())
    await room.__aenter__()
    await room.save("t")
    waiting = asyncio.create_task(room.catalog.drain())
    await asyncio.sleep(0)
    (left,) = await room.catalog.aclose()
    assert "not reached" in left.reason
    with pytest.raises(StoreClosedError, match="open the experiment again"):
        await waiting
    await room.end()


async def test_a_cancelled_run_leaves_nothing_behind(tmp_path):
    room = BucketRoom(tmp_path / "exp")
    await room.__aenter__()
    hung = room.storage.hang(on="put", nth=2, lasting=True)
    await room.save("t")
    await hung.struck.wait()
    before = asyncio.all_tasks()
    await room.end(cancel=True)
    assert not {task for task in asyncio.all_tasks() if task not in before or not task.done()} - {
        asyncio.current_task()
    }
    await room.catalog.abandon()
    assert not room.catalog._deletions.leases.steps("t")


async def test_there_may_be_nothing_to_drain(tmp_path):
    async with BucketRoom(tmp_path / "with") as room, Room(tmp_path / "without") as local:
        await room.catalog.drain()
        await local.save("t")
        await local.catalog.drain()
        assert local.catalog.uploads == UploadStats()
        assert not (await local.catalog.reconcile(["t"])).pending
