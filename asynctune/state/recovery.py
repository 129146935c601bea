"""Owns reading an experiment's state back: newest whole snapshot, then the journal, each byte checked.

Tells a tear (a last write that a crash cut short: reported, left behind) from corruption (an error naming file
and offset). Writes nothing, needs no lock, and starts over when a live writer removes a file meanwhile. All calls
block and belong in a thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Final

from asynctune.errors import CorruptStateError, UnsupportedFormatError
from asynctune.files import LocalFiles
from asynctune.state.codec import FrameError, has_valid_frame_after, is_torn
from asynctune.state.lineage import MAX_HISTORY, Link, in_history, lineage
from asynctune.state.recovered import Notice, Position, Recovered, SegmentRows, apply_ops
from asynctune.state.segments import (
    Commit,
    Damage,
    SegmentHeader,
    SegmentName,
    decode_segment_header,
    parse_segment_name,
    walk_commits,
)
from asynctune.state.snapshot import parse_snapshot_name, read_snapshot

__all__ = ["follow", "recover"]

_TRIES: Final = 20
_SETTLE_S: Final = 0.005
# No less than a segment's header frame: with an empty history, and for each epoch in it.
_HEADER_BYTES: Final = 512
_HISTORY_BYTES: Final = 36


def recover(
    directory: str,
    files: LocalFiles,
    *,
    rows_after: Callable[[dict[str, bytes]], int] | None = None,
    live: bool = False,
) -> Recovered:
    """Read the whole state below the `.asynctune` directory.

    Args:
        directory: That directory.
        files: The disk.
        rows_after: Given the final records, says after which seq result rows are wanted; `None`: no rows.
        live: A writer may be appending meanwhile: a partial end is its end, and no tear is reported.

    Raises:
        CorruptStateError: Damage that no generation makes good.
        UnsupportedFormatError: Written by a newer release.
        OSError: The disk refused.
    """
    for attempt in range(_TRIES):
        try:
            return _Reading(directory, files, live=live).recover(rows_after)
        except FileNotFoundError:
            if attempt == _TRIES - 1:
                raise
            time.sleep(_SETTLE_S)  # a live writer replaced a generation between the listing and the reading
        except CorruptStateError:
            if not live or attempt >= 2:  # noqa: PLR2004 - a look into the middle of a write settles by itself
                raise
            time.sleep(_SETTLE_S)
    raise AssertionError


def follow(directory: str, files: LocalFiles, since: Position) -> tuple[list[Commit], Position] | None:
    """The commits after `since`, or `None` when the state must be read anew because files were replaced."""
    try:
        return _Reading(directory, files, live=True).follow(since)
    except (FileNotFoundError, CorruptStateError):
        return None


class _Reading:
    """One attempt to read a directory as it is listed at the start."""

    def __init__(self, directory: str, files: LocalFiles, *, live: bool) -> None:
        self._directory = directory
        self._files = files
        self._live = live
        names = files.list_dir(directory)
        self._segments = sorted(n for name in names if (n := parse_segment_name(name)))
        self._snapshots = sorted(s for name in names if (s := parse_snapshot_name(name)) is not None)
        self._notices: list[Notice] = []
        self._wants_rows = False
        self._acknowledged = 0  # no tear can be at or below a commit that a snapshot holds

    def recover(self, rows_after: Callable[[dict[str, bytes]], int] | None) -> Recovered:
        self._wants_rows = rows_after is not None
        headers = self._headers()
        links = lineage(headers)
        if not links:
            self._check_never_used(headers)
            return Recovered(notices=self._notices)
        last = links[-1].header
        for name, header in headers.items():
            if header.experiment_id != last.experiment_id:
                detail = (
                    f"a segment of experiment {header.experiment_id!r} beside ones of {last.experiment_id!r}"
                )
                raise self._corrupt(str(name), 0, detail)
        state = Recovered(
            experiment_id=last.experiment_id,
            history=list(last.history),
            claim=last.claim,
            notices=self._notices,
            segments=[link.name for link in links],
        )
        self._load_snapshot(state, links)
        self._replay(state, links)
        if rows_after is not None:
            self._collect_rows(state, links, rows_after(state.records))
        return state

    def follow(self, since: Position) -> tuple[list[Commit], Position] | None:
        links = lineage(self._headers(newer_than=since.name))
        if not links or links[0].name != since.name:
            return None
        if links[0].header.experiment_id != since.experiment_id:
            return None  # another experiment was made in its place
        seq, crc, position, commits = since.seq, since.crc, since, []
        for link in links:
            offset = since.offset if link.name == since.name else link.header.end
            if link.name != since.name and (link.header.first_seq != seq + 1 or link.header.prev_crc != crc):
                return None
            data = self._files.read_from(f"{self._directory}/{link.name}", offset)
            position = replace(since, name=link.name, offset=offset, seq=seq, crc=crc)
            for item in walk_commits(data, 0, epoch=link.name.epoch, seq=seq + 1, crc=crc):
                if isinstance(item, Damage) or (link.end_seq is not None and item.seq >= link.end_seq):
                    break
                commits.append(item)
                seq, crc = item.seq, item.crc
                position = replace(position, offset=offset + item.end, seq=seq, crc=crc)
        return commits, position

    # -- headers and snapshots -----------------------------------------------------------------------------

    def _headers(self, newer_than: SegmentName | None = None) -> dict[SegmentName, SegmentHeader]:
        headers: dict[SegmentName, SegmentHeader] = {}
        wanted = [n for n in self._segments if newer_than is None or n >= newer_than]
        for name in wanted:
            path = f"{self._directory}/{name}"
            try:
                head = self._files.read_from(path, 0, _longest_header(name))
                headers[name] = decode_segment_header(head, name)
            except FrameError as error:
                self._judge_header(name, self._files.read(path), error, is_last=name == wanted[-1])
        return headers

    def _judge_header(self, name: SegmentName, data: bytes, error: FrameError, *, is_last: bool) -> None:
        """A header that did not reach the disk has no commit behind it: such a segment never began."""
        torn = is_torn(data, 0, error) and not has_valid_frame_after(data, 0, 0)
        if not torn or len(data) > _longest_header(name):
            raise self._corrupt(str(name), 0, str(error), newer=error.newer)
        if is_last and not self._live:
            self._notice("tear", str(name), 0, "a segment whose creation was cut short was left behind")

    def _check_never_used(self, headers: dict[SegmentName, SegmentHeader]) -> None:
        """No segment counts: right for an experiment whose creation was cut short, and for nothing else."""
        if headers:
            raise self._corrupt(str(max(headers)), 0, "a segment that does not know its own opening")
        if self._snapshots:
            raise self._corrupt(f"snap-{self._snapshots[-1]}", 0, "a snapshot without any journal segment")

    def _load_snapshot(self, state: Recovered, links: list[Link]) -> None:
        first = links[0].header.first_seq
        for seq in reversed(self._snapshots):
            name = f"snap-{seq}"
            data = self._read(name)
            try:
                snapshot = read_snapshot(data)
                if snapshot.seq != seq or snapshot.experiment_id != state.experiment_id:
                    msg = "the snapshot does not fit its name or its experiment"
                    raise FrameError(msg)
            except FrameError as error:
                if error.newer:
                    raise self._corrupt(name, 0, str(error), newer=True) from error
                self._notice("damage", name, 0, f"a damaged snapshot ({error}) was passed over")
                self._acknowledged = max(self._acknowledged, seq)
                continue
            if not in_history(state.history, snapshot.claim.epoch, snapshot.claim.nonce, seq):
                if snapshot.claim.epoch > links[-1].name.epoch:
                    raise self._corrupt(name, 0, "the journal of the opening that wrote it is missing")
                continue  # a fenced writer's
            state.snapshots.insert(0, seq)
            self._acknowledged = max(self._acknowledged, seq)
            if state.snapshot_seq == 0:
                state.records, state.seq, state.crc = snapshot.records, snapshot.seq, snapshot.crc
                state.snapshot_seq, state.snapshot_bytes = snapshot.seq, snapshot.size_bytes
                if not state.notices:
                    # The older generations are not needed now; reading them is the business of a verification.
                    state.snapshots[:0] = [s for s in self._snapshots if s < seq]
                    break
        if state.snapshot_seq >= links[-1].header.first_seq:
            detail = f"the journal segment after snapshot {state.snapshot_seq}, which was made before it, is missing"
            raise self._corrupt(str(links[-1].name), 0, detail)
        if state.snapshot_seq + 1 < first:
            damaged = next((n for n in state.notices if n.kind == "damage"), None)
            name = damaged.path.rpartition("/")[2] if damaged else str(links[0].name)
            raise self._corrupt(
                name, 0, f"the journal starts at commit {first}, and no whole snapshot reaches that far"
            )

    # -- the journal ---------------------------------------------------------------------------------------

    def _replay(self, state: Recovered, links: list[Link]) -> None:
        for link in links:
            if link.end_seq is not None and link.end_seq <= state.seq + 1 and link is not links[-1]:
                continue
            data = self._read(str(link.name))
            if link.header.first_seq > state.seq + 1:
                missing = f"commits {state.seq + 1} to {link.header.first_seq - 1} are missing"
                raise self._corrupt(str(link.name), 0, missing)
            if link.header.first_seq == state.seq + 1 and link.header.prev_crc != state.crc:
                detail = f"the segment does not go on from commit {state.seq} as it was found"
                raise self._corrupt(str(link.name), 0, detail)
            end = self._replay_segment(state, link, data)
            state.position = Position(link.name, end, state.seq, state.crc, link.header.experiment_id)
        if state.seq < self._acknowledged:
            name = str(links[-1].name)
            offset = state.position.offset if state.position else 0
            detail = f"the journal ends at commit {state.seq}, but a snapshot of {self._acknowledged} exists"
            raise self._corrupt(name, offset, detail)

    def _replay_segment(self, state: Recovered, link: Link, data: bytes) -> int:
        name, offset = str(link.name), link.header.end
        newer = False
        rows = _no_rows(link)
        if self._wants_rows:
            state.rows.append(rows)
        for item in _walk(link, data):
            if isinstance(item, Damage):
                newer = item.error.newer
                if link.end_seq is None:
                    self._judge_tail(name, data, item, state.seq + 1)
                break
            if link.end_seq is not None and item.seq >= link.end_seq:
                break
            offset = item.end
            if item.seq == state.seq and item.crc != state.crc:
                detail = f"commit {item.seq} is not the one that the snapshot was made at"
                raise self._corrupt(name, item.start, detail)
            if item.seq > state.seq:
                apply_ops(state.records, item.ops)
                if self._wants_rows:
                    rows.add(item.seq, item.ops)
                state.seq, state.crc = item.seq, item.crc
                state.journal_bytes += item.end - item.start
        if link.end_seq is not None:
            reached = (state.seq, state.crc) == (link.end_seq - 1, link.end_crc)
            if not reached and state.seq < link.end_seq:
                detail = f"commit {state.seq + 1} is damaged or missing, and later ones follow"
                raise self._corrupt(name, offset, detail, newer=newer)
        return offset

    def _judge_tail(self, name: str, data: bytes, damage: Damage, seq: int) -> None:
        torn = is_torn(data, damage.offset, damage.error) and not has_valid_frame_after(
            data, damage.offset, seq
        )
        if not torn or seq <= self._acknowledged:
            raise self._corrupt(name, damage.offset, str(damage.error), newer=damage.error.newer)
        if not self._live:
            lost = len(data) - damage.start
            message = (
                f"a commit cut short by a crash ({lost:,} bytes, acknowledged to nobody) was left behind"
            )
            self._notice("tear", name, damage.offset, message)

    def _collect_rows(self, state: Recovered, links: list[Link], after: int) -> None:
        state.rows = [rows.after(after) for rows in state.rows]
        if after >= state.snapshot_seq:
            return
        older: list[SegmentRows] = []
        reached = links[0].header.first_seq - 1
        for link in links:
            if link.header.first_seq > state.snapshot_seq:
                break
            data, offset = self._read(str(link.name)), link.header.end
            rows = _no_rows(link)
            older.append(rows)
            for item in _walk(link, data):
                if isinstance(item, Damage) or (link.end_seq is not None and item.seq >= link.end_seq):
                    break
                reached, offset = item.seq, item.end
                if after < item.seq <= state.snapshot_seq:
                    rows.add(item.seq, item.ops)
            if link.end_seq is not None and link.end_seq > after + 1 and reached < link.end_seq - 1:
                raise self._corrupt(str(link.name), offset, _rows_lost(reached + 1))
        if links[0].header.first_seq > after + 1:
            raise self._corrupt(str(links[0].name), 0, _rows_lost(after + 1))
        state.rows[:0] = older

    # -- small things --------------------------------------------------------------------------------------

    def _read(self, name: str) -> bytes:
        return self._files.read(f"{self._directory}/{name}")

    def _notice(self, kind: str, name: str, offset: int, message: str) -> None:
        self._notices.append(Notice(kind, f"{name}: {message}", f"{self._directory}/{name}", offset))

    def _corrupt(self, name: str, offset: int, detail: str, *, newer: bool = False) -> Exception:
        path = f"{self._directory}/{name}"
        if newer:
            return UnsupportedFormatError(
                f"{path} was written by a newer asynctune ({detail}); upgrade asynctune"
            )
        return CorruptStateError(
            f"the experiment state is damaged: {path} at byte {offset:,}: {detail}. Nothing was changed; keep a copy "
            "of the directory, then restore it from a backup or a mirror",
            path=path,
            offset=offset,
        )


def _no_rows(link: Link) -> SegmentRows:
    return SegmentRows(link.header.claim, link.header.node_ip)


def _walk(link: Link, data: bytes) -> Iterator[Commit | Damage]:
    head = link.header
    return walk_commits(data, head.end, epoch=link.name.epoch, seq=head.first_seq, crc=head.prev_crc)


def _longest_header(name: SegmentName) -> int:
    return _HEADER_BYTES + _HISTORY_BYTES * min(name.epoch, MAX_HISTORY)


def _rows_lost(seq: int) -> str:
    return f"commit {seq} is damaged or missing, and its result rows are not in the result files yet"
