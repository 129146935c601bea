"""The bucket is away for a time; the run goes on."""

from __future__ import annotations

import pytest

from tests.crash.mirror_away import SCENES, stopped_while_uploads_hang
from tests.crash.mirror_places import s3_place, s3_server
from tests.crash.mirror_sharing import Machines


@pytest.fixture(scope="module")
def endpoint():
    with s3_server() as url:
        yield url


@pytest.fixture
async def place(endpoint):
    async with s3_place(endpoint, door=True) as made:
        yield made


@pytest.mark.timeout(120)
async def test_a_bucket_that_is_away_costs_no_time_and_no_memory(tmp_path, rng, place):
    scene, endings = SCENES["away for a while"]
    assert await scene(Machines(tmp_path, place, rng)) in endings


@pytest.mark.timeout(120)
async def test_an_experiment_and_its_bucket_meet_again(tmp_path, rng, sampled, place):
    for name in sampled([name for name in SCENES if name != "away for a while"], 1):
        scene, endings = SCENES[name]
        assert await scene(Machines(tmp_path, place, rng)) in endings


@pytest.mark.timeout(120)
async def test_sigterm_does_not_wait_for_uploads_that_hang(tmp_path, rng, place):
    await stopped_while_uploads_hang(tmp_path, place, rng)
