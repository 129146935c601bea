"""SIGKILL of drivers whose experiment has a copy; the disk of every second one is lost with it."""

from __future__ import annotations

import pytest

from tests.crash.mirror_killing import kill_mirrored
from tests.crash.mirror_places import directory_place, gcs_place, s3_place, s3_server


@pytest.fixture(scope="module")
def endpoint():
    with s3_server() as url:
        yield url


@pytest.mark.timeout(240)
async def test_nothing_the_copy_promised_is_missing_with_a_directory(tmp_path, rng):
    outcomes = await kill_mirrored(tmp_path, rng, directory_place(tmp_path / "copy"), 5)
    assert outcomes["killed"] == 5


@pytest.mark.timeout(240)
async def test_nothing_the_copy_promised_is_missing_with_s3(tmp_path, rng, endpoint):
    async with s3_place(endpoint) as place:
        await kill_mirrored(tmp_path, rng, place, 4)
        assert place.proxy is not None
        assert place.proxy.again == 0


@pytest.mark.timeout(240)
async def test_nothing_the_copy_promised_is_missing_with_gcs(tmp_path, rng):
    async with gcs_place() as place:
        await kill_mirrored(tmp_path, rng, place, 2)
        assert place.proxy is not None
        assert place.proxy.again == 0
