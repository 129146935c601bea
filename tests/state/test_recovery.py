"""Reading a state back from whatever a crash, a bad disk or a person left of it."""

from __future__ import annotations

import os
import random
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from asynctune.errors import CorruptStateError, FencedError, UnsupportedFormatError
from asynctune.files import LocalFiles
from asynctune.state import codec, recovery
from asynctune.state.epochs import list_epochs
from asynctune.state.lineage import MAX_HISTORY
from asynctune.state.recovered import apply_ops
from asynctune.state.recovery import follow, recover
from asynctune.state.segments import SegmentName, encode_segment_header
from asynctune.state.snapshot import Image
from tests.lab.bitflips import every_bit, flip_bits, tear_last_write, zero_sectors
from tests.lab.states import HeldFiles, Made, Session, Truth, boundaries, judge, make_state, read_all
from tests.lab.truncation import cut_last_segment, cut_other_file, cuts
from tests.state.examples import header_of


@pytest.fixture
def made(tmp_path, rng) -> Made:
    return make_state(f"{tmp_path}/state", rng)


@pytest.fixture
def directory(tmp_path) -> str:
    return f"{tmp_path}/state"


def read(directory: str, **options):
    return recover(directory, LocalFiles(), **options)


def asking_for(seq: int):
    """Rows after a fixed commit."""
    return lambda _records: seq


def refusal(directory: str, contents: dict[str, bytes] | None = None) -> CorruptStateError:
    files = LocalFiles() if contents is None else HeldFiles(directory, contents)
    with pytest.raises(CorruptStateError) as caught:
        recover(directory, files)
    assert str(caught.value.path) in str(caught.value)
    return caught.value


# -- damage in bulk, with the lab's own code -----------------------------------------------------------------


def test_the_undamaged_state_is_read_whole(directory, made):
    outcome, found = judge(directory, made.contents, made.truth)
    assert outcome == "intact"
    assert found is not None
    assert found.snapshot_seq > 0
    assert found.claim is not None
    assert found.claim.epoch == 3
    assert found.position is not None
    assert found.position.offset == len(made.contents[str(made.last)])


def test_the_journal_cut_anywhere_is_the_state_as_of_the_last_whole_commit(directory, made, sampled):
    lengths = cuts(made, str(made.last))
    ends = sorted(boundaries(made.last, made.contents[str(made.last)]))
    outcomes = cut_last_segment(directory, made, [*sampled(lengths, 200), *range(ends[-3], len(lengths))])
    assert outcomes["earlier, told"] > 200


def test_any_other_file_cut_short_changes_nothing_or_is_refused(directory, made, sampled):
    for name in made.contents:
        if name != str(made.last):
            cut_other_file(directory, made, name, sampled(cuts(made, name), 30))


def test_a_flipped_bit_is_never_silent(directory, made, sampled):
    outcomes = flip_bits(directory, made, sampled(every_bit(made), 1500))
    assert outcomes["refused"] > outcomes["intact"] > 0


def test_every_flipped_bit_of_the_very_last_frame_is_refused(directory, made):
    ends = sorted(boundaries(made.last, made.contents[str(made.last)]))
    bits = [(str(made.last), bit) for bit in range(8 * ends[-2], 8 * ends[-1])]
    assert flip_bits(directory, made, bits) == {"refused": len(bits)}


def test_sectors_of_zeros(directory, made):
    assert zero_sectors(directory, made)["earlier, told"] > 0


def test_a_last_write_that_reached_the_disk_in_part_is_a_tear(directory, made, rng):
    assert tear_last_write(directory, made, rng, 400)["earlier, told"] == 400


# -- segments that are missing, swapped, repeated, foreign ----------------------------------------------------


def test_a_missing_segment_is_refused(directory, made):
    for name in made.needed:
        if name == str(made.last):
            continue
        rest = {key: data for key, data in made.contents.items() if key != name}
        assert "missing" in str(refusal(directory, rest))


def test_the_segment_after_a_snapshot_is_missed(directory, rng):
    session = Session(directory, rng=rng)
    session.commit({"a": b"1"})
    session.snapshot()
    session.commit({"a": b"2"})
    session.close()
    os.unlink(f"{directory}/wal-1-2")
    assert "wal-1-1" in str(refusal(directory).path)
    assert "missing" in str(refusal(directory))


