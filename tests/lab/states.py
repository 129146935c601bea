"""Owns small experiment states made to order, with the truth about every commit, for others to damage."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import patch

from asynctune.errors import CorruptStateError, FencedError, UnsupportedFormatError
from asynctune.files import LocalFiles
from asynctune.state.epochs import Claim, claim_epoch
from asynctune.state.journal import Batch, CommitDone, Journal, secure_tail
from asynctune.state.lineage import Link, extend_history, lineage
from asynctune.state.recovered import Recovered
from asynctune.state.recovery import recover
from asynctune.state.segments import (
    Damage,
    SegmentName,
    decode_segment_header,
    parse_segment_name,
    walk_commits,
)
from asynctune.state.snapshot import Image, write_snapshot
from asynctune.testing import FaultyFiles, ManualClock

__all__ = [
    "EXPERIMENT_ID",
    "HeldFiles",
    "Made",
    "Session",
    "Truth",
    "boundaries",
    "judge",
    "make_state",
    "read_all",
]

EXPERIMENT_ID = "e4be1c0ffee05a17"


@dataclass
class Truth:
    """What was acknowledged: the records after each commit, and the rows in it.

    `fenced` is what a fenced writer put on the disk and was never told to be safe: it may come back whole where the
    header of the segment that cuts it off is gone.
    """

    records: dict[int, dict[str, bytes]] = field(default_factory=lambda: {0: {}})
    rows: dict[int, list[bytes]] = field(default_factory=dict)
    fenced: dict[int, dict[str, bytes]] = field(default_factory=dict)

    @property
    def seq(self) -> int:
        return max(self.records)

    def rows_up_to(self, seq: int) -> list[tuple[int, bytes]]:
        return [(s, row) for s in sorted(self.rows) if s <= seq for row in self.rows[s]]


class Session:
    """One opening of a state for writing, without a loop: the journal is called directly.

    Args:
        directory: Stands for `.asynctune`; made if missing.
        truth: Kept up to date with what is acknowledged.
        files: The disk.
        rng: Makes the nonce, so that a seed repeats every byte.
    """

    def __init__(
        self,
        directory: str,
        truth: Truth | None = None,
        *,
        files: LocalFiles | None = None,
        rng: random.Random,
    ) -> None:
        os.makedirs(directory, exist_ok=True)
        self.directory = directory
        self.files = files or LocalFiles()
        self.truth = truth if truth is not None else Truth()
        self.clock = ManualClock(monotonic=100.0, time=1_764_000_000.0)
        with known_host(rng):
            self.claim: Claim = claim_epoch(directory, self.files, self.clock)
        self.recovered: Recovered = recover(directory, self.files)
        found = self.recovered
        if found.position is not None:
            secure_tail(directory, found.position.name, self.files)
        self.journal = Journal(
            directory,
            experiment_id=found.experiment_id or EXPERIMENT_ID,
            claim=self.claim,
            node_ip="192.0.2.7",
            history=extend_history(found.history, self.claim.epoch, self.claim.nonce, found.seq),
            records=dict(found.records),
            seq=found.seq,
            crc=found.crc,
            files=self.files,
            clock=self.clock,
        )
        self.journal.start_segment()

    def commit(
        self,
        puts: dict[str, bytes] | None = None,
        *,
        deletes: tuple[str, ...] = (),
        rows: tuple[bytes, ...] = (),
    ) -> CommitDone:
        batch = Batch(self.journal.seq + 1, dict(puts or {}), dict.fromkeys(deletes), list(rows))
        done = self.journal.commit(batch)
        after = {
            k: v for k, v in (self.truth.records[done.seq - 1] | batch.puts).items() if k not in batch.deletes
        }
        self.truth.records[done.seq] = after
        self.truth.rows[done.seq] = batch.rows
        return done

    def snapshot(self) -> int:
        image = self.journal.capture()
        self.write(image)
        return image.seq

    def write(self, image: Image) -> int:
        journal = self.journal
        return write_snapshot(
            self.directory,
            image,
            experiment_id=journal.experiment_id,
            claim=self.claim,
            history=journal.history,
            files=self.files,
        )

    def close(self) -> None:
        self.journal.close()


@contextmanager
def known_host(rng: random.Random) -> Iterator[None]:
    with (
        patch("asynctune.state.epochs.secrets.token_bytes", rng.randbytes),
        patch("asynctune.state.epochs.host_info", lambda: ("host.example", 4711, "boot/1")),
    ):
        yield


@dataclass
class Made:
    """A state with everything in it.

    Attributes:
        truth: What was acknowledged.
        contents: Each file.
        last: The segment at the end.
        needed: Segments that the newest state cannot do without, each with the offset where its part ends.
        newest_snapshot: File name.
        idle: Files that recovery need not read at all.
    """

    truth: Truth
    contents: dict[str, bytes]
    last: SegmentName
    needed: dict[str, int]
    newest_snapshot: str
    idle: frozenset[str]


def make_state(directory: str, rng: random.Random, *, size: int = 6) -> Made:
    """Two snapshots, three openings, a retried write, a fenced writer, commits of several frames, rows, deletions.

    Args:
        directory: Where; must not exist.
        rng: Makes the values.
        size: Commits between the events.
    """
    truth, files = Truth(), FaultyFiles()
    first = Session(directory, truth, files=files, rng=rng)
    _some(first, rng, size)
    first.snapshot()
    _some(first, rng, size)
    first.snapshot()
    newest = f"snap-{first.journal.seq}"
    after_snapshot = first.journal.seq + 1
    _some(first, rng, size)
    files.fail(errno.EIO, on="write", after_bytes=70)
    first.commit({"run/retried": rng.randbytes(90)}, rows=(b"retried",))
    _some(first, rng, 2)
    files.fail(errno.EIO, on="sync_data")  # in the first commit of a segment: `.1`, and the first try stays
    files.fail(errno.EIO, on="unlink")
    first.journal.capture()
    first.commit({"run/again": rng.randbytes(30)})
    first.close()
    second = Session(directory, truth, rng=rng)
    _some(second, rng, size)
    _many_frames(second, rng)
    third = Session(directory, truth, rng=rng)
    try:
        second.commit({"run/fenced": b"lost"})
    except FencedError:
        seq = second.journal.seq
        truth.fenced[seq + 1] = truth.records[seq] | {"run/fenced": b"lost"}
    else:
        raise AssertionError
    second.close()
    _some(third, rng, size)
    _many_frames(third, rng)
    third.commit({"searcher": b"\0" * 3000 + rng.randbytes(20)}, rows=(b"row",))
    third.commit({"run/sparse": b"".join(bytes(100) + b"\1" for _ in range(30))})
    _some(third, rng, 2)
    third.close()
    contents = read_all(directory)
    links = lineage({n: decode_segment_header(contents[str(n)], n) for n in segment_names(contents)})
    # The retry in a segment's first commit repeats what the first try had written whole: one of the two is enough.
    needed = {
        str(link.name): _end_of(link, contents[str(link.name)])
        for link in links
        if link.header.first_seq >= after_snapshot and not link.name.attempt
    }
    idle = frozenset(contents) - {str(link.name) for link in links} - {newest}
    return Made(truth, contents, links[-1].name, needed, newest, idle)


def segment_names(contents: dict[str, bytes]) -> list[SegmentName]:
    """The segments among the files, in order."""
    return sorted(n for text in contents if (n := parse_segment_name(text)))


def _end_of(link: Link, data: bytes) -> int:
    ends = boundaries(link.name, data)
    return max(end for end, seq in ends.items() if link.end_seq is None or seq < link.end_seq)


def _some(session: Session, rng: random.Random, count: int) -> None:
    for _ in range(count):
        keys = [f"trial/3f9ac_{rng.randrange(20):05d}", f"run/3f9ac_{rng.randrange(20):05d}"]
        session.commit(
            {key: rng.randbytes(rng.choice((1, 20, 150, 400))) for key in keys[: rng.randint(1, 2)]},
            deletes=tuple(rng.sample(sorted(session.truth.records[session.journal.seq]) or ["none"], 1))
            if rng.random() < 0.2
            else (),
            rows=tuple(rng.randbytes(60) for _ in range(rng.choice((0, 0, 1, 3)))),
        )


def _many_frames(session: Session, rng: random.Random) -> None:
    with patch("asynctune.state.journal._FRAME_BYTES", 500), patch("asynctune.state.journal._FRAME_KEYS", 4):
        session.commit(
            {f"checkpoint/{i}": rng.randbytes(200) for i in range(8)},
            deletes=("run/retried",),
            rows=(b"a", b"b", b"c"),
        )


class HeldFiles(LocalFiles):
    """A directory held in memory, for reading: damaging a copy costs nothing."""

    def __init__(self, directory: str, contents: dict[str, bytes]) -> None:
        self._directory = directory
        self.contents = contents

    def list_dir(self, path: str) -> list[str]:
        assert path == self._directory
        return list(self.contents)

    def read(self, path: str) -> bytes:
        name = path.removeprefix(f"{self._directory}/")
        if name not in self.contents:
            raise FileNotFoundError(errno.ENOENT, "no such file", path)
        return self.contents[name]

    def read_from(self, path: str, offset: int, limit: int | None = None) -> bytes:
        data = self.read(path)[offset:]
        return data if limit is None else data[:limit]

    def exists(self, path: str) -> bool:
        return path.removeprefix(f"{self._directory}/") in self.contents


def read_all(directory: str) -> dict[str, bytes]:
    """Every file there."""
    return {path.name: path.read_bytes() for path in sorted(Path(directory).iterdir()) if path.is_file()}


def boundaries(name: SegmentName, data: bytes) -> dict[int, int]:
    """For each offset at which a commit ends (or the header does): the seq of the last commit up to there."""
    header = decode_segment_header(data, name)
    found = {header.end: header.first_seq - 1}
    for item in walk_commits(data, header.end, epoch=name.epoch, seq=header.first_seq, crc=header.prev_crc):
        if isinstance(item, Damage):
            break
        found[item.end] = item.seq
    return found


def judge(
    directory: str, contents: dict[str, bytes], truth: Truth, *, rows: bool = True
) -> tuple[str, Recovered | None]:
    """Read a damaged copy. Whatever it is, it must be a state that was acknowledged, or refused by name.

    Returns:
        How it came out, and what was found: `"intact"` (the newest state, nothing to report), `"made good"` (the
        newest, and a notice), `"earlier, told"` (an older committed state, and a notice), `"earlier, silent"`
        (without one), `"refused"`.
    """
    files = HeldFiles(directory, contents)
    try:
        found = recover(directory, files, rows_after=(lambda _records: 0) if rows else None)
    except (CorruptStateError, UnsupportedFormatError) as error:
        _check_refusal(error, directory, contents)
        return "refused", None
    assert found.seq in truth.records, f"commit {found.seq} was never acknowledged"
    if found.notices and found.records == truth.fenced.get(found.seq):
        return "earlier, told", found
    assert found.records == truth.records[found.seq], f"half a commit after {found.seq}"
    if rows:
        assert [row for part in found.rows for row in part] == truth.rows_up_to(found.seq)
    if found.seq == truth.seq:
        return ("made good" if found.notices else "intact"), found
    return ("earlier, told" if found.notices else "earlier, silent"), found


def _check_refusal(error: Exception, directory: str, contents: dict[str, bytes]) -> None:
    """A refusal names the file, and the offset in it."""
    assert directory in str(error)
    if isinstance(error, CorruptStateError):
        assert error.path is not None
        assert error.offset is not None
        assert os.path.basename(error.path) in contents
        assert 0 <= error.offset <= len(contents[os.path.basename(error.path)])
