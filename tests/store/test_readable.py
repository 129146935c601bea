from __future__ import annotations

import pytest

from asynctune.errors import CorruptStateError
from asynctune.packing import pack
from asynctune.store.store import ExperimentStore
from tests.store.scenes import Counter


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
