"""Appending to the journal: what is acknowledged is on the disk, whatever the disk does."""

from __future__ import annotations

import errno
import os
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asynctune.errors import FencedError, StorageError
from asynctune.files import LocalFiles
from asynctune.state import journal as room
from asynctune.state.codec import encode_ops
from asynctune.state.epochs import claim_epoch
from asynctune.state.journal import Batch, DiskFullError, secure_tail
from asynctune.state.recovered import apply_ops
from asynctune.state.recovery import recover
from asynctune.state.segments import SegmentName
from asynctune.testing import CHANGES, FaultyFiles
from tests.lab.journal_faults import FAULTS, clear, fail_at, operations
from tests.lab.states import Session, read_all


@pytest.fixture
def directory(tmp_path) -> str:
    return f"{tmp_path}/state"


@pytest.fixture
def files() -> FaultyFiles:
    return FaultyFiles()


@pytest.fixture
def session(directory, files, rng) -> Session:
    return Session(directory, files=files, rng=rng)


def found(directory: str) -> dict[str, bytes]:
    return recover(directory, LocalFiles()).records


# -- plain commits -------------------------------------------------------------------------------------------


def test_a_commit_is_written_synced_and_then_looked_up(session, files, directory):
    before = len(files.log)
    done = session.commit({"a": b"1"})
    kinds = [each.kind for each in files.log[before:]]
    assert kinds == ["write", "sync_data", "exists", "exists"]
    assert (done.seq, done.overcame) == (1, None)
    assert done.size_bytes == os.stat(f"{directory}/wal-1-1").st_size - first_commit_at(directory)
    session.close()
    assert found(directory) == {"a": b"1"}


def first_commit_at(directory: str) -> int:
    data = read_all(directory)["wal-1-1"]
    return recover(directory, LocalFiles()).journal_bytes and data.index(b"ATJ1", 4)


def test_a_new_segment_is_synced_with_its_name_before_anything_depends_on_it(directory, files, rng):
    Session(directory, files=files, rng=rng).close()
    log = [each.kind for each in files.log if "wal-1-1" in each.path or each.kind == "sync_dir"]
    start = log.index("create")
    assert log[start : start + 4] == ["create", "write", "sync", "sync_dir"]


def test_the_cost_of_a_commit_is_read_from_the_clock(session, files):
    files.call(lambda _operation: session.clock.move(2.0), on="sync_data")
    done = session.commit({"a": b"1"})
    assert done.ended_at - done.started_at == done.cost_s == 2.0


def test_waiting_for_the_interpreter_costs_nothing_and_waiting_for_the_disk_does(session, files, monkeypatch):
    computed = 10.0

    def encode(ops):
        nonlocal computed
        session.clock.move(2.0)
        computed += 1.0  # the other second went to the event loop
        return encode_ops(ops)

    monkeypatch.setattr(session.clock, "busy", lambda: computed)
    monkeypatch.setattr(room, "encode_ops", encode)
    files.call(lambda _operation: session.clock.move(3.0), on="sync_data")
    done = session.commit({"a": b"1"})
    assert done.ended_at - done.started_at == 5.0
    assert done.cost_s == 4.0


def test_a_commit_of_nothing_but_rows_and_deletions(session, directory):
    session.commit({"a": b"1", "b": b"2"})
    session.commit(deletes=("a", "never there"), rows=(b"row",))
    session.close()
    state = recover(directory, LocalFiles(), rows_after=lambda _: 0)
    assert state.records == {"b": b"2"}
    assert [data for part in state.rows for data in part.data] == [b"row"]


# -- commits of several frames ---------------------------------------------------------------------------------


@given(
    st.dictionaries(st.text(max_size=5), st.integers(0, 900), max_size=30),
    st.lists(st.text(max_size=5), max_size=20),
    st.lists(st.integers(0, 900), max_size=15),
)
def test_parts_hold_the_whole_batch_within_their_limits(puts, deletes, rows):
    batch = Batch(1, {k: bytes(n) for k, n in puts.items()}, dict.fromkeys(deletes), [bytes(n) for n in rows])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "_FRAME_BYTES", 1000)
        patch.setattr(room, "_FRAME_KEYS", 8)
        parts = list(room._parts(batch))
    assert [more for _, more in parts] == [True] * (len(parts) - 1) + [False] * bool(parts)
    records: dict[str, bytes] = {"old": b""}
    apply_ops(records, tuple(ops for ops, _ in parts))
    expected = {key: value for key, value in ({"old": b""} | batch.puts).items() if key not in batch.deletes}
    assert records == expected
    assert [row for ops, _ in parts for row in ops.rows] == batch.rows
    for ops, _ in parts:
        values = ops.puts[1::2] + ops.rows
        assert len(values) <= 8
        assert len(values) <= 1 or sum(map(len, values)) <= 1000


def test_an_empty_batch_is_a_commit_too(session, directory):
    session.commit()
    session.close()
    assert recover(directory, LocalFiles()).seq == 1


