from __future__ import annotations

import asyncio
import errno
import gc
import os
import re
import threading
import traceback
import warnings
from pathlib import Path
from typing import Any

import pytest

from asynctune.checkpoints.staging import stage_for_adoption
from asynctune.config import CheckpointConfig, SyncConfig
from asynctune.errors import (
    CheckpointExistsError,
    CheckpointNotFoundError,
    ConfigError,
    StorageError,
    StoreClosedError,
    TransitionError,
)
from asynctune.store.store import ExperimentStore
from asynctune.testing import FaultyFiles, ManualClock
from asynctune.trial import Checkpoint
from tests.crash.checking import check_experiment, leftovers
from tests.store.scenes import Counter, directory_with, engine_of, result_rows, state_of

# -- metadata ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["a", "a/b", "../x", "é", "x" * 300, " ", "line\nbreak", "nul\0"])
async def test_metadata_keys_are_any_text(location, key):
    async with ExperimentStore.open(location) as store:
        store.set_metadata(key, {"v": None})
        assert store.metadata == {key: {"v": None}}
    async with ExperimentStore.open(location, "read") as reader:
        assert reader.metadata == {key: {"v": None}}


@pytest.mark.parametrize("key", ["", None, 5, b"k", "\ud800"])
async def test_a_metadata_key_that_is_none_is_refused(store, key):
    with pytest.raises(ConfigError, match="key"):
        store.set_metadata(key, 1)
    assert store.metadata == {}
    await store.flush()


async def test_metadata_that_cannot_be_stored_names_the_key_and_the_part(store):
    store.set_metadata("k", 1)
    with pytest.raises(ConfigError, match=r"metadata 'k'\['a'\]\[1\]"):
        store.set_metadata("k", {"a": [1, object()]})
    assert store.metadata == {"k": 1}


# -- flush -------------------------------------------------------------------------------------------------


async def test_flush_returns_the_seq_that_has_everything_and_the_disk_agrees(location, store):
    first = await store.flush()
    assert await store.flush() == first
    store.set_metadata("a", 1)
    second = await store.flush()
    assert second == first + 1
    assert store.stats().committed_seq == second
    assert "meta/a" in await asyncio.to_thread(state_of, location)


async def test_flushes_beside_each_other_are_one_commit(store):
    await store.flush()
    before = store.stats().commits

    async def one(number):
        store.set_metadata(f"k{number}", number)
        return await store.flush()

    seqs = await asyncio.gather(*(one(number) for number in range(50)))
    assert store.stats().commits - before <= 3
    assert max(seqs) == store.stats().committed_seq


async def test_what_nobody_flushes_is_committed_by_itself(location):
    clock = ManualClock()
    async with ExperimentStore.open(location, clock=clock) as store:
        events = store.events()
        store.set_metadata("k", 1)
        await clock.advance(60)
        while (await anext(events)).kind != "committed":
            pass
        assert store.stats().dirty_keys == 0
        assert "meta/k" in await asyncio.to_thread(state_of, location)


async def test_a_mirror_that_is_not_there_cannot_be_waited_for(store):
    with pytest.raises(ConfigError, match="upload_dir"):
        await store.flush(mirror=True)
    await store.drain()


# -- checkpoints -------------------------------------------------------------------------------------------


async def test_a_saved_checkpoint_is_durable_before_the_caller_is_told(location, tmp_path):
    store = await ExperimentStore.open(location)
    trial = store.add_trial({}, "t", "named")
    store.report("t", {"acc": 0.5})
    saved = await store.save_checkpoint("t", directory_with(tmp_path / "d", model__bin=b"w1"))
    assert (saved.trial_id, saved.step, saved.mirrored) == ("t", 1, False)
    assert saved.path == location / "named" / "checkpoint_000001"
    assert saved.metrics == {"acc": 0.5, "training_iteration": 1}
    assert saved.files == {"model.bin": 2}
    async with ExperimentStore.open(location, "read") as reader:
        assert reader.checkpoints("t") == (saved,)
        assert reader.get_trial("t").checkpoints == (saved,)
        await check_experiment(reader)
    assert trial.checkpoints == ()
    await store.aclose()


