"""Faults between a storage and its server: every operation, every fault, sampled; the lab tries them all."""

from __future__ import annotations

import urllib.request

import pytest
import pytest_asyncio

from asynctune.errors import StorageError
from asynctune.testing.storage_scenes import file_of, get
from tests.storage.fake_gcs import FakeGcs
from tests.storage.fault_matrix import CASES, GCS_CASES, LARGE, SCENES, gcs_places, run_cases, s3_places
from tests.storage.fault_proxy import FAULTS
from tests.storage.moto import moto_server

SAMPLED = 40


@pytest.fixture(scope="session")
def s3_endpoint():
    with moto_server() as url:
        request = urllib.request.Request(f"{url}/faults", method="PUT")
        urllib.request.urlopen(request, timeout=20).close()
        yield url


@pytest_asyncio.fixture
async def fake():
    async with FakeGcs() as server:
        yield server


@pytest_asyncio.fixture
async def source(tmp_path):
    return await file_of(tmp_path, LARGE)


@pytest.mark.timeout(180)
async def test_s3_under_faults(s3_endpoint, source, sampled):
    outcomes = await run_cases(s3_places(s3_endpoint, "faults", source), sampled(CASES, SAMPLED))
    assert outcomes["right"]


@pytest.mark.timeout(180)
async def test_gcs_under_faults(fake, source, sampled):
    outcomes = await run_cases(gcs_places(fake.url, "bucket", source), sampled(GCS_CASES, SAMPLED))
    assert outcomes["right"]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("server", ["s3", "gcs"])
async def test_a_body_of_one_byte_a_second_ends_by_the_deadline(server, s3_endpoint, fake, source):
    places = gcs_places(fake.url, "bucket", source)
    if server == "s3":
        places = s3_places(s3_endpoint, "faults", source)
    async with places(f"slow-{server}") as (place, proxy):
        await place.direct.put("k", LARGE)
        fault = proxy.set("slow body", on="get", lasting=True)
        async with place.storage.get("k") as body:
            assert body.info.size_bytes == len(LARGE)
            with pytest.raises(StorageError, match="too slowly") as caught:
                async for _ in body:
                    pass
        assert caught.value.retryable
        assert fault.hits == 1
        proxy.heal()
        assert await get(place.storage, "k") == LARGE


def test_the_matrix_is_whole():
    assert len(CASES) == 3 * len(SCENES) * len(FAULTS)
    assert len(set(CASES)) == len(CASES)
