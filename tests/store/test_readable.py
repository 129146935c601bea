from __future__ import annotations

import os

import pytest

from asynctune.config import SyncConfig
from asynctune.errors import CorruptStateError, StorageError, TrialNotFoundError
from asynctune.packing import pack
from asynctune.storage.memory import MemoryStorage
from asynctune.store.store import ExperimentStore
from tests.store.scenes import Counter, mirroring_of


@pytest.fixture
def bucket():
    name = f"bucket-{os.urandom(6).hex()}"
    yield f"memory://{name}/some/where"
    MemoryStorage.forget(name)


async def test_saved_states_can_be_looked_at_without_what_they_belong_to(location):
    async with ExperimentStore.open(location) as store:
        store.attach_searcher(Counter({"rng": (1, 2)}))
        assert store.saved_state("searcher") is None
        seq = await store.flush()
        assert store.saved_state("searcher") == (seq, {"rng": (1, 2)})
        assert store.saved_state("scheduler") is None
        assert store.saved_state("other") is None
    async with ExperimentStore.open(location, "read") as reader:
        assert reader.saved_state("searcher") == (seq, {"rng": (1, 2)})


@pytest.mark.parametrize(
    "packed",
    [b"\xc1", pack([1, 2]), pack({"seq": 1}), pack({"seq": "x", "state": 1})],
    ids=["no-msgpack", "list", "no-state", "no-seq"],
)
async def test_a_saved_state_that_makes_no_sense_is_said_to(store, packed):
    store._records.put_packed("searcher", packed)
    with pytest.raises(CorruptStateError, match="the saved state of the searcher cannot be read"):
        store.saved_state("searcher")


async def test_which_trials_were_started_over(location):
    async with ExperimentStore.open(location) as store:
        ids = [store.add_trial({"x": n}).trial_id for n in range(3)]
        for trial_id in ids[:2]:
            store.set_status(trial_id, "ERROR", "no")
        assert store.started_over == {}
        store.requeue(restart_errored=True)
        assert list(store.started_over) == ids[:2]
        for old, new in store.started_over.items():
            assert store.get_trial(new).config == store.get_trial(old).config
        known = store.started_over
    async with ExperimentStore.open(location, "read") as reader:
        assert reader.started_over == known


async def test_the_history_of_a_trial_has_all_committed_rows(location):
    async with ExperimentStore.open(location) as store:
        trial_id = store.add_trial({}).trial_id
        store.set_status(trial_id, "RUNNING")
        assert await store.history(trial_id) == []
        for number in range(3):
            store.report(trial_id, {"loss": number})
        await store.flush()
        assert [row["loss"] for row in await store.history(trial_id)] == [0, 1, 2]
        with pytest.raises(TrialNotFoundError):
            await store.history("no")
    async with ExperimentStore.open(location, "resume") as store:
        assert [row["loss"] for row in await store.history(trial_id)] == [0, 1, 2]
    async with ExperimentStore.open(location, "read") as reader:
        assert [row["loss"] for row in await reader.history(trial_id)] == [0, 1, 2]


@pytest.mark.parametrize("kind", ["directory", "copy"])
async def test_a_reader_gets_no_rows_that_it_does_not_know_of(location, bucket, kind):
    async with ExperimentStore.open(location, sync_config=SyncConfig(upload_dir=bucket)) as store:

        async def reported(*losses):
            for loss in losses:
                store.report("t", {"loss": loss})
            await store.flush(mirror=True)
            await store.history("t")  # the files have them all
            await mirroring_of(store).results.project()

        store.add_trial({}, "t")
        store.set_status("t", "RUNNING")
        await store.flush(mirror=True)
        where = location if kind == "directory" else f"{bucket}/{location.name}"
        async with ExperimentStore.open(where, "read") as reader:
            for losses in ([1, 2], [3, 4, 5]):
                before = [row["loss"] for row in await reader.history("t")]
                assert len(before) == reader.get_trial("t").num_results
                await reported(*losses)
                assert [row["loss"] for row in await reader.history("t")] == before
                await reader.refresh()
                assert [row["loss"] for row in await reader.history("t")] == [*before, *losses]


async def test_a_history_that_is_not_where_it_was_is_an_error_and_not_empty(location):
    async with ExperimentStore.open(location) as store:
        trial_id = store.add_trial({}).trial_id
        store.set_status(trial_id, "RUNNING")
        store.report(trial_id, {"loss": 1})
        assert await store.history(trial_id) == [], "not committed yet"
        await store.flush()
    (location / trial_id / "result.json").unlink()
    for mode in ("resume", "read"):
        async with ExperimentStore.open(location, mode) as store:
            with pytest.raises(StorageError, match=r"cannot read the results .* moved or removed"):
                await store.history(trial_id)


async def test_a_history_that_cannot_be_read_is_said_to(location):
    async with ExperimentStore.open(location) as store:
        trial_id = store.add_trial({}).trial_id
    (location / trial_id / "result.json").mkdir(parents=True)
    async with ExperimentStore.open(location, "read") as reader:
        with pytest.raises(StorageError, match="cannot read the results"):
            await reader.history(trial_id)


async def test_trials_that_were_started_over_are_iterated_on_request(location):
    async with ExperimentStore.open(location) as store:
        first = store.add_trial({}).trial_id
        store.set_status(first, "ERROR", "no")
        store.requeue(restart_errored=True)
        second = store.trials[0].trial_id
        assert [each.trial_id async for each in store.iterate()] == [second]
        assert [each.trial_id async for each in store.iterate(with_replaced=True)] == [first, second]


async def test_the_last_result_alone_is_that_of_the_trial(location):
    async with ExperimentStore.open(location) as store:
        trial_id = store.add_trial({"x": 1}).trial_id
        assert store.last_result(trial_id) == {}
        store.set_status(trial_id, "RUNNING")
        store.report(trial_id, {"loss": 3, "nested": {"a": [1]}})
        assert store.last_result(trial_id) == store.get_trial(trial_id).last_result
        with pytest.raises(TrialNotFoundError):
            store.last_result("no")
