"""The bucket's state becomes the local one, whatever happens meanwhile."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from asynctune.errors import CorruptStateError
from asynctune.files import LocalFiles
from asynctune.state.epochs import claim_epoch, list_epochs
from asynctune.state.lineage import extend_history
from asynctune.state.mirror.installing import REPLACING, install, is_being_replaced, replacing_error
from asynctune.state.mirror.reading import Mirrored, read_mirror
from asynctune.state.recovery import recover
from asynctune.storage.memory import MemoryStorage
from asynctune.testing import CHANGES, FaultyFiles, ManualClock
from tests.lab.states import Session
from tests.state.mirror.world import NODE_IP, driving, until

FILES = LocalFiles()


class Killed(BaseException):
    """The process ends here."""


@dataclass
class Old:
    """A local state of its own."""

    directory: str
    records: dict[str, bytes]
    files: dict[str, bytes]


@pytest.fixture
async def mirrored(tmp_path) -> Mirrored:
    """A mirror with a snapshot, frames before and after it, and rows in them."""
    storage = MemoryStorage()
    async with driving(f"{tmp_path}/writer", storage, name="writer") as driver:
        await driver.mirror.flush(await driver.commits(3, size=400_000))
        await driver.mirror.flush(await driver.commits(3, size=400_000))
        await driver.snapshot()
        await until(lambda: driver.mirror.stats.snapshots == 1)
        await driver.mirror.flush(await driver.commits(3))
    async with driving(f"{tmp_path}/writer", storage, name="again") as driver:
        await driver.mirror.flush(await driver.commits(2))
    found = await read_mirror(storage, rows_after=lambda _records, _current: 0)
    assert found is not None
    assert found.current.snapshot is not None
    return found


@pytest.fixture
def old(tmp_path, rng) -> Old:
    directory = f"{tmp_path}/state"
    return make_old(directory, rng)


def make_old(directory: str, rng) -> Old:
    session = Session(directory, rng=rng)
    for number in range(4):
        session.commit({f"old/{number}": rng.randbytes(100)})
    session.snapshot()
    session.commit({"old/last": b"1"})
    session.close()
    names = [name for name in os.listdir(directory) if name.startswith(("wal-", "snap-"))]
    contents = {name: Path(directory, name).read_bytes() for name in names}
    return Old(directory, dict(session.truth.records[5]), contents)


def put_in_place(directory: str, mirrored: Mirrored, files: LocalFiles = FILES, **options) -> str | None:
    epoch = max(mirrored.current.claim.epoch, *list_epochs(directory, FILES), 0) + 1
    clock = ManualClock()
    claim = claim_epoch(directory, FILES, clock, epoch)
    current = mirrored.current
    history = extend_history(current.history, claim.epoch, claim.nonce, current.seq)
    return install(directory, mirrored, claim=claim, history=history, node_ip=NODE_IP, files=files, **options)


def check(directory: str, mirrored: Mirrored) -> None:
    """The local state is the bucket's, with all its rows."""
    assert not is_being_replaced(directory, FILES)
    found = recover(directory, FILES, rows_after=lambda _: 0)
    assert found.records == mirrored.recovered.records
    assert (found.seq, found.crc) == (mirrored.current.seq, mirrored.current.crc)
    assert found.experiment_id == mirrored.current.experiment_id
    assert found.history[:-1] == mirrored.current.history
    rows = [row for part in found.rows for row in part]
    assert rows == [row for part in mirrored.recovered.rows for row in part]
    assert found.notices == []


def test_on_an_empty_disk(tmp_path, mirrored):
    directory = f"{tmp_path}/new/.asynctune"
    os.makedirs(directory)
    assert put_in_place(directory, mirrored) is None
    check(directory, mirrored)
    for name in os.listdir(directory):
        assert os.stat(f"{directory}/{name}").st_mode & 0o777 == 0o600


def test_what_was_there_is_set_aside(old, mirrored):
    aside = put_in_place(old.directory, mirrored)
    check(old.directory, mirrored)
    assert aside is not None
    assert {name: Path(aside, name).read_bytes() for name in os.listdir(aside)} == old.files
    assert recover(aside, FILES).records == old.records
    assert os.stat(aside).st_mode & 0o777 == 0o700


