"""Whether conditions are kept: the answer is right, or there is none."""

from __future__ import annotations

import itertools
import logging
import urllib.request
from typing import Any, Final

import pytest

from asynctune.errors import AuthenticationError, ConfigError, NotFoundError, StorageError
from asynctune.storage import gcs, s3
from asynctune.storage.base import ObjectStorage
from asynctune.storage.local import LocalStorage
from asynctune.storage.memory import MemoryStorage
from asynctune.storage.probe import PROBE_PREFIX, keeps_conditions
from asynctune.storage.uri import parse_uri
from asynctune.storage.values import Always, IfVersion, OnlyCreate, Outcome
from asynctune.testing import FaultyStorage
from asynctune.testing.storage_scenes import entries
from tests.storage.fake_gcs import FakeGcs
from tests.storage.moto import moto_server

OPERATIONS: Final = 7  # of a probe without faults
ALWAYS: Final = Always()
FAULTS: Final[dict[str, dict[str, Any]]] = {
    "lost before": {"applied": False},
    "lost after": {"applied": True},
    "own copy": {"conflict": True, "applied": True},
}


class Deaf(FaultyStorage):
    """Ignores conditions of one kind, or refuses those with an error."""

    def __init__(
        self, storage: ObjectStorage, kinds: tuple[type, ...], refused: StorageError | None = None
    ) -> None:
        super().__init__(storage)
        self._kinds, self._refused = kinds, refused

    async def put(self, key: str, data: Any, *, condition: Any = ALWAYS, crc32c: Any = None) -> Outcome:
        if isinstance(condition, self._kinds):
            if self._refused is not None:
                raise self._refused
            condition = Always()
        return await super().put(key, data, condition=condition, crc32c=crc32c)


def set_fault(storage: FaultyStorage, name: str, nth: int) -> None:
    fault = FAULTS[name]
    if fault.get("conflict"):
        storage.conflict(nth=nth)
    else:
        storage.fail(nth=nth, applied=fault["applied"])


async def is_empty(storage: ObjectStorage) -> bool:
    return await entries(storage) == []


async def test_a_storage_that_keeps_them():
    storage = FaultyStorage(MemoryStorage())
    assert await keeps_conditions(storage) is True
    assert storage.count() == OPERATIONS
    assert len({call.key for call in storage.log}) == 1
    assert storage.log[0].key.startswith(PROBE_PREFIX)
    assert await is_empty(storage)


@pytest.mark.parametrize("kinds", [(OnlyCreate,), (IfVersion,), (OnlyCreate, IfVersion)], ids=str)
async def test_a_storage_that_ignores_some(kinds):
    storage = Deaf(MemoryStorage(), kinds)
    assert await keeps_conditions(storage) is False
    assert await is_empty(storage)


async def test_a_storage_that_says_so_is_not_asked():
    storage = FaultyStorage(MemoryStorage(supports_conditions=False))
    assert await keeps_conditions(storage) is False
    assert storage.count() == 0


async def test_each_probe_has_a_key_of_its_own_below_the_prefix():
    storage = FaultyStorage(MemoryStorage())
    for _ in range(2):
        await keeps_conditions(storage, prefix="a/b-")
    keys = {call.key for call in storage.log}
    assert len(keys) == 2
    assert all(key.startswith("a/b-") for key in keys)


@pytest.mark.parametrize("kinds", [(OnlyCreate,), (IfVersion,)], ids=str)
async def test_a_storage_that_refuses_conditions_as_such_does_not_keep_them(kinds):
    storage = Deaf(MemoryStorage(), kinds, StorageError("HTTP 501"))
    assert await keeps_conditions(storage) is False
    assert await is_empty(storage)


async def test_a_storage_that_refuses_every_write_is_an_error():
    storage = Deaf(MemoryStorage(), (OnlyCreate, IfVersion, Always), StorageError("HTTP 400"))
    with pytest.raises(StorageError, match="HTTP 400"):
        await keeps_conditions(storage)


@pytest.mark.parametrize("error", [AuthenticationError("no"), NotFoundError("no bucket")], ids=repr)
@pytest.mark.parametrize("nth", [1, 2, 3, 4])
async def test_who_may_not_write_learns_nothing(error, nth):
    storage = FaultyStorage(MemoryStorage())
    storage.fail(error, on="put", nth=nth)
    with pytest.raises(type(error)) as caught:
        await keeps_conditions(storage)
    assert caught.value is error
    assert await is_empty(storage)


@pytest.mark.parametrize("on", ["put", "read"])
async def test_a_storage_that_is_away_is_an_error(on):
    storage = FaultyStorage(MemoryStorage())
    storage.fail(on=on, lasting=True)
    with pytest.raises(StorageError) as caught:
        await keeps_conditions(storage)
    assert caught.value.retryable
    assert await is_empty(storage)


async def test_replies_that_are_all_lost_tell_nothing():
    storage = FaultyStorage(MemoryStorage())
    storage.fail(on="put", applied=True, lasting=True)
    with pytest.raises(StorageError):
        await keeps_conditions(storage)
    assert await is_empty(storage)


