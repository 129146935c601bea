from __future__ import annotations

from dataclasses import replace

import pytest

from asynctune.checkpoints.bucket_deletion import given_up
from asynctune.config import CheckpointConfig
from asynctune.errors import AuthenticationError, FencedError, StorageError
from asynctune.testing import ManualClock
from asynctune.trial import MANIFEST_FILE
from tests.checkpoints.buckets import BucketRoom, record
from tests.checkpoints.fakes import Room

ONE = CheckpointConfig(num_to_keep=1)
BEST = CheckpointConfig(num_to_keep=1, checkpoint_score_attribute="acc")
ALL = CheckpointConfig()


# -- the rule ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("records", "config", "expected"),
    [
        ([], ONE, set()),
        ([record(1)], ONE, set()),
        ([record(1, "deleting+"), record(2, "live")], ONE, set()),
        ([record(1, "deleting+"), record(2)], ONE, {1}),
        ([record(1), record(2)], ONE, set()),
        ([record(1, "deleting+"), record(2, "deleting+"), record(3, "live")], ONE, {1}),
        ([record(1, "deleting-"), record(2, "deleting+"), record(3, "live")], ONE, set()),
        ([record(1, "deleting+", 9.0), record(2, "live+", 1.0)], BEST, set()),
        ([record(1, "live+", 9.0), record(2, "deleting+", 1.0), record(3, "live+", 5.0)], BEST, {2}),
        ([record(1, "live+", 9.0), record(2, "deleting+", 1.0), record(3, "live", 5.0)], BEST, set()),
        ([record(1, "deleting+"), record(2)], ALL, {1}),
        ([record(1, "deleting+"), record(2, "live")], ALL, set()),
        ([record(1), record(2, "deleting+")], ALL, set()),
    ],
    ids=[
        "nothing",
        "one",
        "replacement-not-there",
        "replacement-there",
        "live-ones-stay",
        "the-newest-there-stays",
        "what-is-being-deleted-replaces-nothing",
        "the-best-there-stays",
        "best-and-newest-there",
        "newest-not-there",
        "all-kept-but-retired-before",
        "all-kept-replacement-not-there",
        "all-kept-older-ones-replace-nothing",
    ],
)
def test_what_the_bucket_gives_up(records, config, expected):
    assert given_up(records, config) == expected


# -- the order ---------------------------------------------------------------------------------------------


async def test_a_copy_goes_when_what_replaces_it_is_there_and_named(tmp_path):
    async with BucketRoom(tmp_path / "exp", config=ONE) as room:
        room.watch()
        await room.save("t")
        await room.catalog.drain()
        hung = room.storage.hang(on="put", nth=2)
        await room.save("t")
        await hung.struck.wait()
        await room.deleted()
        assert room.states() == {1: "deleting+", 2: "live"}
        assert room.directories() == ["checkpoint_000002"]
        assert room.trees() == ["t/checkpoint_000001"]
        assert room.steps() == [2]
        room.mirror.open.clear()
        while room.mirror.waiting._value:
            await room.mirror.waiting.acquire()
        room.storage.heal()
        room.watch()
        await room.catalog.drain()
        await (
            room.mirror.waiting.acquire()
        )  # somebody waits for the mirror now, and nothing is deleted before
        assert room.states() == {1: "deleting-", 2: "live+"}
        assert room.stored(1)["bucket_deleting"] is True
        assert room.storage.count("delete") == 0
        room.mirror.open.set()
        await room.settled()
        assert room.states() == {2: "live+"}
        assert room.names() == [name for name in room.names() if name.startswith("t/checkpoint_000002/")]
        (event,) = room.events.of("bucket_copy_deleted")
        assert (event["trial_id"], event["step"]) == ("t", 1)
        assert [event["step"] for event in room.events.of("checkpoint_deleted")] == [1]


async def test_the_mark_and_what_replaces_it_are_one_commit(tmp_path):
    async with BucketRoom(tmp_path / "exp", config=ONE) as room:
        seen = []

        def look() -> None:
            states = {
                step: (value["mirrored"], value.get("bucket_deleting"))
                for step in room.sink.steps("t")
                if (value := room.sink.get(f"checkpoint/t/{step}"))
            }
            if states.get(1, (False, False))[1]:
                seen.append(states)

        await room.save("t")
        await room.catalog.drain()
        room.sink.before_commit = look
        await room.save("t")
        await room.catalog.drain()
        await room.settled()
        assert seen[0][2][0]
        assert seen[0][1][1]


async def test_the_manifest_goes_first_and_the_record_last(tmp_path):
    async with BucketRoom(tmp_path / "exp", config=ONE) as room:
        deleted = []

        def look(call):
            if call.operation == "delete":
                assert room.record(1).bucket_deleting
                deleted.append(call.key)

        room.storage.call(look, lasting=True)
        for _ in range(2):
            await room.save("t")
            await room.catalog.drain()
        await room.settled()
        assert deleted[0] == f"t/checkpoint_000001/{MANIFEST_FILE}"
        assert list(room.states()) == [2]


