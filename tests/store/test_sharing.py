"""Where locks keep nobody out: who opens last goes on, the one before is fenced, and people are told once."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import logging
import os

import pytest

from asynctune.errors import FencedError
from asynctune.files import LocalFiles
from asynctune.state import sharing
from asynctune.state.epochs import HostLock, claim_epoch, new_claim
from asynctune.state.sharing import Locks, Mount, Sharing
from asynctune.store.opening import Found, is_dead
from asynctune.store.store import ExperimentStore
from asynctune.testing import ManualClock


def without_locks(fd: int, operation: int) -> None:
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))


def pretended(fd: int, operation: int) -> None:
    pass


@pytest.mark.parametrize("flock", [without_locks, pretended])
async def test_who_opens_last_goes_on(location, monkeypatch, caplog, flock):
    monkeypatch.setattr(fcntl, "flock", flock)
    first = await ExperimentStore.open(location)
    first.add_trial({}, "a")
    await first.flush()
    async with ExperimentStore.open(location) as second:
        warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
        assert [record.message.count("takes the experiment over") for record in warnings] == [1, 1]
        assert str(location) in warnings[0].message
        second.add_trial({}, "b")
        await second.flush()
        first.add_trial({}, "c")
        with pytest.raises(FencedError):
            await first.flush()
        with pytest.raises(FencedError):
            await first.aclose()
        second.add_trial({}, "d")
    async with ExperimentStore.open(location, "read") as reader:
        assert [trial.trial_id for trial in reader.trials] == ["a", "b", "d"]


async def test_the_warning_is_an_event_of_the_opening(location, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", without_locks)
    async with ExperimentStore.open(location) as store:
        events = store.events()
        store.add_trial({})
    told = [event async for event in events if event.kind == "sharing_warning"]
    assert len(told) == 1
    assert "has no locks" in told[0].message


async def test_where_locks_work_nothing_is_said(location, caplog):
    async with ExperimentStore.open(location) as store:
        events = store.events()
        store.add_trial({})
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert not [event async for event in events if event.kind == "sharing_warning"]


class Remembering(LocalFiles):
    """A network filesystem that remembers which names were missing; a listing is asked for anew each time."""

    def __init__(self) -> None:
        self.missing: set[str] = set()

    def exists(self, path: str) -> bool:
        if path not in self.missing and not super().exists(path):
            self.missing.add(path)
        return path not in self.missing


@pytest.mark.parametrize("kind", ["nfs4", "ext4"])
async def test_on_a_network_each_commit_looks_anew(location, monkeypatch, kind):
    mount = Mount("/", kind, frozenset())
    monkeypatch.setattr(sharing, "mount_of", lambda _: mount)
    store = await ExperimentStore.open(location, files=Remembering())
    store.add_trial({}, "a")
    await store.flush()
    await asyncio.to_thread(claim_epoch, f"{location}/.asynctune", LocalFiles(), ManualClock())
    store.add_trial({}, "b")
    if not mount.is_network:  # one host: the lock keeps others out, and two looks at names are cheaper
        await store.flush()
        await store.aclose()
        return
    with pytest.raises(FencedError):
        await store.flush()
    with pytest.raises(FencedError):
        await store.aclose()


@pytest.mark.parametrize("locks", [True, False])
async def test_what_another_opening_may_be_writing_stays(location, monkeypatch, locks):
    async with ExperimentStore.open(location) as store:
        store.add_trial({})
    left = location / ".asynctune" / ".claim-0123"
    left.write_bytes(b"")
    if not locks:
        monkeypatch.setattr(fcntl, "flock", without_locks)
    async with ExperimentStore.open(location):
        assert left.exists() is not locks


@pytest.mark.parametrize(
    ("locks", "expected"),
    [("working", True), ("this_host", False), ("pretended", False), ("missing", False)],
    ids=str,
)
def test_a_lock_proves_that_the_owner_is_dead_where_locks_work(tmp_path, locks: Locks, expected):
    files = LocalFiles()
    owner = claim_epoch(str(tmp_path), files, ManualClock())  # of this process, which is alive
    lock = HostLock.acquire(f"{tmp_path}/LOCK")
    assert lock is not None
    found = Found(str(tmp_path), str(tmp_path), lock, Sharing(str(tmp_path), locks, None))
    assert is_dead(owner, found, files) is expected
    assert is_dead(new_claim(1, ManualClock()), found, files) is False  # of another directory
    lock.release()
