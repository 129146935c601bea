"""An experiment on Ray under which one thing or two are killed at random moments; the lab does many, with more."""

from __future__ import annotations

import pytest

from tests.runners.ray_killing import kill_round


@pytest.mark.timeout(120)
async def test_whatever_is_killed_nothing_is_lost(cluster, rng):
    await kill_round(cluster, rng, f"killed-{rng.getrandbits(32):08x}", rng.randint(1, 2))
