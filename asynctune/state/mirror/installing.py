"""Owns making a bucket's state the local one: what was there is set aside, never deleted. Blocking, for a thread.

The file `REPLACING` stands in the state directory from before the first change until after the last. While it is
there, the local state is neither the old one nor the new one: openings without the bucket have to refuse it.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Mapping
from typing import Final

from asynctune.errors import CorruptStateError
from asynctune.files import LocalFiles
from asynctune.state.codec import FrameError
from asynctune.state.epochs import Claim
from asynctune.state.mirror.current import mark_of
from asynctune.state.mirror.reading import Mirrored, end_name
from asynctune.state.segments import (
    History,
    SegmentHeader,
    encode_segment_header,
    parse_segment_name,
)
from asynctune.state.snapshot import Image, parse_snapshot_name, write_snapshot

__all__ = ["REPLACING", "begin_replacing", "install", "is_being_replaced", "replacing_error"]

REPLACING: Final = "REPLACING"
"""Name of the file that says that the state is being replaced."""

_QUARANTINE: Final = "quarantine"
_AHEAD: Final = b" ahead\n"
"""How that file ends where the local state had nothing that the bucket's has not."""
_WRITE_BYTES: Final = 1024 * 1024


def is_being_replaced(state_dir: str, files: LocalFiles) -> bool:
    """Whether a replacement was cut short, so that only the bucket can say what the state is."""
    return files.exists(f"{state_dir}/{REPLACING}")


def replacing_error(state_dir: str) -> CorruptStateError:
    """The refusal for an opening that has no bucket to replace the state again."""
    path = f"{state_dir}/{REPLACING}"
    return CorruptStateError(
        f"the state in {state_dir} was being replaced by the one in the bucket, and that was cut short ({path} is "
        "there). Open the experiment with its bucket, which replaces it again; what was there before is in "
        f"{state_dir}/{_QUARANTINE}",
        path=path,
    )


def begin_replacing(state_dir: str, claim: Claim, files: LocalFiles, *, parted: bool) -> bool:
    """Say that the state is being replaced, durably; `install` takes that back at its end.

    For whoever changes other files of the experiment first, which belong to the new state alone.

    Args:
        state_dir: As for `install`.
        claim: Likewise.
        files: The disk.
        parted: Whether the local state knows what the bucket's does not. If an earlier replacement was cut short,
            that cannot be told any more, and what was said then counts.

    Returns:
        Whether it does.

    Raises:
        OSError: The disk refused.
    """
    marker = f"{state_dir}/{REPLACING}"
    if files.exists(marker):
        return not files.read(marker).endswith(_AHEAD)  # one that is cut short itself says nothing
    _write(marker, f"epoch {claim.epoch}".encode() + (b" parted\n" if parted else _AHEAD), files)
    files.sync_dir(state_dir)
    return parted


def install(
    state_dir: str,
    mirrored: Mirrored,
    *,
    claim: Claim,
    history: History,
    node_ip: str,
    files: LocalFiles,
    records: Mapping[str, bytes] | None = None,
) -> str | None:
    """Make the bucket's state the local one; where the old one was put, or `None` if there was none.

    Afterwards `recover` finds the bucket's newest commit, in a snapshot, and of the frames before it all that the
    mirror still names, for their result rows. The local epoch was claimed before (`claim_epoch(given=claim)`).

    Args:
        state_dir: The `.asynctune` directory; its parent is there.
        mirrored: The bucket's state.
        claim: This opening's.
        history: As in `Claimed.history`.
        node_ip: This host's address.
        files: The disk.
        records: What the snapshot holds instead of the bucket's records (the caller may know more of what the result
            files hold); `None`: those.

    Raises:
        OSError: The disk refused, or gave back something else than was written; the state is still being replaced,
            and can be again.
    """
    if not files.exists(state_dir):
        with contextlib.suppress(FileExistsError):
            files.make_dir(state_dir)
        files.sync_dir(state_dir.rpartition("/")[0])
    begin_replacing(state_dir, claim, files, parted=False)
    marker = f"{state_dir}/{REPLACING}"
    aside = _set_aside(state_dir, f"{claim.epoch}-{mark_of(claim)}", files)
    current = mirrored.current
    for name, data in mirrored.contents.items():
        # the frames stay for their rows; the records of all of them are in the snapshot
        if parse_segment_name(name) is not None and name != end_name(current):
            _write(f"{state_dir}/{name}", data, files)
    header = SegmentHeader(
        current.experiment_id, claim, current.seq + 1, current.crc, history, node_ip, attempt=0
    )
    _write(f"{state_dir}/{header.name}", encode_segment_header(header), files)
    files.sync_dir(state_dir)
    if current.seq > 0:
        held = dict(mirrored.recovered.records if records is None else records)
        image = Image(current.seq, current.crc, list(held), list(held.values()))
        try:
            write_snapshot(
                state_dir,
                image,
                experiment_id=current.experiment_id,
                claim=claim,
                history=history,
                files=files,
            )
        except FrameError as error:
            raise OSError(errno.EIO, f"the snapshot does not read back ({error})", state_dir) from error
    files.unlink(marker)
    files.sync_dir(state_dir)
    return aside


def _set_aside(state_dir: str, name: str, files: LocalFiles) -> str | None:
    """Move every segment and snapshot; also those of a replacement that was cut short."""
    moved = [n for n in files.list_dir(state_dir) if _is_state(n)]
    if not moved:
        return None
    quarantine = f"{state_dir}/{_QUARANTINE}"
    aside, number = f"{quarantine}/{name}", 0
    while files.exists(aside):  # never into a folder that has files of the same names
        number += 1
        aside = f"{quarantine}/{name}.{number}"
    for path, parent in ((quarantine, state_dir), (aside, quarantine)):
        if not files.exists(path):
            files.make_dir(path)
            files.sync_dir(parent)
    for each in moved:
        files.rename(f"{state_dir}/{each}", f"{aside}/{each}")
    files.sync_dir(aside)
    files.sync_dir(state_dir)
    return aside


def _is_state(name: str) -> bool:
    return parse_segment_name(name) is not None or parse_snapshot_name(name) is not None


def _write(path: str, data: bytes, files: LocalFiles) -> None:
    fd = files.create(path)
    try:
        view = memoryview(data)
        for start in range(0, len(view), _WRITE_BYTES):
            files.write_all(fd, view[start : start + _WRITE_BYTES])
        files.sync(fd)
    finally:
        files.close(fd)