def test_the_journal_of_the_opening_that_wrote_a_snapshot_is_missed(directory, rng):
    truth = Truth()
    for _ in range(2):
        session = Session(directory, truth, rng=rng)
        session.commit({"a": b"1"})
        session.close()
    session = Session(directory, truth, rng=rng)
    session.commit({"a": b"2"})
    session.snapshot()
    session.close()
    for name in ("wal-3-3", "wal-3-4"):
        os.unlink(f"{directory}/{name}")
    assert "snap-3" in str(refusal(directory).path)


def test_swapped_segments_are_refused(directory, made):
    names = sorted(made.needed)
    for one, two in pairwise(names):
        swapped = made.contents | {one: made.contents[two], two: made.contents[one]}
        assert "header of segment" in str(refusal(directory, swapped))


@pytest.mark.parametrize("name", ["wal-9-1", "wal-3-999", "wal-1-1.7", "wal-2-500"])
def test_a_segment_under_another_name_is_refused(directory, made, name):
    for source in [*made.needed, "wal-1-1"]:
        assert refusal(directory, made.contents | {name: made.contents[source]}).path == f"{directory}/{name}"


def test_the_only_segment_under_another_name_is_no_fresh_start(directory, rng):
    session = Session(directory, rng=rng)
    session.commit({"a": b"1"})
    session.close()
    os.rename(f"{directory}/wal-1-1", f"{directory}/wal-2-1")
    refusal(directory)


def test_a_segment_of_another_experiment_is_refused(directory, made):
    foreign = encode_segment_header(header_of(7, 1))
    error = refusal(directory, made.contents | {"wal-7-1": foreign})
    assert "experiment" in str(error)


def test_a_snapshot_without_a_journal_is_no_fresh_start(directory, made):
    rest = {key: data for key, data in made.contents.items() if not key.startswith("wal-")}
    assert refusal(directory, rest).path == f"{directory}/{made.newest_snapshot}"


def test_a_segment_that_does_not_know_its_own_opening_is_refused(directory):
    os.makedirs(directory)
    header = header_of(2, 1, history=[(1, b"x" * 16, 0)])
    Path(directory, "wal-2-1").write_bytes(encode_segment_header(header))
    refusal(directory)


def test_a_snapshot_of_another_state_does_not_fit_the_journal(directory, rng):
    session = Session(directory, rng=rng)
    session.commit({"a": b"1"})
    image = session.journal.capture()
    session.write(Image(image.seq, image.crc ^ 1, image.keys, image.values))
    session.commit({"a": b"2"})
    session.close()
    assert "does not go on" in str(refusal(directory))


# -- garbage, names, formats -----------------------------------------------------------------------------------


def test_other_files_are_ignored(directory, made):
    garbage = {
        "wal-1": b"x",
        "wal-01-1": b"x",
        "snap-": b"",
        "snap-7.tmp": b"x",
        ".snap-9-ab.tmp": b"y",
        "notes": b"z",
    }
    assert judge(directory, made.contents | garbage, made.truth)[0] == "intact"


@pytest.mark.parametrize("data", [b"not a segment at all, but long enough to be one" * 20, b"\xff" * 700])
def test_garbage_under_a_segments_name_is_refused(directory, made, data):
    for name in ("wal-9-99999", "wal-1-2"):
        assert refusal(directory, made.contents | {name: data}).path == f"{directory}/{name}"


@pytest.mark.parametrize("data", [b"", b"AT", bytes(300)])
def test_a_segment_that_never_began_is_a_tear(directory, made, data):
    outcome, found = judge(directory, made.contents | {"wal-4-99999": data}, made.truth)
    assert outcome == "made good"
    assert found is not None
    assert [notice.kind for notice in found.notices] == ["tear"]


def test_a_long_file_of_zeros_is_no_segment_that_never_began(directory, made):
    error = refusal(directory, made.contents | {"wal-4-99999": bytes(64 * 1024)})
    assert error.path == f"{directory}/wal-4-99999"


def test_garbage_under_a_snapshots_name_is_refused_or_passed_over(directory, made):
    assert "a snapshot of 999" in str(refusal(directory, made.contents | {"snap-999": b"garbage"}))
    assert judge(directory, made.contents | {"snap-1": b"garbage"}, made.truth)[0] == "intact"


