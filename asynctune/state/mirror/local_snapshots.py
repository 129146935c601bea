"""Owns the local snapshot that is sent to the bucket: finding it, holding it, and proving it before it is named.

The store removes old snapshots when it has newer ones, so the one that is being sent is held by a second name, a hard
link in `.asynctune/uploads/`. All calls block and belong in a thread.
"""

from __future__ import annotations

import contextlib
import secrets
from dataclasses import dataclass
from typing import Final

import google_crc32c

from asynctune.breathing import breathe
from asynctune.files import LocalFiles
from asynctune.state.codec import FrameError, FrameType, decode_fields, decode_frame
from asynctune.state.epochs import Claim
from asynctune.state.lineage import in_history
from asynctune.state.mirror.current import mark_of
from asynctune.state.segments import History
from asynctune.state.snapshot import parse_snapshot_name

__all__ = ["HeldSnapshot", "hold_newest", "newest_snapshot", "release", "remove_leftovers"]

UPLOADS: Final = "uploads"
_HELD: Final = "held-snap-"
_WINDOW_BYTES: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class HeldSnapshot:
    """A snapshot that nobody else removes.

    Attributes:
        seq: The commit it is of.
        crc: Of that commit.
        path: The second name.
        size_bytes: Its size.
        crc32c: Of all its bytes.
    """

    seq: int
    crc: int
    path: str
    size_bytes: int
    crc32c: int


def newest_snapshot(directory: str, files: LocalFiles, *, after: int, upto: int) -> tuple[int, int] | None:
    """Seq and size in bytes of the newest snapshot with `after` < seq <= `upto`; `None`: there is none.

    Raises:
        OSError: The disk refused.
    """
    seqs = sorted(s for name in files.list_dir(directory) if (s := parse_snapshot_name(name)) is not None)
    for seq in reversed([s for s in seqs if after < s <= upto]):
        with contextlib.suppress(FileNotFoundError):
            return seq, files.stat(f"{directory}/snap-{seq}").st_size
    return None


def hold_newest(
    directory: str, history: History, claim: Claim, files: LocalFiles, *, after: int, upto: int
) -> HeldSnapshot | None:
    """Hold the newest whole snapshot of this history with `after` < seq <= `upto`; `None`: there is none.

    Raises:
        OSError: The disk refused.
    """
    while (found := newest_snapshot(directory, files, after=after, upto=upto)) is not None:
        seq, _ = found
        # a name of its own for each call: two may hold the same one at once, and let it go one after the other
        path = f"{directory}/{UPLOADS}/{_HELD}{seq}-{mark_of(claim)}-{secrets.token_hex(4)}"
        if not files.exists(f"{directory}/{UPLOADS}"):
            with contextlib.suppress(FileExistsError):
                files.make_dir(f"{directory}/{UPLOADS}")
        try:
            files.link(f"{directory}/snap-{seq}", path)
        except FileNotFoundError:
            continue  # pruned in this moment: there is a newer one
        try:
            return _proven(path, seq, history, files)
        except FrameError:
            # another opening's, or damaged: recovery would pass it over as well
            files.unlink(path)
            upto = seq - 1
        except BaseException:
            files.unlink(path)
            raise
    return None


def release(held: HeldSnapshot, files: LocalFiles) -> None:
    """Remove the second name.

    Raises:
        OSError: The disk refused; the next opening removes it.
    """
    with contextlib.suppress(FileNotFoundError):
        files.unlink(held.path)


def remove_leftovers(directory: str, files: LocalFiles) -> None:
    """Remove the second names that openings before this one left.

    Raises:
        OSError: The disk refused.
    """
    uploads = f"{directory}/{UPLOADS}"
    if not files.exists(uploads):
        return
    for name in files.list_dir(uploads):
        if name.startswith(_HELD):
            files.unlink(f"{uploads}/{name}")


def _proven(path: str, seq: int, history: History, files: LocalFiles) -> HeldSnapshot:
    """Read the snapshot once, frame by frame, in bounded memory.

    Raises:
        FrameError: Damaged, or of an opening that is not in the history.
    """
    data, base, at = b"", 0, 0
    check, commit_crc, prev, ended = 0, 0, 0, False
    while True:
        try:
            frame = decode_frame(data, at)
        except FrameError as error:
            if not error.incomplete:
                raise
            have = len(data) - at
            data, base, at = files.read_from(path, base + at, max(_WINDOW_BYTES, 2 * have)), base + at, 0
            if len(data) > have:
                continue
            if ended and not data:
                return HeldSnapshot(seq, commit_crc, path, base, check)
            raise
        first = base + at == 0
        if ended or frame.seq != seq or frame.prev != prev or first != (frame.type is FrameType.SNAPSHOT):
            msg = "a frame that does not belong into the snapshot"
            raise FrameError(msg)
        if first:
            commit_crc = _crc_of(decode_fields(frame.payload), seq, history)
        check = google_crc32c.extend(check, data[at : frame.end])
        prev, at, ended = frame.crc, frame.end, frame.type is FrameType.SNAPSHOT_END
        breathe()


def _crc_of(fields: dict[str, object], seq: int, history: History) -> int:
    stored, crc = fields.get("claim"), fields.get("crc")
    if not isinstance(stored, dict) or not isinstance(crc, int):
        msg = "a snapshot without its commit's crc"
        raise FrameError(msg)
    claim = Claim.from_fields(stored)
    if not in_history(history, claim.epoch, claim.nonce, seq):
        msg = "a snapshot of another opening's"
        raise FrameError(msg)
    return crc