async def test_sources_steps_and_metrics(store, tmp_path):
    store.add_trial({}, "t")
    directory = directory_with(tmp_path / "d")
    assert (await store.save_checkpoint("t", str(directory), 5)).step == 5
    source = await asyncio.to_thread(Checkpoint.from_directory, directory)
    assert (await store.save_checkpoint("t", source)).step == 6
    saved = await store.save_checkpoint("t", Checkpoint.from_dict({"a": (1,)}), metrics={"m": {"n": 1}})
    assert await asyncio.to_thread(saved.to_dict) == {"a": (1,)}
    assert saved.metrics == {"m": {"n": 1}}
    moved = await store.save_checkpoint("t", directory, move=True)
    assert not directory.exists()
    assert moved.path is not None
    assert (moved.path / "model.bin").read_bytes() == b"weights"
    for step in (0, 7, 8):
        with pytest.raises(CheckpointExistsError, match="higher step"):
            await store.save_checkpoint("t", directory_with(tmp_path / "e"), step)
    bad: Any
    for bad in (-1, 1.5, "9", True):
        with pytest.raises(ConfigError):
            await store.save_checkpoint("t", tmp_path / "e", bad)
    with pytest.raises(ConfigError, match=r"metrics\['x'\]"):
        await store.save_checkpoint("t", tmp_path / "e", metrics={"x": object()})
    with pytest.raises(ConfigError):
        await store.save_checkpoint("t", directory_with(tmp_path / "empty") / "missing")
    assert [checkpoint.step for checkpoint in store.checkpoints("t")] == [5, 6, 7, 8]


async def test_adopted_and_cloned_checkpoints(location, store, tmp_path):
    store.add_trial({}, "a")
    store.add_trial({}, "b")
    store.report("a", {"acc": 1})
    (location / "a").mkdir(exist_ok=True)
    staged = await stage_for_adoption(directory_with(tmp_path / "d", x="adopted"), location / "a")
    adopted = await store.adopt_checkpoint("a", staged)
    assert adopted.step == 1
    cloned = await store.clone_checkpoint("a", to_trial="b")
    assert (cloned.trial_id, cloned.step, cloned.metrics) == ("b", 1, {"acc": 1, "training_iteration": 1})
    assert cloned.path is not None
    assert (cloned.path / "x").read_text() == "adopted"
    with pytest.raises(CheckpointNotFoundError, match="no checkpoint 9"):
        await store.clone_checkpoint("a", 9, to_trial="b")
    store.add_trial({}, "c")
    with pytest.raises(CheckpointNotFoundError, match="no checkpoint"):
        await store.clone_checkpoint("c", to_trial="b")


async def test_a_damaged_newest_checkpoint_is_passed_over_loudly_and_the_timeline_cut(
    location, tmp_path, caplog
):
    async with ExperimentStore.open(location) as store:
        store.add_trial({}, "t")
        store.set_status("t", "RUNNING")
        store.report("t", {"n": 1})
        await store.save_checkpoint("t", directory_with(tmp_path / "d", x="1"))
        store.report("t", {"n": 2})
        saved = await store.save_checkpoint("t", directory_with(tmp_path / "d", x="2"))
        store.report("t", {"n": 3})
        assert saved.path is not None
        (saved.path / "x").write_text("!")
        events = store.events()
        restored = await store.restore_checkpoint("t")
        assert restored.step == 1
        assert restored.path is not None
        assert (restored.path / "x").read_text() == "1"
        assert "damaged" in caplog.text
        assert store.get_trial("t").num_results == 1
        while (event := await anext(events)).kind != "checkpoint_damaged":
            pass
        assert (event.trial_id, event.step) == ("t", 2)
        with pytest.raises(CheckpointNotFoundError, match="damaged"):
            await store.restore_checkpoint("t", 2)
        store.report("t", {"n": 4})
        assert (await store.save_checkpoint("t", directory_with(tmp_path / "d", x="3"))).step == 3
    assert [row["n"] for row in result_rows(location / "t")] == [1, 4]


async def test_restore_to_a_place_of_ones_own_and_fetch(location, store, tmp_path):
    store.add_trial({}, "t")
    with pytest.raises(CheckpointNotFoundError, match="has no checkpoint"):
        await store.restore_checkpoint("t")
    saved = await store.save_checkpoint("t", directory_with(tmp_path / "d"))
    restored = await store.restore_checkpoint("t", to=tmp_path / "to")
    assert restored.path == tmp_path / "to"
    with pytest.raises(ConfigError, match="empty"):
        await store.restore_checkpoint("t", to=tmp_path / "to")
    private = await store.restore_checkpoint("t")
    assert private.path is not None
    assert private.path != saved.path
    assert await store.fetch(saved) == saved.path
    assert await store.fetch(saved, tmp_path / "fetched") == tmp_path / "fetched"
    with pytest.raises(CheckpointNotFoundError, match="never committed"):
        await store.fetch(Checkpoint.from_dict(1))
    with pytest.raises(CheckpointNotFoundError):
        await store.fetch(Checkpoint(path=Path("/x"), trial_id="t", step=9))


