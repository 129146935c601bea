"""Makes each operation of the disk fail once, or for good, under the journal and the snapshots."""

from __future__ import annotations

import errno
import os
import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from asynctune.errors import FencedError, StorageError
from asynctune.files import LocalFiles
from asynctune.state.codec import FrameError
from asynctune.state.journal import DiskFullError
from asynctune.state.recovery import recover
from asynctune.testing import CHANGES, LOOKS, Fault, FaultyFiles, Operation
from tests.lab.registry import Lab, Row, experiment
from tests.lab.states import Session, Truth

__all__ = ["FAULTS", "FaultKind", "fail_at", "operations"]

_KEEP_FAILING = 12


@dataclass(frozen=True)
class FaultKind:
    """One way in which an operation goes wrong."""

    name: str
    kinds: frozenset[str]
    set: Callable[[FaultyFiles, int], Fault]


def _stuck(files: FaultyFiles, nth: int) -> Fault:
    def keep(operation: Operation) -> None:
        if os.path.basename(operation.path).startswith("wal-"):
            raise OSError(errno.EIO, os.strerror(errno.EIO), operation.path)

    files.call(keep, on="unlink", lasting=True)
    return files.fail(errno.EIO, on=CHANGES - {"unlink"}, nth=nth, applied=True)


FAULTS = [
    FaultKind("EIO", CHANGES, lambda files, nth: files.fail(errno.EIO, on=CHANGES, nth=nth)),
    FaultKind(
        "ENOSPC", CHANGES, lambda files, nth: files.fail(errno.ENOSPC, on=CHANGES, nth=nth, after_bytes=33)
    ),
    FaultKind(
        "EIO, but done", CHANGES, lambda files, nth: files.fail(errno.EIO, on=CHANGES, nth=nth, applied=True)
    ),
    FaultKind("EIO, but done, and no segment can be removed", CHANGES - {"unlink"}, _stuck),
    FaultKind(
        "EIO for good", CHANGES, lambda files, nth: files.fail(errno.EIO, on=CHANGES, nth=nth, lasting=True)
    ),
    FaultKind(
        "full for good",
        CHANGES,
        lambda files, nth: files.fail(errno.ENOSPC, on=CHANGES, nth=nth, lasting=True, after_bytes=5),
    ),
    FaultKind("EIO on a look", CHANGES | LOOKS, lambda files, nth: files.fail(errno.EIO, nth=nth)),
    FaultKind("short write", frozenset({"write"}), lambda files, nth: files.cut(7, nth=nth)),
]


def operations(directory: str, kind: FaultKind, rng: random.Random) -> int:
    """How many operations of that kind the whole scene takes when nothing fails."""
    files = FaultyFiles()
    os.makedirs(directory, exist_ok=True)
    clear(directory)
    assert _Scene(directory, files, rng).play() == "whole"
    return files.count(kind.kinds)


def fail_at(directory: str, kind: FaultKind, nth: int, rng: random.Random) -> str:
    """Play the scene with the n-th operation failing, then read what is on the disk.

    Everything acknowledged must be there; a commit that was not acknowledged is there whole or not at all.
    """
    files = FaultyFiles()
    scene = _Scene(directory, files, rng)
    fault = kind.set(files, nth)
    outcome = scene.play()
    if not fault.hits:
        return "not reached"
    truth = scene.truth
    try:
        found = recover(directory, LocalFiles(), rows_after=lambda _: scene.pruned)
    except FileNotFoundError:
        assert truth.seq == 0
        return outcome
    assert found.seq >= truth.seq, f"acknowledged {truth.seq}, recovered {found.seq} ({outcome})"
    assert found.seq - truth.seq <= 1
    records = truth.records[truth.seq] if found.seq == truth.seq else scene.tried
    assert found.records == records, f"half a commit after {found.seq} ({outcome})"
    if found.seq == truth.seq:
        kept = [(seq, row) for seq, row in truth.rows_up_to(found.seq) if seq > scene.pruned]
        assert [row for part in found.rows for row in part] == kept
    assert not [notice for notice in found.notices if notice.kind == "damage"]
    _go_on(directory, found.seq, found.records, rng)
    return outcome


def _go_on(directory: str, seq: int, records: dict[str, bytes], rng: random.Random) -> None:
    """The next opening works as if nothing had been."""
    truth = Truth({0: {}, seq: records})
    session = Session(directory, truth, rng=rng)
    session.commit({"after": b"wards"})
    session.snapshot()
    session.close()
    found = recover(directory, LocalFiles())
    assert found.records == records | {"after": b"wards"}
    assert not found.notices


class _Scene:
    """An opening that commits, writes snapshots and prunes, and waits out a full disk."""

    def __init__(self, directory: str, files: FaultyFiles, rng: random.Random) -> None:
        self.directory = directory
        self.files = files
        self.truth = Truth()
        self.tried: dict[str, bytes] = {}
        self.pruned = 0
        self._rng = rng
        self._overcame = 0

    def play(self) -> str:
        """How it ended: `"whole"`, `"overcame"`, or the name of the error."""
        try:
            session = Session(self.directory, self.truth, files=self.files, rng=self._rng)
        except (OSError, StorageError, FencedError) as error:
            return f"opening: {type(error).__name__}"
        try:
            for turn in range(3):
                for _ in range(2):
                    self._commit(session)
                self._snapshot(session, prune=turn == 2)
            self._commit(session)
        except (StorageError, FencedError, OSError) as error:
            return f"failed: {type(error).__name__}"
        finally:
            session.close()
        return "overcame" if self._overcame else "whole"

    def _commit(self, session: Session) -> None:
        key = f"run/{self._rng.randrange(4)}"
        puts = {key: self._rng.randbytes(self._rng.choice((10, 700)))}
        row = self._rng.randbytes(20)
        self.tried = self.truth.records[self.truth.seq] | puts
        for turn in range(_KEEP_FAILING + 1):
            try:
                done = session.commit(puts, rows=(row,))
            except DiskFullError:
                self._overcame += 1
                if turn == _KEEP_FAILING // 2:
                    self.files.heal()
            else:
                self._overcame += done.overcame is not None
                return
        raise AssertionError

    def _snapshot(self, session: Session, *, prune: bool) -> None:
        # what the writer's task does: a snapshot that fails costs nothing, and comes again
        try:
            session.snapshot()
            if prune:
                found = recover(self.directory, LocalFiles())
                self.pruned = found.snapshots[-2]
                session.journal.prune(self.pruned)
        except (OSError, FrameError):
            self._overcame += 1


def clear(directory: str) -> None:
    """Empty a directory of files."""
    for entry in os.scandir(directory):
        os.unlink(entry.path)


@experiment("journal-faults", "each disk operation failing under journal and snapshots")
def run(lab: Lab) -> Iterable[Row]:
    for kind in FAULTS:
        count = operations(f"{lab.directory}/plain", kind, random.Random(f"{lab.seed}:0"))
        outcomes: Counter[str] = Counter()
        for repeat in range(lab.times(20, 1)):
            for nth in lab.progress(range(1, count + 1), kind.name, count):
                directory = f"{lab.directory}/state"
                os.makedirs(directory, exist_ok=True)
                outcomes[fail_at(directory, kind, nth, random.Random(f"{lab.seed}:{repeat}"))] += 1
                clear(directory)
        yield Row.tally(f"{kind.name} at each of {count} operations", outcomes)
