"""Every public coroutine cancelled at each of its awaits: the store stays whole and usable."""

from __future__ import annotations

import asyncio
import contextlib
import types

import pytest

from asynctune.checkpoints.staging import stage_for_adoption
from asynctune.config import CheckpointConfig
from asynctune.errors import AsynctuneError, StoreClosedError
from asynctune.store.store import ExperimentStore
from tests.crash.checking import check_experiment, leftovers
from tests.store.scenes import Counter, directory_with

MOMENTS = [(suspension, delay) for suspension in range(1, 200) for delay in (0.0, 0.0008)]
"""After which of its suspensions a call is cancelled, and how many seconds later: in the midst of work, or after it."""


@types.coroutine
def _counted(coroutine, cancel_at: int, delay: float):
    """Drive a coroutine, and have its task cancelled at the n-th suspension."""
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert task is not None
    count, step, value = 0, coroutine.send, None
    while True:
        try:
            waits_for = step(value)
        except StopIteration as stop:
            return stop.value
        count += 1
        if count == cancel_at:
            loop.call_later(delay, task.cancel) if delay else loop.call_soon(task.cancel)
        try:
            step, value = coroutine.send, (yield waits_for)
        except BaseException as error:  # noqa: BLE001 - passed on, whatever it is
            step, value = coroutine.throw, error


async def cancelled_at(coroutine, suspension: int, delay: float) -> bool:
    """Run it until it is cancelled at this moment; whether it had ended by itself before."""

    async def counted():
        return await _counted(coroutine, suspension, delay)

    task = asyncio.create_task(counted())
    await asyncio.wait([task])
    if task.cancelled():
        return False
    task.result()
    return True


async def save(store, work):
    await store.save_checkpoint("t", directory_with(work / "d"))


async def save_moved(store, work):
    await store.save_checkpoint("t", directory_with(work / "d"), move=True)


async def clone(store, work):
    await store.clone_checkpoint("source", to_trial="t")


async def adopt(store, work):
    staged = await stage_for_adoption(directory_with(work / "d"), store.location / "t")
    await store.adopt_checkpoint("t", staged)


async def restore(store, work):
    await store.restore_checkpoint("source")


async def restore_to(store, work):
    await store.restore_checkpoint("source", to=work / "to")


async def lease(store, work):
    async with store.lease("source") as leased:
        await asyncio.sleep(0)
        assert leased.path is not None


async def fetch(store, work):
    (checkpoint,) = store.checkpoints("source")
    await store.fetch(checkpoint)
    await store.fetch(checkpoint, work / "to")


async def flush(store, work):
    store.set_metadata("k", store.stats().committed_seq)
    await store.flush()


async def events(store, work):
    stream = store.events()
    store.add_trial({})
    while (await anext(stream)).kind != "trial_added":
        pass


async def refresh_and_drain(store, work):
    await store.refresh()
    await store.drain()


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "call",
    [save, save_moved, clone, adopt, restore, restore_to, lease, fetch, flush, events, refresh_and_drain],
    ids=lambda call: call.__name__,
)
async def test_a_cancelled_call_leaves_the_store_whole(location, tmp_path, call):
    config = CheckpointConfig(num_to_keep=2)
    async with ExperimentStore.open(location, checkpoint_config=config) as store:
        store.attach_searcher(Counter())
        store.add_trial({}, "t")
        store.add_trial({}, "source")
        await store.save_checkpoint("source", directory_with(tmp_path / "s"))
        (location / "t").mkdir(exist_ok=True)
        ended = 0
        for number, moment in enumerate(MOMENTS):
            work = tmp_path / f"work{number}"
            work.mkdir()
            ended += await cancelled_at(call(store, work), *moment)
            steps = [checkpoint.step for checkpoint in store.checkpoints("t")]
            assert len(steps) <= 2
            if call is save_moved and not (work / "d").exists():
                assert steps  # given away only if it is a checkpoint now
            if call is restore_to and (work / "to").exists():
                assert [path.name for path in (work / "to").iterdir()] in ([], ["model.bin"])
            if ended >= 4:
                break
        assert ended, "never ran to its end"
        # usable as before
        store.set_metadata("after", number)
        await store.flush()
        newest = max((checkpoint.step or 0 for checkpoint in store.checkpoints("t")), default=0)
        saved = await store.save_checkpoint("t", directory_with(tmp_path / "last"))
        assert saved.step is not None
        assert saved.step > newest
        await store.restore_checkpoint("t")
        await check_experiment(store)
    async with ExperimentStore.open(location) as store:
        assert store.opening.tear is None
        assert store.metadata["after"] == number
        assert saved.step in [checkpoint.step for checkpoint in store.checkpoints("t")]
        await check_experiment(store)
    assert leftovers(location) == []
    assert not list((location / ".asynctune" / "quarantine").glob("*")), (
        "something was left for the next opening"
    )


@pytest.mark.timeout(120)
@pytest.mark.parametrize("mode", ["create", "resume", "read"])
async def test_a_cancelled_opening_leaves_no_lock_and_no_task(tmp_path, mode):
    ended = 0
    location = tmp_path / "exp"
    if mode != "create":
        async with ExperimentStore.open(location) as store:
            store.set_metadata("k", 1)

    stores = []

    async def opened(place):
        stores.append(await ExperimentStore.open(place, mode))

    for number, moment in enumerate(MOMENTS):
        place = tmp_path / f"exp{number}" if mode == "create" else location
        ended += await cancelled_at(opened(place), *moment)
        while stores:
            await stores.pop().aclose()
        async with ExperimentStore.open(place) as store:  # nobody holds it
            assert store.metadata == ({} if mode == "create" else {"k": 1})
        if ended >= 4:
            break
    assert ended
    assert {task for task in asyncio.all_tasks() if task is not asyncio.current_task()} == set()


@pytest.mark.timeout(120)
@pytest.mark.parametrize("how", ["aclose", "async with"])
async def test_a_cancelled_close_goes_on_to_its_end(tmp_path, how):
    ended = 0
    for number, moment in enumerate(MOMENTS):
        location = tmp_path / f"exp{number}"
        store = await ExperimentStore.open(location)
        store.add_trial({}, "t")
        saving = asyncio.create_task(store.save_checkpoint("t", directory_with(tmp_path / f"d{number}")))
        await asyncio.sleep(0)
        store.set_metadata("k", number)

        async def leave(store=store):
            if how == "aclose":
                await store.aclose()
            else:
                async with store:
                    pass

        ended += await cancelled_at(leave(), *moment)
        with pytest.raises(StoreClosedError):
            store.set_metadata("late", 1)
        await store.aclose()
        with contextlib.suppress(AsynctuneError):
            await saving
        async with ExperimentStore.open(location, "read") as reader:
            assert reader.metadata["k"] == number
            assert len(reader.checkpoints("t")) == (saving.exception() is None)
        if ended >= 4:
            break
    assert ended
    assert {task for task in asyncio.all_tasks() if task is not asyncio.current_task()} == set()
