from __future__ import annotations

import pytest

from tests.crash.killing import kill_many


@pytest.mark.timeout(240)
async def test_nothing_acknowledged_is_missing_after_sigkill(tmp_path, rng):
    outcomes = await kill_many(tmp_path, rng, 12)
    assert outcomes["acknowledged"] > 0


@pytest.mark.timeout(240)
async def test_nothing_is_missing_when_snapshots_never_stop(tmp_path, rng):
    outcomes = await kill_many(tmp_path, rng, 6, small=200)
    assert outcomes["acknowledged"] > 0