def test_a_directory_in_the_place_of_a_file_is_an_error(directory, rng):
    session = Session(directory, rng=rng)
    session.close()
    os.mkdir(f"{directory}/wal-1-77")
    with pytest.raises(OSError, match="directory"):
        read(directory)


def test_a_newer_format_is_told_to_be_one(directory, rng, monkeypatch):
    truth = Truth()
    session = Session(directory, truth, rng=rng)
    session.commit({"a": b"1"})
    monkeypatch.setattr(codec, "FORMAT_VERSION", 2)
    session.commit({"a": b"2"})
    session.snapshot()
    session.commit({"a": b"3"})
    session.close()
    monkeypatch.setattr(codec, "FORMAT_VERSION", 1)
    with pytest.raises(UnsupportedFormatError, match="upgrade"):
        read(directory)
    os.unlink(f"{directory}/snap-2")
    os.unlink(f"{directory}/wal-1-3")
    with pytest.raises(UnsupportedFormatError, match="wal-1-1"):
        read(directory)


def test_a_newer_format_in_the_middle_of_the_journal(directory, rng, monkeypatch):
    session = Session(directory, rng=rng)
    session.commit({"a": b"1"})
    monkeypatch.setattr(codec, "FORMAT_VERSION", 2)
    session.commit({"a": b"2"})
    monkeypatch.setattr(codec, "FORMAT_VERSION", 1)
    session.journal.capture()
    session.commit({"a": b"3"})
    session.close()
    with pytest.raises(UnsupportedFormatError, match="wal-1-1"):
        read(directory)


# -- beginnings ------------------------------------------------------------------------------------------------


def test_an_empty_directory_holds_nothing(directory):
    os.makedirs(directory)
    found = read(directory)
    assert (found.position, found.records, found.notices, found.claim) == (None, {}, [], None)


def test_a_creation_cut_short_holds_nothing_and_says_so(directory):
    os.makedirs(directory)
    Path(directory, "epoch-1").write_bytes(b"")
    Path(directory, "wal-1-1").write_bytes(b"ATJ1")
    found = read(directory)
    assert found.position is None
    assert [notice.kind for notice in found.notices] == ["tear"]


def test_a_missing_directory_is_not_found(directory):
    with pytest.raises(FileNotFoundError):
        read(directory)


def test_the_only_segment_with_its_header_gone_is_no_fresh_start(directory, rng):
    session = Session(directory, rng=rng)
    for i in range(10):
        session.commit({"a": rng.randbytes(400), "b": bytes([i])})
    session.close()
    path = Path(directory, "wal-1-1")
    data = path.read_bytes()
    for size in (100, 512, 1024, len(data)):
        path.write_bytes(bytes(size) + data[size:])
        refusal(directory)


# -- generations -----------------------------------------------------------------------------------------------


def test_a_damaged_newest_snapshot_is_made_good_by_the_older_and_the_journal(directory, made):
    older = {key: data for key, data in made.contents.items() if key != "wal-1-1"}
    older[made.newest_snapshot] = older[made.newest_snapshot][:-30]
    found = recover(directory, HeldFiles(directory, older))
    assert found.records == made.truth.records[made.truth.seq]
    (notice,) = found.notices
    assert notice.kind == "damage"
    assert notice.path == f"{directory}/{made.newest_snapshot}"
    assert found.snapshots == [found.snapshot_seq]
    # both damaged: the journal from its first commit, while it is there
    older |= {f"snap-{found.snapshot_seq}": b"", "wal-1-1": made.contents["wal-1-1"]}
    found = recover(directory, HeldFiles(directory, older))
    assert found.records == made.truth.records[made.truth.seq]
    assert len(found.notices) == 2
    del older["wal-1-1"]
    assert refusal(directory, older).path == f"{directory}/{made.newest_snapshot}"


def test_a_missing_snapshot_is_made_good_by_the_journal(directory, made):
    rest = {key: data for key, data in made.contents.items() if not key.startswith("snap-")}
    assert judge(directory, rest, made.truth)[0] == "intact"


