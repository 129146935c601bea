"""Faults between a transfer and its server, sampled; the lab tries them all."""

from __future__ import annotations

import urllib.request

import pytest
import pytest_asyncio

from asynctune.testing.storage_scenes import file_of
from tests.storage.fake_gcs import FakeGcs
from tests.storage.fault_matrix import gcs_places, s3_places
from tests.storage.moto import moto_server
from tests.storage.transfer_matrix import DATA, TRANSFERS, run_transfers

SAMPLED = 12


@pytest.fixture(scope="session")
def s3_endpoint():
    with moto_server() as url:
        request = urllib.request.Request(f"{url}/transfers", method="PUT")
        urllib.request.urlopen(request, timeout=20).close()
        yield url


@pytest_asyncio.fixture
async def fake():
    async with FakeGcs() as server:
        yield server


@pytest.mark.timeout(180)
async def test_transfers_to_s3_under_faults(s3_endpoint, tmp_path, sampled):
    source = await file_of(tmp_path, DATA)
    places = s3_places(s3_endpoint, "transfers", source)
    outcomes = await run_transfers(places, sampled(TRANSFERS, SAMPLED), source)
    assert outcomes["right"]


@pytest.mark.timeout(180)
async def test_transfers_to_gcs_under_faults(fake, tmp_path, sampled):
    source = await file_of(tmp_path, DATA)
    places = gcs_places(fake.url, "bucket", source)
    outcomes = await run_transfers(places, sampled(TRANSFERS, SAMPLED), source)
    assert outcomes["right"]
