"""Whole runs with a fault between the store and its server: sampled; the lab puts each fault at every request."""

from __future__ import annotations

import urllib.request

import pytest
import pytest_asyncio

from tests.crash.proxied_runs import SECRET, cases, count_requests, gcs_server, run_cases, s3_server
from tests.storage.fake_gcs import FakeGcs
from tests.storage.moto import moto_server

SAMPLED = 6


@pytest.fixture(scope="module")
def s3_endpoint():
    with moto_server() as url:
        request = urllib.request.Request(f"{url}/runs", method="PUT")
        urllib.request.urlopen(request, timeout=20).close()
        yield url


@pytest_asyncio.fixture
async def fake():
    async with FakeGcs() as server:
        yield server


@pytest.mark.timeout(240)
async def test_runs_with_s3(s3_endpoint, tmp_path, sampled, caplog):
    server = s3_server(s3_endpoint, "runs")
    requests = await count_requests(server, tmp_path)
    outcomes = await run_cases(server, tmp_path, sampled(cases(requests), SAMPLED))
    assert outcomes.total() == SAMPLED
    assert SECRET not in caplog.text


@pytest.mark.timeout(240)
async def test_runs_with_gcs(fake, tmp_path, sampled):
    server = gcs_server(fake.url, "bucket")
    requests = await count_requests(server, tmp_path)
    outcomes = await run_cases(server, tmp_path, sampled(cases(requests), SAMPLED))
    assert outcomes.total() == SAMPLED