async def test_a_leased_checkpoint_is_not_deleted_meanwhile(location, tmp_path):
    async with ExperimentStore.open(location, checkpoint_config=CheckpointConfig(num_to_keep=1)) as store:
        store.add_trial({}, "t")
        await store.save_checkpoint("t", directory_with(tmp_path / "d"))
        events = store.events()
        async with store.lease("t") as leased:
            for _ in range(2):
                await store.save_checkpoint("t", directory_with(tmp_path / "d"))
            while (event := await anext(events)).kind != "checkpoint_deleted":
                pass
            assert event.step == 2
            assert leased.path is not None
            assert (leased.path / "model.bin").exists()
        while (event := await anext(events)).kind != "checkpoint_deleted":
            pass
        assert event.step == 1
        assert not leased.path.exists()
        with pytest.raises(CheckpointNotFoundError):
            async with store.lease("t", 1):
                pass


# -- the close ---------------------------------------------------------------------------------------------


async def test_after_the_close_everything_that_changes_is_refused_and_reading_goes_on(location, tmp_path):
    store = await ExperimentStore.open(location)
    store.add_trial({"x": 1}, "t")
    saved = await store.save_checkpoint("t", directory_with(tmp_path / "d"))
    await store.aclose()
    for call in (
        lambda: store.add_trial({}),
        lambda: store.update_trial("t", {}),
        lambda: store.set_status("t", "RUNNING"),
        lambda: store.report("t", {}),
        lambda: store.set_metadata("k", 1),
        lambda: store.attach_searcher(Counter()),
        lambda: store.attach_scheduler(Counter()),
        lambda: store.attach_state("mine", Counter()),
        store.requeue,
        store.events,
        lambda: store.lease("t"),
    ):
        with pytest.raises(StoreClosedError, match="closed"):
            call()
    for coroutine in (
        store.flush(),
        store.drain(),
        store.refresh(),
        store.fetch(saved),
        store.restore_checkpoint("t"),
        store.save_checkpoint("t", tmp_path / "d"),
        store.clone_checkpoint("t", to_trial="t"),
        store.adopt_checkpoint("t", tmp_path / "d"),
    ):
        with pytest.raises(StoreClosedError, match="closed"):
            await coroutine
    assert store.trials[0].config == {"x": 1}
    assert store.stats().dirty_keys == 0
    assert "closed" in repr(store)


async def test_closing_again_or_at_once_from_many_tasks(location):
    store = await ExperimentStore.open(location)
    store.set_metadata("k", 1)
    await asyncio.gather(*(store.aclose() for _ in range(5)))
    await store.aclose()
    async with store:
        pass
    async with ExperimentStore.open(location, "read") as reader:
        assert reader.metadata == {"k": 1}


async def test_a_close_while_saves_run_waits_for_them(location, tmp_path):
    store = await ExperimentStore.open(location)
    store.add_trial({}, "t")
    tasks = [
        asyncio.create_task(store.save_checkpoint("t", directory_with(tmp_path / f"d{n}", x=str(n))))
        for n in range(6)
    ]
    for _ in range(3):
        await asyncio.sleep(0)
    await store.aclose()
    done = [task.result() for task in tasks if task.done() and not task.exception()]
    refused = [task.exception() for task in tasks if task.exception()]
    assert all(isinstance(error, StoreClosedError) for error in refused)
    async with ExperimentStore.open(location) as store:
        assert [c.step for c in store.checkpoints("t")] == [c.step for c in done]
        await check_experiment(store)
    assert leftovers(location) == []


async def test_a_forgotten_close_is_a_resource_warning_and_gives_the_lock_back(location):
    store = await ExperimentStore.open(location)
    store.set_metadata("k", 1)
    await store.flush()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del store
        gc.collect()
    (warning,) = [w for w in caught if issubclass(w.category, ResourceWarning)]
    assert re.search(r"exp' create, 0 trials> was never closed; use `async with`", str(warning.message))
    async with ExperimentStore.open(location) as store:
        assert store.metadata == {"k": 1}