def test_a_large_commit_is_synced_on_the_way(session, files, directory, rng):
    before = files.count("sync_data")
    session.commit({f"k{i}": rng.randbytes(1 << 20) for i in range(20)})
    assert files.count("sync_data") - before >= 3
    session.close()
    assert found(directory) == session.truth.records[1]


def test_a_commit_torn_between_its_frames_is_not_half_applied(session, files, directory, rng, monkeypatch):
    monkeypatch.setattr(room, "_FRAME_BYTES", 500)
    monkeypatch.setattr(room, "_FRAME_KEYS", 8)
    monkeypatch.setattr(room, "_WRITE_BYTES", 500)
    session.commit({"a": b"before"})
    values = {f"k{i}": rng.randbytes(200) for i in range(20)}

    class Killed(BaseException):
        pass

    def kill(_operation):
        raise Killed

    files.call(kill, on="write", nth=5)
    with pytest.raises(Killed):
        session.commit(values)
    session.close()
    state = recover(directory, LocalFiles())
    assert state.records == {"a": b"before"}
    assert [notice.kind for notice in state.notices] == ["tear"]


# -- failures --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FAULTS, ids=lambda kind: kind.name)
def test_whatever_operation_fails_what_was_acknowledged_is_recovered(directory, seed, sampled, kind):
    total = operations(directory, kind, random.Random(seed))
    for nth in sampled(range(1, total + 1), 40):
        clear(directory)
        assert fail_at(directory, kind, nth, random.Random(seed)) != "not reached"


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("operation", ["write", "sync_data"])
def test_a_failed_descriptor_is_never_used_again(session, files, directory, number, operation):
    session.commit({"a": b"1"})
    files.fail(number, on=operation, after_bytes=10)
    done = session.commit({"a": b"2"})
    assert done.overcame is not None
    assert done.overcame.errno == number
    at = next(
        i for i, each in enumerate(files.log) if each.kind == "create" and each.path.endswith("wal-1-2")
    )
    assert not [each for each in files.log[at:] if each.path.endswith("wal-1-1") and each.kind != "close"]
    session.commit({"a": b"3"})
    session.close()
    assert found(directory) == {"a": b"3"}


def test_failing_twice_is_an_error_that_says_what_is_safe(session, files, directory):
    session.commit({"a": b"1"})
    files.fail(errno.EIO, on="write", lasting=True)
    with pytest.raises(StorageError, match=r"twice.*safe.*open the experiment again") as caught:
        session.commit({"a": b"2"})
    assert caught.value.operation == "commit"
    session.close()
    assert found(directory) == {"a": b"1"}
    assert not os.path.exists(f"{directory}/wal-1-2")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_may_be_tried_again_until_there_is_space(session, files, directory, number):
    session.commit({"a": b"1"})
    for operation in ("write", "sync_data", "create", "sync", "sync_dir"):
        files.fail(number, on=operation, lasting=True, after_bytes=3)
        batch = Batch(session.journal.seq + 1, {"a": operation.encode()}, {}, [])
        if operation not in {"create", "sync", "sync_dir"}:
            for _ in range(3):
                with pytest.raises(DiskFullError):
                    session.journal.commit(batch)
        else:  # these fail where a new segment is begun
            files.fail(number, on="write", after_bytes=3)
            with pytest.raises(DiskFullError):
                session.journal.commit(batch)
        assert len([name for name in os.listdir(directory) if name.startswith("wal-")]) <= 6
        files.heal()
        session.journal.commit(batch)
        assert found(directory) == {"a": operation.encode()}
    session.close()


def test_a_full_disk_leaves_no_segment_behind_at_each_try(session, files, directory):
    session.commit({"a": b"1"})
    files.fail(errno.ENOSPC, on="write", lasting=True, after_bytes=3)
    for _ in range(20):
        with pytest.raises(DiskFullError):
            session.journal.commit(Batch(2, {"a": b"2"}))
    assert sorted(read_all(directory)) == ["epoch-1", "wal-1-1"]
    session.close()


def test_a_takeover_is_noticed_before_anything_is_acknowledged(session, files, directory):
    session.commit({"a": b"1"})
    claimed = []

    def take_over(_operation):
        claimed.append(claim_epoch(directory, LocalFiles(), session.clock))

    files.call(take_over, on="sync_data")
    with pytest.raises(FencedError, match="taken over"):
        session.commit({"a": b"2"})
    assert claimed
    assert session.journal.seq == 1
    session.close()


def test_a_takeover_is_noticed_before_a_failed_write_is_tried_elsewhere(session, files, directory):
    session.commit({"a": b"1"})
    claim_epoch(directory, LocalFiles(), session.clock)
    files.fail(errno.EIO, on="write")
    with pytest.raises(FencedError):
        session.commit({"a": b"2"})
    assert not os.path.exists(f"{directory}/wal-1-2")
    session.close()


