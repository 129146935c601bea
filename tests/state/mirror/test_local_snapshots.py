"""The snapshot that is sent: held, proven, let go."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import google_crc32c
import pytest

from asynctune.files import LocalFiles
from asynctune.state.mirror.local_snapshots import hold_newest, newest_snapshot, release, remove_leftovers
from asynctune.state.recovery import recover
from asynctune.testing import FaultyFiles
from tests.lab.states import Session, make_state
from tests.state.examples import claim_of

CLAIM = claim_of(3)
FILES = LocalFiles()


@pytest.fixture
def directory(tmp_path) -> str:
    return f"{tmp_path}/state"


def hold(directory: str, *, after: int = 0, upto: int = 10**6, files: LocalFiles = FILES):
    return hold_newest(directory, recover(directory, FILES).history, CLAIM, files, after=after, upto=upto)


def test_the_newest_is_held_and_let_go(directory, rng):
    made = make_state(directory, rng)
    held = hold(directory)
    assert held is not None
    data = made.contents[made.newest_snapshot]
    assert f"snap-{held.seq}" == made.newest_snapshot
    assert (held.size_bytes, held.crc32c) == (len(data), google_crc32c.value(data))
    os.unlink(f"{directory}/{made.newest_snapshot}")  # as the store prunes it
    assert Path(held.path).read_bytes() == data
    assert os.stat(f"{directory}/uploads").st_mode & 0o777 == 0o700
    release(held, FILES)
    release(held, FILES)
    assert os.listdir(f"{directory}/uploads") == []


def test_only_one_that_current_can_name(directory, rng):
    make_state(directory, rng)
    newest = hold(directory)
    assert newest is not None
    older = hold(directory, upto=newest.seq - 1)
    assert older is not None
    assert older.seq < newest.seq
    assert hold(directory, after=newest.seq) is None
    assert newest_snapshot(directory, FILES, after=older.seq, upto=newest.seq) == (
        newest.seq,
        newest.size_bytes,
    )
    assert newest_snapshot(directory, FILES, after=newest.seq, upto=10**6) is None


def test_its_crc_is_that_of_its_commit(directory, rng):
    session = Session(directory, rng=rng)
    session.commit({"a": b"1"})
    session.snapshot()
    session.close()
    held = hold(directory)
    assert held is not None
    assert held.crc == recover(directory, FILES).crc


def test_a_large_one_is_proven_in_bounded_memory(directory, rng):
    import tracemalloc  # noqa: PLC0415 - slows down what runs while it is on

    session = Session(directory, rng=rng)
    session.commit({f"k{n}": rng.randbytes(200_000) for n in range(60)})
    session.snapshot()
    session.close()
    history = recover(directory, FILES).history
    tracemalloc.start()
    try:
        held = hold_newest(directory, history, CLAIM, FILES, after=0, upto=9)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held is not None
    assert held.size_bytes > 12_000_000
    assert peak < 8 << 20


def test_a_damaged_one_is_passed_over(directory, rng, sampled):
    made = make_state(directory, rng)
    path = Path(directory, made.newest_snapshot)
    data = path.read_bytes()
    newest = hold(directory)
    assert newest is not None
    for bit in sampled(range(8 * len(data)), 60):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << (bit % 8)
        path.write_bytes(changed)
        found = hold_newest(directory, recover_history(made), CLAIM, FILES, after=0, upto=10**6)
        assert found is not None
        assert found.seq < newest.seq
    for length in sampled(range(len(data)), 40):
        path.write_bytes(data[:length])
        found = hold_newest(directory, recover_history(made), CLAIM, FILES, after=0, upto=10**6)
        assert found is not None
        assert found.seq < newest.seq
    path.write_bytes(data + b"\0")
    found = hold_newest(directory, recover_history(made), CLAIM, FILES, after=newest.seq - 1, upto=10**6)
    assert found is None


def recover_history(made):
    from asynctune.state.segments import decode_segment_header  # noqa: PLC0415 - for one test

    return decode_segment_header(made.contents[str(made.last)], made.last).history


def test_another_openings_is_passed_over(directory, rng):
    session = Session(directory, rng=rng)
    session.commit({"a": b"1"})
    session.snapshot()
    session.close()
    assert hold_newest(directory, [(9, b"9" * 16, 0)], CLAIM, FILES, after=0, upto=9) is None
    assert os.listdir(f"{directory}/uploads") == []


def test_one_that_is_pruned_in_this_moment(directory, rng):
    make_state(directory, rng)
    files = FaultyFiles()
    files.call(lambda operation: os.unlink(f"{directory}/{newest_name(directory)}"), on="link")
    held = hold(directory, files=files)
    assert held is not None


def newest_name(directory: str) -> str:
    return max((n for n in os.listdir(directory) if n.startswith("snap-")), key=lambda n: int(n[5:]))


def test_an_error_of_the_disk_leaves_nothing_behind(directory, rng):
    make_state(directory, rng)
    os.mkdir(f"{directory}/uploads")
    for on in ("link", "read_from"):
        files = FaultyFiles()
        files.fail(errno.EIO, on=on)
        with pytest.raises(OSError, match="Input/output"):
            hold_newest(directory, recover(directory, FILES).history, CLAIM, files, after=0, upto=10**6)
        assert os.listdir(f"{directory}/uploads") == []


def test_leftovers_of_earlier_openings_go(directory, rng):
    make_state(directory, rng)
    remove_leftovers(directory, FILES)  # there is no such directory yet
    assert hold(directory) is not None
    Path(directory, "uploads", "somebody-elses").write_bytes(b"note")
    remove_leftovers(directory, FILES)
    assert os.listdir(f"{directory}/uploads") == ["somebody-elses"]
