"""What is read from the local journal to be mirrored: whole commits, byte for byte, in pieces."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path

import pytest

from asynctune.errors import CorruptStateError
from asynctune.files import LocalFiles
from asynctune.state.mirror import journal_runs
from asynctune.state.mirror.journal_runs import JournalRuns
from asynctune.state.mirror.runs import check_follows, join_runs, split_runs
from asynctune.state.recovery import recover
from asynctune.state.segments import History
from asynctune.testing import FaultyFiles
from tests.lab.states import HeldFiles, Made, Session, make_state


@pytest.fixture
def directory(tmp_path) -> str:
    return f"{tmp_path}/state"


@pytest.fixture
def made(directory, rng) -> Made:
    return make_state(directory, rng)


def history_of(directory: str) -> History:
    return recover(directory, LocalFiles()).history


def reader(directory: str, files: LocalFiles | None = None) -> JournalRuns:
    return JournalRuns(directory, history_of(directory), files or LocalFiles())


def read_all(journal: JournalRuns, upto: int, crcs: dict[int, int], max_bytes: int) -> list[bytes]:
    """In pieces, as a mirror that catches up does."""
    pieces, seq = [], 0
    while seq < upto:
        runs = journal.read(seq, crcs[seq], upto, max_bytes)
        assert runs is not None
        check_follows(split_runs(runs.data), seq + 1, runs.last_seq)
        assert runs.first_seq == seq + 1
        seq, crcs[runs.last_seq] = runs.last_seq, runs.crc
        pieces.append(runs.data)
    return pieces


@pytest.mark.parametrize("max_bytes", [1, 700, 5000, 8 << 20])
def test_all_commits_come_over_in_pieces(directory, made, max_bytes, monkeypatch):
    monkeypatch.setattr(journal_runs, "_WINDOW_BYTES", 300)
    crcs = {0: 0}
    pieces = read_all(reader(directory), made.truth.seq, crcs, max_bytes)
    if max_bytes == 1:
        assert len(pieces) == made.truth.seq
    joined = join_runs(pieces)
    # the same as all at once, and read by recovery as a journal of its own
    assert read_all(reader(directory), made.truth.seq, {0: 0}, 1 << 30) == [joined]
    contents = {str(run.name): joined[run.start : run.end] for run in split_runs(joined)}
    found = recover("held", HeldFiles("held", contents), rows_after=lambda _: 0)
    assert (found.seq, found.records) == (made.truth.seq, made.truth.records[made.truth.seq])
    assert [row for part in found.rows for row in part] == made.truth.rows_up_to(made.truth.seq)
    assert crcs[found.seq] == found.crc


def test_no_more_than_was_acknowledged(directory, made):
    runs = reader(directory).read(0, 0, 5)
    assert runs is not None
    assert runs.last_seq == 5


def test_reading_on_reads_only_what_is_new(directory, rng):
    session = Session(directory, rng=rng)
    for number in range(50):
        session.commit({f"k{number}": rng.randbytes(1000)})
    files = FaultyFiles()
    journal = reader(directory, files)
    first = journal.read(0, 0, 50)
    assert first is not None
    session.commit({"more": b"1"})
    before = files.count("read_from")
    second = journal.read(50, first.crc, 51)
    assert second is not None
    assert (second.first_seq, second.last_seq) == (51, 51)
    assert files.count("read_from") - before <= 2
    session.close()


def test_a_journal_that_was_pruned_does_not_reach_back(directory, rng):
    session = Session(directory, rng=rng)
    session.commit({"a": b"1"})
    session.snapshot()
    session.commit({"a": b"2"})
    session.journal.prune(1)
    journal = reader(directory)
    assert journal.read(0, 0, 2) is None
    assert journal.crc_of(1) is not None
    runs = journal.read(1, journal.crc_of(1) or 0, 2)
    assert runs is not None
    assert runs.last_seq == 2
    session.close()


def test_another_commit_than_the_one_mirrored_is_refused(directory, made):
    with pytest.raises(CorruptStateError, match="not the one that was mirrored"):
        reader(directory).read(5, 12345, 9)
    with pytest.raises(CorruptStateError, match="not the one that was mirrored"):
        reader(directory).read(0, 12345, 9)


def test_each_commit_has_its_crc(directory, made):
    crcs = {0: 0}
    read_all(reader(directory), made.truth.seq, crcs, 1)
    journal = reader(directory)
    assert {seq: journal.crc_of(seq) for seq in crcs} == crcs
    assert journal.crc_of(made.truth.seq + 1) is None


def test_damage_is_never_mirrored(directory, made, rng):
    """A flipped bit anywhere: what is read is right, or nothing is."""
    truth = join_runs(read_all(reader(directory), made.truth.seq, {0: 0}, 1 << 30))
    history = history_of(directory)
    for _ in range(300):
        name = rng.choice(sorted(n for n in made.contents if n.startswith("wal-")))
        data = bytearray(made.contents[name])
        bit = rng.randrange(8 * len(data))
        data[bit // 8] ^= 1 << (bit % 8)
        files = HeldFiles(directory, made.contents | {name: bytes(data)})
        try:
            runs = JournalRuns(directory, history, files).read(0, 0, made.truth.seq, 1 << 30)
        except CorruptStateError:
            continue
        if runs is None:
            continue
        assert truth.startswith(runs.data)


def test_an_acknowledged_commit_that_is_not_there_is_an_error(directory, made):
    crcs = {0: 0}
    read_all(reader(directory), made.truth.seq, crcs, 1)
    with pytest.raises(CorruptStateError, match="acknowledged"):
        reader(directory).read(made.truth.seq, crcs[made.truth.seq], made.truth.seq + 1)


def test_a_segment_removed_while_it_is_read_is_looked_for_again(directory, rng):
    session = Session(directory, rng=rng)
    session.commit({"a": b"1"})
    session.snapshot()
    session.commit({"a": b"2"})
    files = FaultyFiles()
    # the listing has it, and the header cannot be read any more
    files.call(lambda _operation: os.unlink(f"{directory}/wal-1-1"), on="read_from")
    journal = JournalRuns(directory, session.journal.history, files)
    assert journal.read(0, 0, 2) is None
    session.close()


def test_a_header_that_is_being_written_is_passed_over(directory, rng):
    session = Session(directory, rng=rng)
    session.commit({"a": b"1"})
    Path(directory, "wal-1-2").write_bytes(b"ATJ1 half a header")
    journal = JournalRuns(directory, session.journal.history, LocalFiles())
    runs = journal.read(0, 0, 1)
    assert runs is not None
    os.unlink(f"{directory}/wal-1-2")
    session.journal.capture()
    session.commit({"a": b"2"})
    runs = journal.read(1, runs.crc, 2)
    assert runs is not None
    assert runs.last_seq == 2
    session.close()


def test_what_a_fenced_writer_left_is_passed_over(directory, rng):
    one = Session(directory, rng=rng)
    one.commit({"a": b"1"})
    two = Session(directory, one.truth, rng=rng)
    two.commit({"a": b"2"})
    # written by the first after the second took over
    stale = Session(f"{directory}-other", rng=random.Random(5))
    stale.commit({"a": b"x"})
    journal = JournalRuns(directory, two.journal.history, LocalFiles())
    Path(directory, "wal-9-2").write_bytes(Path(f"{directory}-other", "wal-1-1").read_bytes())
    runs = journal.read(0, 0, 2)
    assert runs is not None
    assert runs.last_seq == 2
    for each in (one, two, stale):
        each.close()


def test_an_error_of_the_disk_is_that(directory, made):
    files = FaultyFiles()
    journal = JournalRuns(directory, history_of(directory), files)
    files.fail(errno.EIO, on="read_from", nth=20)
    files.fail(errno.EIO, on="list_dir")
    with pytest.raises(OSError, match="Input/output"):
        journal.read(0, 0, made.truth.seq)


def test_memory_is_bounded_by_the_piece(directory, rng):
    import tracemalloc  # noqa: PLC0415 - slows down what runs while it is on

    session = Session(directory, rng=rng)
    for number in range(24):
        session.commit({"k": rng.randbytes(500_000), "n": b"%d" % number})
    session.close()
    journal = reader(directory)
    tracemalloc.start()
    try:
        seq = crc = 0
        while seq < 24:
            runs = journal.read(seq, crc, 24, 1 << 20)
            assert runs is not None
            seq, crc = runs.last_seq, runs.crc
            del runs
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 << 20
