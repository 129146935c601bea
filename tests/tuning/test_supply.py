"""Which trial is next: one that waits, else one that the searcher proposes."""

from __future__ import annotations

from typing import Any

import pytest

from asynctune import ExperimentStore, UserCodeError
from asynctune.tuning.supply import Supply


class Deciding:
    """Starts and proposes what it is told to."""

    def __init__(self, *configs, starts=True):
        self.configs = list(configs)
        self.starts = starts
        self.known = []

    def choose(self, trial_ids):
        return next(iter(trial_ids), None) if self.starts else None

    def suggest(self, trial_id):
        return self.configs.pop(0) if self.configs else None

    def suggested(self, trial_id, config):
        self.known.append(trial_id)


def supply_of(store, deciding: Any) -> Supply:
    return Supply(store, deciding, "p")


@pytest.fixture
async def store(tmp_path):
    async with ExperimentStore.open(tmp_path / "exp") as opened:
        yield opened


async def test_those_that_wait_are_found(store):
    ids = [store.add_trial({}).trial_id for _ in range(50)]
    for trial_id in ids[:2]:
        store.set_status(trial_id, "RUNNING")
    store.set_status(ids[0], "TERMINATED")
    store.set_status(ids[1], "PAUSED")
    supply = supply_of(store, Deciding())
    assert not supply
    await supply.find()
    assert len(supply) == 49
    assert [supply.take() for _ in range(50)] == [*ids[1:], None]


async def test_one_more_is_proposed_when_none_waits(store):
    deciding = Deciding({"x": 1}, {"x": 2}, starts=False)
    supply = supply_of(store, deciding)
    made = supply.grow(others_run=False)
    assert made is not None
    assert (made.config, made.trial_name) == ({"x": 1}, f"p_{made.trial_id}")
    assert deciding.known == [made.trial_id]
    assert supply.grow(others_run=False) is None, "one that the scheduler does not start waits"
    assert len(supply) == 1
    deciding.starts = True
    assert supply.take() == made.trial_id
    assert supply.grow(others_run=False) is not None


async def test_a_searcher_may_know_more_when_others_have_ended(store):
    deciding = Deciding()
    supply = supply_of(store, deciding)
    assert supply.grow(others_run=True) is None
    deciding.configs = [{"x": 1}]
    assert supply.grow(others_run=True) is not None
    assert supply.take() is not None
    assert supply.grow(others_run=False) is None
    deciding.configs = [{"x": 2}]
    assert supply.grow(others_run=False) is None, "nothing could have taught it more"


async def test_a_config_that_cannot_be_stored_is_the_searchers(store):
    with pytest.raises(UserCodeError, match="proposed a config that cannot be stored"):
        supply_of(store, Deciding({"x": object()})).grow(others_run=False)
