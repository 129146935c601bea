"""An open store, and what is checked of each one after its test."""

from __future__ import annotations

import pytest

from asynctune.store.store import ExperimentStore


@pytest.fixture
def location(tmp_path):
    return tmp_path / "exp"


@pytest.fixture
async def store(location):
    async with ExperimentStore.open(location) as opened:
        yield opened