def test_a_damaged_snapshot_of_what_the_journal_no_longer_reaches_is_not_forgotten(directory, rng):
    session = Session(directory, rng=rng)
    for i in range(4):
        session.commit({"a": bytes([i])})
    session.snapshot()
    session.close()
    contents = read_all(directory)
    ends = sorted(boundaries(SegmentName(1, 1), contents["wal-1-1"]))
    contents["wal-1-1"] = contents["wal-1-1"][: ends[-1] - 5]
    del contents["wal-1-5"]
    assert judge(directory, contents, session.truth)[0] == "refused"
    contents["snap-4"] = contents["snap-4"][:-1]
    assert "snapshot" in str(refusal(directory, contents))


# -- fenced writers --------------------------------------------------------------------------------------------


def test_a_fenced_writer_changes_nothing(directory, rng):
    truth = Truth()
    first = Session(directory, truth, rng=rng)
    first.commit({"a": b"1"})
    stale = first.journal.capture()
    first.commit({"a": b"2"})
    second = Session(directory, truth, rng=rng)
    with pytest.raises(FencedError):
        first.commit({"a": b"lost"})
    with pytest.raises(FencedError):
        first.journal.capture()
    with pytest.raises(FencedError):
        first.journal.prune(2)
    second.commit({"b": b"3"})
    # what a writer that has not noticed yet may still write: a snapshot of the past, and one of what never was
    first.write(stale)
    first.write(Image(3, 77, ["a"], [b"lost"]))
    second.commit({"b": b"4"})
    for session in (first, second):
        session.close()
    found = read(directory)
    assert found.records == truth.records[4] == {"a": b"2", "b": b"4"}
    assert found.snapshots == [1]
    assert not found.notices
    third = Session(directory, truth, rng=rng)
    third.commit({"c": b"5"})
    third.close()
    assert read(directory).records == truth.records[5]


def test_of_two_openings_at_once_the_later_claim_wins_whoever_read_first(directory, rng):
    truth = Truth()
    base = Session(directory, truth, rng=rng)
    base.commit({"a": b"1"})
    base.close()
    loser, winner = Session(directory, truth, rng=rng), Session(directory, truth, rng=rng)
    with pytest.raises(FencedError):
        loser.commit({"x": b"lost"})
    winner.commit({"y": b"kept"})
    loser.close()
    winner.close()
    assert read(directory).records == {"a": b"1", "y": b"kept"}


def test_many_short_openings_leave_a_state_that_can_be_read(directory, rng):
    truth = Truth()
    for i in range(70):
        session = Session(directory, truth, rng=rng)
        session.commit({f"k{i % 7}": bytes([i])})
        session.close()
    found = read(directory)
    assert found.records == truth.records[70]
    assert len(found.segments) == 70
    assert len(list_epochs(directory, LocalFiles())) == 8


def test_the_longest_history_fits_into_what_is_read_of_a_header():
    history = [(10**9 + n, b"n" * 16, 10**12 + n) for n in range(MAX_HISTORY)]
    header = header_of(10**9 + MAX_HISTORY - 1, 10**12, nonce=b"n" * 16, history=history)
    assert len(encode_segment_header(header)) <= recovery._longest_header(header.name)
    names: dict[str, Any] = {"hostname": "h" * 64, "started": "b" * 36 + "/" + "9" * 20, "pid": 2**31}
    first = header_of(1, 10**18 - 1, attempt=10**9 - 1, prev_crc=2**32 - 1)
    first = replace(first, claim=replace(first.claim, **names), experiment_id="e" * 16, node_ip="f" * 45)
    assert len(encode_segment_header(first)) <= recovery._longest_header(first.name)


# -- rows ------------------------------------------------------------------------------------------------------


def test_rows_are_those_after_the_seq_asked_for(directory, made):
    files = HeldFiles(directory, made.contents)
    for after in range(made.truth.seq + 1):
        found = recover(directory, files, rows_after=asking_for(after))
        expected = [(seq, row) for seq, row in made.truth.rows_up_to(made.truth.seq) if seq > after]
        assert [row for part in found.rows for row in part] == expected
    assert {row.node_ip for row in recover(directory, files, rows_after=lambda _: 0).rows} == {"192.0.2.7"}
    assert recover(directory, files).rows == []