async def test_a_forgotten_reader_is_a_resource_warning_too(location):
    async with ExperimentStore.open(location):
        reader = await ExperimentStore.open(location, mode="read")
        tasks = asyncio.all_tasks()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            del reader
            gc.collect()
        (warning,) = [w for w in caught if issubclass(w.category, ResourceWarning)]
        assert "exp' read, 0 trials> was never closed" in str(warning.message)
        while len(asyncio.all_tasks()) >= len(tasks):  # noqa: ASYNC110 - nobody tells when a task has ended
            await asyncio.sleep(0)


async def test_a_failure_that_is_raised_again_and_again_keeps_one_traceback(location):
    files = FaultyFiles()
    store = await ExperimentStore.open(location, files=files)
    files.fail(5, on={"sync_data", "sync"}, lasting=True)
    store.set_metadata("k", 1)
    with pytest.raises(StorageError):
        await store.flush()

    def depth():
        with pytest.raises(StorageError, match="refused commit") as caught:
            store.set_metadata("k", 2)
        return len(caught.traceback)

    assert len({depth() for _ in range(10)}) == 1
    with pytest.raises(StorageError):
        await store.aclose()


async def test_a_failure_in_the_block_is_not_told_twice(tmp_path, location):
    files = FaultyFiles()

    async def run():
        async with ExperimentStore.open(location, files=files) as store:
            files.fail(5, on={"sync_data", "sync"}, lasting=True)
            store.set_metadata("k", 1)
            await store.flush()

    with pytest.raises(StorageError, match="refused commit") as caught:
        await run()
    assert "During handling" not in "".join(traceback.format_exception(caught.value)).partition("refused")[2]
    files.heal()
    async with ExperimentStore.open(location):
        pass


async def test_an_error_of_the_users_own_leaves_everything_durable(location):

    async def run():
        async with ExperimentStore.open(location) as store:
            store.set_metadata("k", 1)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await run()
    async with ExperimentStore.open(location, "read") as reader:
        assert reader.metadata == {"k": 1}


async def test_the_failure_of_a_store_never_cancels_the_task_that_opened_it(location):
    files = FaultyFiles()
    store = await ExperimentStore.open(location, files=files, checkpoint_period=0)
    files.fail(5, on={"sync_data", "sync"}, lasting=True)
    events = store.events()
    store.set_metadata("k", 1)
    for _ in range(1000):
        await asyncio.sleep(0.001)
        if store._engine is not None and store._engine.failure is not None:
            break
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    with pytest.raises(Exception, match="refused commit"):
        await store.aclose()
    assert "closed" in [event.kind async for event in events]


# -- another loop, another thread ------------------------------------------------------------------------------


def _in_another_loop(call):
    async def main():
        return await call()

    return asyncio.run(main())


async def _changed(store):
    store.set_metadata("k", 1)


@pytest.mark.parametrize(
    "use",
    [
        _changed,
        lambda store: store.flush(),
        lambda store: store.refresh(),
        lambda store: store.save_checkpoint("t", Checkpoint.from_dict({})),
        lambda store: store.restore_checkpoint("t"),
        lambda store: store.aclose(),
    ],
    ids=["set_metadata", "flush", "refresh", "save_checkpoint", "restore_checkpoint", "aclose"],
)
async def test_another_loop_is_told_at_once_and_hangs_nothing(store, use):
    store.add_trial({}, "t")
    with pytest.raises(StoreClosedError, match=r"another event loop, and works in that one only.*threadsafe"):
        await asyncio.to_thread(_in_another_loop, lambda: use(store))
    await store.flush()
    assert store.metadata == {}


async def test_another_thread_without_a_loop_is_refused_likewise(store):
    with pytest.raises(StoreClosedError, match="call_soon_threadsafe"):
        await asyncio.to_thread(store.set_metadata, "k", 1)


def test_between_two_runs_of_its_loop_a_store_takes_changes(location):
    with asyncio.Runner() as runner:
        store = runner.run(_opened(location))
        store.set_metadata("k", 1)
        runner.run(store.aclose())
        with asyncio.Runner() as other:  # closed already: nothing to do, wherever that is
            other.run(store.aclose())


async def _opened(location):
    return await ExperimentStore.open(location)


def _dropped(held):
    held.clear()
    gc.collect()  # a traceback may hold it too


def test_a_loop_that_ended_is_named_as_the_reason(location):
    store = asyncio.run(_opened(location))
    with pytest.raises(StoreClosedError, match="has ended without closing it; open it again"):
        asyncio.run(store.aclose())
    held = [store]
    del store
    with pytest.warns(ResourceWarning, match="never closed"):
        _dropped(held)