# -- segments, capture, pruning ---------------------------------------------------------------------------------


def test_a_segment_begun_again_at_the_same_commit_has_another_name(session, directory):
    session.journal.capture()
    session.journal.capture()
    session.commit({"a": b"1"})
    session.close()
    # the ones before it held nothing, and are gone
    assert sorted(n for n in read_all(directory) if n.startswith("wal")) == ["wal-1-1.2"]
    assert found(directory) == {"a": b"1"}
    assert recover(directory, LocalFiles()).segments == [SegmentName(1, 1, 2)]


def test_what_is_captured_does_not_change_any_more(session):
    session.commit({"a": b"1", "b": b"1"})
    image = session.journal.capture()
    session.commit({"a": b"2"}, deletes=("b",))
    assert (image.seq, dict(zip(image.keys, image.values, strict=True))) == (1, {"a": b"1", "b": b"1"})
    session.close()


def test_a_capture_that_fails_leaves_the_present_segment(session, files, directory):
    session.commit({"a": b"1"})
    files.fail(errno.EIO, on="create")
    with pytest.raises(OSError, match="wal-1-2"):
        session.journal.capture()
    session.commit({"a": b"2"})
    session.close()
    assert found(directory) == {"a": b"2"}
    assert not os.path.exists(f"{directory}/wal-1-2")


@pytest.mark.parametrize("operation", ["write", "sync", "sync_dir"])
def test_a_segment_that_failed_and_cannot_be_removed_cuts_nothing_off(session, files, directory, operation):
    session.commit({"a": b"1"})
    files.fail(errno.EIO, on=operation, applied=True)
    files.fail(errno.EIO, on="unlink", lasting=True)
    with pytest.raises(OSError, match="Input/output"):
        session.journal.capture()
    assert os.path.exists(f"{directory}/wal-1-2")
    session.commit({"a": b"2"})
    session.close()
    assert found(directory) == {"a": b"2"}


def test_pruning_removes_what_two_generations_do_not_need_and_nothing_else(directory, rng):
    session = Session(directory, rng=rng)
    snapshots: list[int] = []
    for turn in range(6):
        for _ in range(rng.randint(1, 4)):
            session.commit({f"k{rng.randrange(6)}": rng.randbytes(30)})
        if turn == 3:
            session.close()
            session = Session(directory, session.truth, rng=rng)
            session.commit({"next": b"opening"})
        snapshots.append(session.snapshot())
        if len(snapshots) > 1:
            session.journal.prune(snapshots[-2])
        names = read_all(directory)
        assert [n for n in names if n.startswith("snap")] == sorted(
            (f"snap-{seq}" for seq in snapshots[-2:]), key=str
        )
        # the newest generation lost: the older one and the journal give the same
        os.rename(f"{directory}/snap-{snapshots[-1]}", f"{directory}/aside")
        if turn:
            assert found(directory) == session.truth.records[session.journal.seq]
        os.rename(f"{directory}/aside", f"{directory}/snap-{snapshots[-1]}")
        assert found(directory) == session.truth.records[session.journal.seq]
    assert len([n for n in read_all(directory) if n.startswith("wal")]) <= 3
    session.close()


def test_pruning_that_fails_at_any_operation_leaves_a_whole_state_and_goes_on_later(directory, rng):
    for nth in range(1, 12):
        files = FaultyFiles()
        session = Session(directory, files=files, rng=rng)
        for _ in range(3):
            session.commit({f"k{rng.randrange(6)}": rng.randbytes(30)})
            session.snapshot()
        keep_from = recover(directory, LocalFiles()).snapshots[-2]
        fault = files.fail(errno.EIO, on=CHANGES, nth=nth)
        try:
            session.journal.prune(keep_from)
        except OSError:
            assert fault.hits
        files.heal()
        assert found(directory) == session.truth.records[session.journal.seq]
        session.journal.prune(keep_from)
        session.close()
        assert found(directory) == session.truth.records[session.journal.seq]
        clear(directory)


def test_the_number_of_segments_is_known(session):
    assert session.journal.segments == 0
    session.journal.capture()
    assert session.journal.segments == 1
    session.close()


# -- the tail of a killed writer ---------------------------------------------------------------------------------


def test_the_tail_that_a_new_opening_builds_on_is_synced_first(directory, rng):
    first = Session(directory, rng=rng)
    first.commit({"a": b"1"})
    first.close()
    files = FaultyFiles()
    Session(directory, first.truth, files=files, rng=rng).close()
    log = [(each.kind, os.path.basename(each.path)) for each in files.log]
    assert log.index(("sync_data", "wal-1-1")) < log.index(("create", "wal-2-2"))


def test_a_tail_that_cannot_be_synced_is_an_error(session, files, directory):
    session.close()
    files.fail(errno.EIO, on="sync_data")
    with pytest.raises(OSError, match="wal-1-1"):
        secure_tail(directory, SegmentName(1, 1), files)
    assert files.log[-1].kind == "close"