def test_rows_that_are_needed_and_gone_are_missed(directory, made):
    rest = {key: data for key, data in made.contents.items() if key != "wal-1-1"}
    files = HeldFiles(directory, rest)
    assert recover(directory, files).records == made.truth.records[made.truth.seq]
    with pytest.raises(CorruptStateError, match="rows"):
        recover(directory, files, rows_after=lambda _: 0)


def test_who_wrote_a_row_is_known(directory, rng):
    truth = Truth()
    for name in (b"one", b"two"):
        session = Session(directory, truth, rng=rng)
        session.commit(rows=(name,))
        session.close()
    rows = read(directory, rows_after=lambda _: 0).rows
    assert [(part.data, part.claim.epoch) for part in rows] == [([b"one"], 1), ([b"two"], 2)]


# -- readers beside a writer -------------------------------------------------------------------------------------


def test_following_gives_each_commit_once(directory, rng):
    session = Session(directory, rng=rng)
    session.commit({"a": b"0"})
    found = read(directory, live=True)
    records, position = dict(found.records), found.position
    for turn in range(30):
        if turn % 7 == 6:
            session.snapshot()
        for _ in range(turn % 3):
            session.commit({f"k{rng.randrange(5)}": rng.randbytes(5)}, deletes=("a",) if turn == 9 else ())
        assert position is not None
        followed = follow(directory, LocalFiles(), position)
        assert followed is not None
        commits, position = followed
        assert [commit.seq for commit in commits] == list(
            range(session.journal.seq - turn % 3 + 1, session.journal.seq + 1)
        )
        for commit in commits:
            apply_ops(records, commit.ops)
        assert records == session.truth.records[session.journal.seq]
    session.close()


def test_following_over_a_takeover_and_a_retry_goes_on_or_asks_to_read_anew(directory, rng):
    truth = Truth()
    session = Session(directory, truth, rng=rng)
    session.commit({"a": b"1"})
    position = read(directory).position
    second = Session(directory, truth, rng=rng)
    second.commit({"b": b"2"})
    assert position is not None
    followed = follow(directory, LocalFiles(), position)
    assert followed is not None
    assert [commit.seq for commit in followed[0]] == [2]
    session.close()
    second.close()
    shutil.copy(f"{directory}/wal-2-2", f"{directory}/wal-2-2.x")
    os.unlink(f"{directory}/wal-1-1")
    assert follow(directory, LocalFiles(), position) is None


def test_a_live_writers_partial_end_is_the_end(directory, rng):
    session = Session(directory, rng=rng)
    session.commit({"a": b"1"})
    session.commit({"a": b"2"})
    session.close()
    path = Path(directory, "wal-1-1")
    data = path.read_bytes()
    path.write_bytes(data[:-4])
    assert read(directory, live=True).notices == []
    assert read(directory, live=True).records == {"a": b"1"}
    assert len(read(directory).notices) == 1


def write_much(directory: str, truth: Truth, rng: random.Random) -> None:
    """Three openings, with snapshots and pruning."""
    for _ in range(3):
        session = Session(directory, truth, rng=rng)
        snapshots: list[int] = []
        for i in range(60):
            session.commit({f"k{rng.randrange(20)}": rng.randbytes(300)})
            if i % 13 == 12:
                snapshots.append(session.snapshot())
                if len(snapshots) > 1:
                    session.journal.prune(snapshots[-2])
        session.close()


def test_a_reader_beside_a_writer_that_appends_rotates_and_prunes_sees_only_committed_states(directory, seed):
    truth = Truth()
    os.makedirs(directory)
    found = read(directory, live=True)
    times_anew, times_followed = 0, 0
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write_much, directory, truth, random.Random(seed))
        while True:
            last = writing.done()
            before = found.seq
            followed = follow(directory, LocalFiles(), found.position) if found.position is not None else None
            if followed is None:
                found, times_anew = read(directory, live=True), times_anew + 1
            else:
                for commit in followed[0]:
                    apply_ops(found.records, commit.ops)
                found.position, found.seq = followed[1], followed[1].seq
                times_followed += bool(followed[0])
            assert found.seq >= before
            # a commit may be on the disk a moment before the writer has noted the truth about it
            while found.seq not in truth.records and not writing.done():
                time.sleep(0)
            assert found.records == truth.records[found.seq]
            if last:
                break
        writing.result()
    assert found.seq == 180
    assert times_anew >= 1
    assert times_followed >= 1
