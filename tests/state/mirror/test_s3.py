"""The mirror on a real S3 server: claimed, swapped, taken over, read back."""

from __future__ import annotations

import asyncio
import itertools
import urllib.request

import pytest

from asynctune.errors import ExperimentLockedError, FencedError, NotFoundError
from asynctune.state.mirror.reading import read_mirror
from asynctune.state.mirror.register import open_register
from asynctune.storage.s3 import open_storage
from asynctune.storage.uri import parse_uri
from asynctune.testing import FaultyStorage, ManualClock
from tests.state.mirror.world import driving, opened
from tests.storage.moto import moto_server

NUMBERS = itertools.count(1)


@pytest.fixture(scope="module")
def endpoint():
    with moto_server() as url:
        yield url


@pytest.fixture
def connect(endpoint):
    """Opens the same place as often as it is called; closed at the end."""
    name = f"mirror-{next(NUMBERS)}"
    urllib.request.urlopen(urllib.request.Request(f"{endpoint}/{name}", method="PUT"), timeout=20).close()

    async def make(bucket: str = name) -> FaultyStorage:
        options = {"key": "AKTEST", "secret": "hidden", "endpoint_url": endpoint, "region": "us-east-1"}
        return FaultyStorage(await open_storage(parse_uri(f"s3://{bucket}/some/experiment"), options))

    return make


async def test_a_takeover_between_two_machines(connect, tmp_path):
    first, second, reader = await connect(), await connect(), await connect()
    loser = await opened(f"{tmp_path}/one", first, name="one")
    await loser.mirror.flush(await loser.commits(2, size=40_000))
    await loser.mirror.flush(await loser.commits(1))
    async with driving(f"{tmp_path}/two", second, name="two") as winner:
        assert winner.records == loser.records
        with pytest.raises(FencedError):
            await loser.mirror.flush(await loser.commits(1))
        await winner.mirror.flush(await winner.commits(1))
        found = await read_mirror(reader)
        assert found is not None
        assert found.recovered.records == winner.records
    await loser.kill()
    for storage in (first, second, reader):
        await storage.aclose()


@pytest.mark.parametrize("fault", ["reply lost", "own copy", "not applied"])
async def test_a_put_that_goes_wrong(connect, tmp_path, fault):
    storage = await connect()
    async with driving(f"{tmp_path}/one", storage) as driver:
        await driver.mirror.flush(await driver.commits(1))
        if fault == "own copy":
            storage.conflict(on="put")
        else:
            storage.fail(on="put", applied=fault == "reply lost")
        await driver.mirror.flush(await driver.commits(1))
        found = await read_mirror(storage)
        assert found is not None
        assert found.recovered.records == driver.records
    await storage.aclose()


async def test_a_snapshot_goes_over(connect, tmp_path):
    storage = await connect()
    async with driving(f"{tmp_path}/one", storage, offline=True, start=False) as driver:
        await driver.commits(3, size=100_000)
        await driver.snapshot(prune=True)
        await driver.commits(1)
        driver.start()
        await driver.mirror.flush(4)
        found = await read_mirror(storage)
        assert found is not None
        assert found.current.snapshot is not None
        assert found.recovered.records == driver.records
    await storage.aclose()


async def test_of_claims_in_the_same_moment_one_wins(connect, tmp_path):
    storages = [await connect() for _ in range(3)]
    answers = await asyncio.gather(
        *(opened(f"{tmp_path}/{n}", storage, start=False) for n, storage in enumerate(storages)),
        return_exceptions=True,
    )
    won = [answer for answer in answers if not isinstance(answer, BaseException)]
    assert won
    assert len({each.claim.epoch for each in won}) == len(won)
    assert all(isinstance(a, ExperimentLockedError) for a in answers if isinstance(a, BaseException))
    for each in won:
        await each.kill()
    for storage in storages:
        await storage.aclose()


async def test_conditions_are_kept_and_a_missing_bucket_is_no_new_experiment(connect):
    storage, nowhere = await connect(), await connect("no-such-bucket")
    register = await open_register(storage, writing=True, clock=ManualClock())
    assert register.fenced
    for writing in (True, False):
        with pytest.raises(NotFoundError):
            await (await open_register(nowhere, writing=writing, clock=ManualClock())).read()
    await storage.aclose()
    await nowhere.aclose()