async def test_a_leftover_of_a_failed_upload_is_deleted_too(tmp_path):
    async with BucketRoom(tmp_path / "exp", config=ONE, clock=ManualClock()) as room:
        room.watch()
        room.storage.fail(AuthenticationError("no"), on="complete_upload", nth=2)
        await room.save("t")
        await room.events.happened("upload_failed")
        assert room.names()
        await room.save("t")  # the first is retired before it is tried again
        await room.catalog.drain()
        await room.settled()
        assert room.states() == {2: "live+"}
        assert all(name.startswith("t/checkpoint_000002/") for name in room.names())
        assert not room.held.uploads


async def test_what_cannot_be_deleted_is_tried_again(tmp_path, caplog):
    async with BucketRoom(tmp_path / "exp", config=ONE) as room:
        room.storage.fail(on="delete", nth=2)
        for _ in range(2):
            await room.save("t")
            await room.catalog.drain()
        await room.settled()
        assert room.states() == {2: "live+"}
        assert room.trees() == ["t/checkpoint_000002"]
        (event,) = room.events.of("write_failed")
        assert "cannot delete checkpoint 1 of trial t in memory://bucket" in event["message"]
        assert event["message"] in caplog.text


async def test_a_mirror_that_fails_is_waited_for(tmp_path):
    async with BucketRoom(tmp_path / "exp", config=ONE) as room:
        room.mirror.error = StorageError("away", retryable=True)
        for _ in range(2):
            await room.save("t")
            await room.catalog.drain()
        await room.events.happened("write_failed")
        assert room.storage.count("delete") == 0
        room.mirror.error = None
        await room.settled()
        assert room.trees() == ["t/checkpoint_000002"]


async def test_whoever_is_fenced_deletes_nothing(tmp_path):
    room = BucketRoom(tmp_path / "exp", config=ONE)
    await room.__aenter__()
    await room.save("t")
    await room.catalog.drain()
    room.mirror.error = FencedError("another driver went on")
    await room.save("t")
    with pytest.raises(BaseExceptionGroup) as caught:
        await room.end()
    assert caught.group_contains(FencedError)
    assert room.storage.count("delete") == 0
    assert room.trees() == ["t/checkpoint_000001", "t/checkpoint_000002"]
    await room.catalog.abandon()
    room.copies.close()
    room.transfer.close()


async def test_the_close_finishes_what_is_given_up(tmp_path):
    """Also when the last upload ends only in the close; the mirror is told to hurry then."""
    flushed = []
    room = BucketRoom(tmp_path / "exp", config=ONE)
    side = room.catalog._side
    assert side is not None

    async def flush(seq: int) -> None:
        flushed.append(seq)
        room.mirror.swap()

    side._deletions._bucket = replace(side._deletions._bucket, flush=flush)
    async with room:
        room.watch()
        await room.save("t")
        await room.catalog.drain()
        room.mirror.open.clear()  # it names nothing by itself for a while
        await room.save("t")
    assert flushed
    assert room.states() == {2: "live+"}
    assert room.trees() == ["t/checkpoint_000002"]


@pytest.mark.parametrize(
    ("timeout_s", "patience_s"), [(0.05, 1800.0), (None, 0.05)], ids=["deadline", "no limit"]
)
async def test_the_close_does_not_wait_for_a_mirror_for_ever(tmp_path, caplog, timeout_s, patience_s):
    """A bucket may go away after the close has begun; then nothing else would end it."""
    room = BucketRoom(tmp_path / "exp", config=ONE, options={"patience_s": patience_s})
    await room.__aenter__()
    await room.save("t")
    await room.catalog.drain()
    room.mirror.open.clear()
    await room.save("t")
    await room.catalog.drain()
    assert await room.catalog.aclose(drain_timeout_s=timeout_s) == ()
    assert "1 retired checkpoints are still in memory://bucket" in caplog.text
    await room.end()
    assert room.states() == {1: "deleting-", 2: "live+"}
    async with BucketRoom(room.path, held=room.held, sink=room.sink.crashed(), epoch=2, config=ONE) as again:
        again.watch()
        await again.catalog.reconcile(["t"])
        await again.settled()
        assert again.states() == {2: "live+"}
        assert again.trees() == ["t/checkpoint_000002"]


async def test_without_a_bucket_the_record_of_a_copy_stays(tmp_path):
    """An opening that does not know the bucket must not forget what is there."""
    room = BucketRoom(tmp_path / "exp", config=ONE)
    async with room:
        await room.save("t")
    async with Room(room.path, sink=room.sink.crashed(), epoch=2, config=ONE) as local:
        await local.save("t")
        await local.deleted()
        assert local.steps() == [2]
        assert local.directories() == ["checkpoint_000002-2.0"] or local.directories() == [
            "checkpoint_000002"
        ]
        assert local.sink.steps("t") == [1, 2]
    async with BucketRoom(room.path, held=room.held, sink=local.sink.crashed(), epoch=3, config=ONE) as again:
        await again.catalog.reconcile(["t"])
        await again.catalog.drain()
        await again.settled()
        assert again.states() == {2: "live+"}
        assert len(again.trees()) == 1