async def test_what_is_there_tells_more_than_replies():
    storage = FaultyStorage(MemoryStorage(), ignore_conditions=True)
    storage.fail(on="put", applied=True, lasting=True)
    assert await keeps_conditions(storage) is False
    assert await is_empty(storage)


async def test_conflicts_with_own_copies_do_not_hide_that_they_are_ignored():
    storage = FaultyStorage(MemoryStorage(), ignore_conditions=True)
    for nth in range(1, 20):
        storage.conflict(nth=nth)
    assert await keeps_conditions(storage) is False
    assert await is_empty(storage)


async def test_a_conflict_without_reason_is_tried_again():
    storage = FaultyStorage(MemoryStorage())
    storage.conflict(nth=1, applied=False)
    storage.conflict(nth=4, applied=False)
    assert await keeps_conditions(storage) is True


async def test_a_storage_in_which_no_condition_ever_holds():
    storage = FaultyStorage(MemoryStorage())
    for nth in range(1, 20):
        storage.conflict(nth=nth, applied=False)
    assert await keeps_conditions(storage) is False


@pytest.mark.parametrize("nth", [1, 2])
async def test_an_object_that_vanishes_or_is_another_tells_nothing(nth):
    async def meddle(call):
        await storage.storage.delete([call.key])

    async def replace(call):
        await storage.storage.put(call.key, b"another's")

    for function in (meddle, replace):
        storage = FaultyStorage(MemoryStorage())
        storage.call(function, on="read", nth=nth)
        with pytest.raises(StorageError, match="cannot be told"):
            await keeps_conditions(storage)
        assert await is_empty(storage)


async def test_what_cannot_be_removed_is_told(caplog):
    storage = FaultyStorage(MemoryStorage())
    storage.fail(on="delete")
    with caplog.at_level(logging.WARNING, "asynctune"):
        assert await keeps_conditions(storage) is True
    assert "stays behind" in caplog.text


async def test_of_a_write_that_was_refused_nothing_stays_behind(caplog):
    storage = FaultyStorage(MemoryStorage())
    for operation in ("put", "delete"):
        storage.fail(AuthenticationError("read only"), on=operation, lasting=True)
    with caplog.at_level(logging.WARNING, "asynctune"), pytest.raises(AuthenticationError):
        await keeps_conditions(storage)
    assert not caplog.text
    assert storage.count("delete") == 0


async def test_the_first_error_is_the_one_that_is_told():
    storage = FaultyStorage(MemoryStorage())
    storage.fail(ConfigError("from the storage"), on="put", nth=2)
    with pytest.raises(ConfigError):
        await keeps_conditions(storage)
    storage = FaultyStorage(MemoryStorage())
    fault = storage.fail(on="read", lasting=True)
    storage.fail(on="delete", lasting=True)
    with pytest.raises(StorageError) as caught:
        await keeps_conditions(storage)
    assert caught.value is fault.error


def cases() -> list[tuple[tuple[str, int], ...]]:
    """Every fault at every operation, and every two of them."""
    single = [(name, nth) for name in FAULTS for nth in range(1, OPERATIONS + 3)]
    return [(each,) for each in single] + list(itertools.combinations(single, 2))


@pytest.mark.parametrize("ignores", [False, True], ids=["keeps", "ignores"])
async def test_faults_never_lead_to_a_wrong_answer(ignores, sampled):
    outcomes = set()
    for faults in sampled(cases(), 300):
        storage = FaultyStorage(MemoryStorage(), ignore_conditions=ignores)
        for name, nth in faults:
            set_fault(storage, name, nth)
        try:
            answer: bool | None = await keeps_conditions(storage)
        except StorageError:
            answer = None
        outcomes.add(answer)
        assert answer in (None, not ignores), faults
        assert storage.log[-1].operation == "delete"
        undone = [nth for name, nth in faults if name == "lost before"]
        if storage.log[-1].number not in undone:
            storage.heal()
            assert await is_empty(storage), faults
    assert (not ignores) in outcomes


# -- storages ----------------------------------------------------------------------------------------------


async def test_a_directory(tmp_path):
    storage = LocalStorage(str(tmp_path / "root"))
    assert await keeps_conditions(storage) is True
    assert await is_empty(storage)
    await storage.aclose()
    assert list((tmp_path / "root").iterdir()) == []


async def test_google_cloud_storage():
    async with FakeGcs() as server:
        options = {"endpoint_url": server.url, "anonymous": True}
        storage = await gcs.open_storage(parse_uri("gs://bucket/p"), options)
        assert await keeps_conditions(storage) is True
        assert await is_empty(storage)
        await storage.aclose()


async def test_s3():
    with moto_server() as endpoint:
        request = urllib.request.Request(f"{endpoint}/probed", method="PUT")
        urllib.request.urlopen(request, timeout=20).close()
        options = {"key": "k", "secret": "s", "endpoint_url": endpoint, "region": "us-east-1"}
        storage = await s3.open_storage(parse_uri("s3://probed/p"), options)
        assert await keeps_conditions(storage) is True
        assert await is_empty(storage)
        await storage.aclose()