def _open_below(directory):
    names = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")]
    targets = [os.readlink(name) for name in names if os.path.lexists(name)]
    return [target for target in targets if target.startswith(str(directory))]


async def test_a_close_has_its_time_by_the_clock_of_the_store(location):
    files, clock = FaultyFiles(), ManualClock()
    store = await ExperimentStore.open(location, files=files, clock=clock)
    files.fail(errno.ENOSPC, on={"write", "create"}, lasting=True)
    store.set_metadata("k", 1)
    closing = asyncio.create_task(store.aclose(drain_timeout_s=100))
    await clock.advance(99)
    assert not closing.done()
    await clock.advance(2)
    with pytest.raises(StorageError, match=r"closed after 100 s, .* 1 changed records are not on the disk"):
        await closing


async def test_a_deadline_of_the_disk_is_not_taken_for_that_of_the_close(location, monkeypatch):
    store = await ExperimentStore.open(location)

    async def late():
        raise TimeoutError("the network disk")

    monkeypatch.setattr(engine_of(store), "flush", late)
    with pytest.raises(TimeoutError, match="the network disk"):
        await store.aclose(drain_timeout_s=100)


async def test_a_store_forgotten_with_changes_writes_nothing_behind_its_lock(location):
    before = set(threading.enumerate())
    store = await ExperimentStore.open(location)
    (started,) = [t for t in set(threading.enumerate()) - before if t.name == "asynctune-journal"]
    tasks = asyncio.all_tasks()
    store.set_metadata("k", 1)
    held = [store]
    del store
    with pytest.warns(ResourceWarning, match="never closed"):
        _dropped(held)
    while len(asyncio.all_tasks()) >= len(tasks):  # noqa: ASYNC110 - nobody tells when a task has ended
        await asyncio.sleep(0)
    await asyncio.to_thread(started.join, 30)
    left = {t for t in set(threading.enumerate()) - before if t.name == "asynctune-journal"}
    assert not left
    assert _open_below(location) == []


@pytest.mark.parametrize("how", ["while the loop runs", "after the loop"])
def test_a_forgotten_store_with_a_copy_leaves_no_thread(location, how):
    (location.parent / "copies").mkdir()
    copy = SyncConfig(upload_dir=str(location.parent / "copies"))
    before = set(threading.enumerate())

    def started():
        return [t for t in set(threading.enumerate()) - before if t.name.startswith("asynctune-mirror")]

    async def forget():
        held = [await ExperimentStore.open(location, sync_config=copy)]
        held[0].add_trial({}, "t")
        await held[0].flush(mirror=True)
        if how == "while the loop runs":
            left = started()
            with pytest.warns(ResourceWarning, match="never closed"):
                _dropped(held)
            for _ in range(20):
                await asyncio.sleep(0)
            return left, []
        return started(), held

    left, held = asyncio.run(forget())
    assert left
    if held:
        with pytest.warns(ResourceWarning, match="never closed"):
            _dropped(held)
    for thread in left:
        thread.join(20)
    assert started() == []


def test_a_forgotten_store_leaves_neither_thread_nor_descriptor(location):
    async def forget():
        before = set(threading.enumerate())
        store = await ExperimentStore.open(location)
        await store.flush()
        return [t for t in set(threading.enumerate()) - before if t.name == "asynctune-journal"], store

    (started,), store = asyncio.run(forget())
    assert _open_below(location)
    held = [store]
    del store
    with pytest.warns(ResourceWarning, match="never closed"):
        _dropped(held)
    started.join(30)
    assert not started.is_alive()
    assert _open_below(location) == []


async def test_rows_after_the_newest_checkpoint_are_cut_when_a_paused_trial_goes_on(location, tmp_path):
    async with ExperimentStore.open(location) as store:
        store.add_trial({}, "t")
        store.set_status("t", "RUNNING")
        assert not store.rewind("t")
        store.report("t", {"loss": 1})
        saved = await store.save_checkpoint("t", directory_with(tmp_path / "d"))
        assert not store.rewind("t")
        store.report("t", {"loss": 2})
        store.set_status("t", "PAUSED")
        assert store.rewind("t")
        assert not store.rewind("t")
        store.set_status("t", "RUNNING")
        assert store.get_trial("t").last_result["loss"] == 1
        store.report("t", {"loss": 3})
        await store.flush()
        assert [row["loss"] for row in await store.history("t")] == [1, 3]
        assert store.get_trial("t").checkpoints == (saved,)
        store.set_status("t", "TERMINATED")
        with pytest.raises(TransitionError, match="requeue it first"):
            store.rewind("t")
