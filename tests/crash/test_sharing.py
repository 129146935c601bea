"""Two drivers on one experiment in a shared directory; test_juicefs.py does so on a network filesystem."""

from __future__ import annotations

import pytest

from tests.crash.sharing import kill_and_go_on, open_at_once, pause_and_take_over


@pytest.fixture
def mounts(tmp_path):
    """Two names of one directory."""
    (tmp_path / "real").mkdir()
    (tmp_path / "other").symlink_to("real")
    return [tmp_path / "real", tmp_path / "other"]


@pytest.mark.timeout(120)
async def test_of_two_that_open_at_once_one_goes_on(mounts):
    endings = await open_at_once(mounts, 2)
    assert endings == {"goes on": 2, "ExperimentLockedError": 2}


@pytest.mark.timeout(120)
async def test_without_locks_the_last_to_claim_goes_on(mounts):
    endings = await open_at_once(mounts, 3, locks=False)
    assert endings == {"goes on": 3, "FencedError": 3}


@pytest.mark.timeout(120)
async def test_who_slept_while_another_took_over_is_fenced(mounts, rng):
    for _ in range(2):
        assert await pause_and_take_over(mounts, rng) == "FencedError"


@pytest.mark.timeout(120)
async def test_an_experiment_goes_on_under_another_name(mounts, rng):
    await kill_and_go_on(mounts, rng)