def test_the_journal_goes_on_after_it(old, mirrored, rng):
    put_in_place(old.directory, mirrored)
    session = Session(old.directory, rng=rng)
    assert session.recovered.seq == mirrored.current.seq
    session.truth.records[session.recovered.seq] = dict(mirrored.recovered.records)
    session.commit({"more": b"1"})
    session.snapshot()
    session.commit({"more": b"2"})
    session.close()
    assert recover(old.directory, FILES).records == mirrored.recovered.records | {"more": b"2"}


def test_the_caller_may_know_other_records(old, mirrored):
    records = mirrored.recovered.records | {"projected": b"\x07"}
    put_in_place(old.directory, mirrored, records=records)
    assert recover(old.directory, FILES).records == records


async def test_a_claim_without_commits(tmp_path, old):
    storage = MemoryStorage()
    async with driving(f"{tmp_path}/writer", storage):
        pass
    found = await read_mirror(storage)
    assert found is not None
    await asyncio.to_thread(put_in_place, old.directory, found)
    state = await asyncio.to_thread(recover, old.directory, FILES)
    assert (state.seq, state.experiment_id) == (0, found.current.experiment_id)


def test_a_kill_at_each_operation_leaves_the_old_state_or_the_new_or_a_clear_refusal(tmp_path, mirrored, rng):
    counting = FaultyFiles()
    put_in_place(make_old(f"{tmp_path}/counting", rng).directory, mirrored, counting)
    outcomes = set()
    for nth in range(1, counting.count(CHANGES) + 1):
        old = make_old(f"{tmp_path}/state-{nth}", rng)
        files = FaultyFiles()

        def kill(_operation):
            raise Killed

        files.call(kill, on=CHANGES, nth=nth, lasting=True)
        with pytest.raises(Killed):
            put_in_place(old.directory, mirrored, files)
        if is_being_replaced(old.directory, FILES):
            outcomes.add("refused")
            assert REPLACING in str(replacing_error(old.directory))
        else:
            found = recover(old.directory, FILES)
            outcomes.add("old" if found.records == old.records else "new")
            assert found.records in (old.records, mirrored.recovered.records)
        # the next opening replaces it again, or finds it replaced, and nothing of the old is lost
        put_in_place(old.directory, mirrored)
        check(old.directory, mirrored)
        kept = {
            name: Path(at, name).read_bytes()
            for at, _, names in os.walk(f"{old.directory}/quarantine")
            for name in names
            if Path(at, name).read_bytes() == old.files.get(name)
        }
        assert kept == old.files
    assert outcomes == {"old", "refused", "new"}


def test_an_error_of_the_disk_leaves_it_marked(tmp_path, mirrored, rng, sampled):
    counting = FaultyFiles()
    put_in_place(make_old(f"{tmp_path}/counting", rng).directory, mirrored, counting)
    failing = CHANGES - {"close"}
    for nth in sampled(range(1, counting.count(failing) + 1), 12):
        old = make_old(f"{tmp_path}/state-{nth}", rng)
        files = FaultyFiles()
        files.fail(on=failing, nth=nth)
        with pytest.raises(OSError, match="Input/output"):
            put_in_place(old.directory, mirrored, files)
        put_in_place(old.directory, mirrored)
        check(old.directory, mirrored)


def test_the_same_opening_may_try_again(old, mirrored):
    claim = claim_epoch(old.directory, FILES, ManualClock(), 50)
    history = extend_history(mirrored.current.history, 50, claim.nonce, mirrored.current.seq)
    options: dict[str, Any] = {"claim": claim, "history": history, "node_ip": NODE_IP}
    files = FaultyFiles()
    files.fail(on="unlink")
    with pytest.raises(OSError, match="Input/output"):
        install(old.directory, mirrored, files=files, **options)
    install(old.directory, mirrored, files=FILES, **options)
    check(old.directory, mirrored)
    folders = sorted(os.listdir(f"{old.directory}/quarantine"))
    assert len(folders) == 2
    first = f"{old.directory}/quarantine/{folders[0]}"
    assert {name: Path(first, name).read_bytes() for name in os.listdir(first)} == old.files


def test_the_refusal_says_where_everything_is(tmp_path):
    error = replacing_error(f"{tmp_path}/.asynctune")
    assert isinstance(error, CorruptStateError)
    assert "quarantine" in str(error)
    assert not is_being_replaced(str(tmp_path), FILES)
