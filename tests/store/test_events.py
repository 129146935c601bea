from __future__ import annotations

import asyncio
import gc

import pytest

from asynctune.config import CheckpointConfig
from asynctune.errors import StoreClosedError
from asynctune.store.events import EventStream, StoreEvent
from asynctune.store.store import ExperimentStore
from tests.store.scenes import directory_with


async def test_events_tell_what_happens_from_the_call_on(location, tmp_path):
    async with ExperimentStore.open(location, checkpoint_config=CheckpointConfig(num_to_keep=1)) as store:
        store.add_trial({}, "early")
        events = store.events()
        store.add_trial({}, "t")
        store.set_status("t", "RUNNING")
        store.set_status("t", "RUNNING")
        store.report("t", {"loss": 1}, iteration=7)
        for _ in range(2):
            await store.save_checkpoint("t", directory_with(tmp_path / "d"))
        store.set_status("t", "ERROR")
        store.requeue(resume_errored=True)
        seq = await store.flush()
    told = [event async for event in events]
    kinds = [event.kind for event in told if event.kind != "committed"]
    assert kinds[:3] == ["trial_added", "status_changed", "result"]
    assert [event.trial_id for event in told if event.kind == "trial_added"] == ["t"]
    assert told[1].data == {"status": "RUNNING", "before": "PENDING"}
    assert told[2].data == {"iteration": 7}
    assert [event.step for event in told if event.kind == "checkpoint_saved"] == [1, 2]
    assert [event.step for event in told if event.kind == "checkpoint_deleted"] == [1]
    assert [e.data["status"] for e in told if e.kind == "status_changed"] == ["RUNNING", "ERROR", "PENDING"]
    assert seq in [event.seq for event in told if event.kind == "committed"]
    assert kinds[-1] == "closed"
    assert kinds.count("closed") == 1


async def test_a_trial_that_is_started_over_is_told_as_one_that_was_added(store):
    store.add_trial({}, "failed")
    store.set_status("failed", "ERROR")
    events = store.events()
    store.requeue(restart_errored=True)
    (new,) = store.trials
    told = await anext(events)
    assert (told.kind, told.trial_id) == ("trial_added", new.trial_id)


async def test_a_slow_subscriber_is_told_how_much_it_missed_and_others_miss_nothing(store, monkeypatch):
    monkeypatch.setattr("asynctune.store.events.QUEUE_LENGTH", 10)
    slow, quick = store.events(), store.events()
    seen = []
    for number in range(25):
        store.add_trial({}, f"t{number}")
        while True:
            event = await anext(quick)
            if event.kind == "trial_added":
                seen.append(event.trial_id)
                break
    assert seen == [f"t{number}" for number in range(25)]
    lagged = await anext(slow)
    assert lagged.kind == "lagged"
    assert lagged.data["dropped"] >= 15
    rest = [(await anext(slow)) for _ in range(10)]
    assert rest[-1].kind in {"trial_added", "committed"}
    assert {event.trial_id for event in rest} >= {"t24"}


async def test_a_subscriber_that_went_away_costs_nothing(store):
    for _ in range(3):
        store.events()
    gc.collect()
    store.add_trial({})
    assert len(store._events._subscriptions) == 0


async def test_a_waiting_subscriber_may_be_cancelled_and_asked_again(store):
    events = store.events()
    task = asyncio.create_task(anext(events))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    store.add_trial({}, "t")
    while (event := await anext(events)).kind != "trial_added":
        pass
    assert event.trial_id == "t"


async def test_what_was_not_taken_before_the_close_is_still_given(location):
    async with ExperimentStore.open(location) as store:
        events = store.events()
        store.add_trial({}, "t")
    kinds = [event.kind async for event in events]
    assert kinds[0] == "trial_added"
    assert kinds[-1] == "closed"
    assert [event async for event in events] == []
    with pytest.raises(StoreClosedError):
        store.events()


async def test_a_stream_without_subscribers_keeps_nothing():
    stream = EventStream()
    stream.emit("result", trial_id="t")
    first = stream.subscribe()
    stream.emit("result", trial_id="u", message="m", seq=3, step=4, more=5)
    stream.close()
    (event,) = [event async for event in first]
    assert (event.trial_id, event.message, event.seq, event.step, event.data) == ("u", "m", 3, 4, {"more": 5})
    assert [event async for event in stream.subscribe()] == []


@pytest.mark.parametrize("kind", ["recovered_tear", "orphan_set_aside", "checkpoint_lost"])
async def test_what_happens_before_anybody_can_subscribe_is_held(kind):
    stream = EventStream()
    stream.emit("committed", seq=1)
    stream.emit(kind, message="found")
    events = stream.subscribe()
    stream.opened()
    stream.close()
    assert [(event.kind, event.message) async for event in events] == [(kind, "found")]


async def test_what_the_opening_found_is_told_to_who_subscribes_at_once(location, tmp_path, caplog):
    async with ExperimentStore.open(location) as store:
        store.add_trial({}, "t")
        await store.save_checkpoint("t", directory_with(tmp_path / "d"))
        seq = await store.flush()
    wal = max((location / ".asynctune").glob("wal-*"))
    wal.write_bytes(wal.read_bytes() + b"ATJ1 a header cut short")
    directory_with(location / "t" / "checkpoint_000007")
    async with ExperimentStore.open(location) as store:
        events = store.events()
        await asyncio.sleep(0)
        late = store.events()
        told: list[StoreEvent] = []
        while len(told) < 2:
            event = await anext(events)
            if event.kind in {"recovered_tear", "orphan_set_aside"}:
                told.append(event)
        assert {event.kind for event in told} == {"recovered_tear", "orphan_set_aside"}
        assert store.opening.tear in {event.message for event in told}
        assert store.stats().committed_seq > seq
    assert "recovered_tear" not in [event.kind async for event in late]
