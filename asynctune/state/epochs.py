"""Owns who may write: the lock of one host, and the numbered claims (epochs) that also hold between hosts.

`LOCK` is an empty file held with `flock`, which gives a friendly refusal on one host. `epoch-<n>` is made whole
and then linked into place, so that exactly one opening can have number `n`; whoever finds a higher one than its
own is fenced. All calls block and belong in a thread.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
import socket
import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from asynctune.clock import Clock
from asynctune.errors import ExperimentLockedError, FencedError, StorageError
from asynctune.files import FILE_MODE, LocalFiles
from asynctune.state.codec import (
    FrameError,
    FrameType,
    decode_fields,
    decode_frame,
    encode_fields,
    encode_frame,
)

__all__ = [
    "Claim",
    "HostLock",
    "check_claim",
    "claim_epoch",
    "host_info",
    "is_alive",
    "is_fenced",
    "list_epochs",
    "new_claim",
    "read_claim",
]

_EPOCH_NAME: Final = re.compile(r"epoch-([1-9][0-9]{0,14})\Z")
_KEEP_CLAIMS: Final = 8
# What link(2) fails with where there are no hard links: FAT and exFAT, CIFS, FUSE mounts of buckets.
_NO_LINKS: Final = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})


@dataclass(frozen=True, slots=True)
class Claim:
    """One opening for writing: its epoch number, its nonce (16 bytes), and who and when."""

    epoch: int
    nonce: bytes
    hostname: str
    pid: int
    started: str
    opened_at: float

    def fields(self) -> dict[str, Any]:
        """As stored in a frame."""
        return {
            "epoch": self.epoch,
            "nonce": self.nonce,
            "hostname": self.hostname,
            "pid": self.pid,
            "started": self.started,
            "opened_at": self.opened_at,
        }

    @classmethod
    def from_fields(cls, fields: dict[str, Any]) -> Claim:
        """Take back `fields`.

        Raises:
            FrameError: A field is missing or of another type.
        """
        try:
            claim = cls(**{name: fields[name] for name in cls.__slots__})
        except KeyError as error:
            msg = f"a claim without {error}"
            raise FrameError(msg) from None
        kinds = (int, bytes, str, int, str, float)
        if not all(isinstance(getattr(claim, n), k) for n, k in zip(cls.__slots__, kinds, strict=True)):
            msg = "a claim with a field of the wrong type"
            raise FrameError(msg)
        return claim


def host_info() -> tuple[str, int, str]:
    """This host's name, this process's id, and a mark that another process with the same id does not have."""
    return socket.gethostname(), os.getpid(), _process_mark(os.getpid())


def _process_mark(pid: int) -> str:
    """Boot id and start time of a process, or "" where the system does not tell."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        fields = (
            Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        )
        start = fields[19]  # field 22 of proc(5), counted behind the name
    except (OSError, IndexError):
        return ""
    return f"{boot}/{start}"


def is_alive(claim: Claim) -> bool | None:
    """Whether the process that made the claim runs; `None` where it cannot be told (another host)."""
    if claim.hostname != socket.gethostname():
        return None
    try:
        os.kill(claim.pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    mark = _process_mark(claim.pid)
    return not (mark and claim.started and mark != claim.started)


# -- the lock of one host ----------------------------------------------------------------------------------


class HostLock:
    """An exclusive `flock` on one file, kept until `release` or the end of this process.

    A forked child closes its copy at once: a trial that outlives its driver must not keep the experiment locked.
    """

    def __init__(self, fd: int) -> None:
        self._fd: int | None = fd
        with _held_guard:
            _held.add(self)

    @classmethod
    def acquire(cls, path: str) -> HostLock | None:
        """Take the lock, or return `None` if another opening on this host has it.

        Raises:
            OSError: The file cannot be opened, or the filesystem has no locks (ENOLCK, EOPNOTSUPP).
        """
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
        try:
            os.fchmod(fd, FILE_MODE)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(fd)
            if error.errno in {errno.EWOULDBLOCK, errno.EACCES}:
                return None
            raise
        return cls(fd)

    def release(self) -> None:
        """Give the lock back; a second call does nothing."""
        with _held_guard:
            _held.discard(self)
            fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)


_held: set[HostLock] = set()
_held_guard = threading.Lock()


def _close_in_child() -> None:
    global _held_guard  # noqa: PLW0603 - the parent's other thread may have held it at the fork
    _held_guard = threading.Lock()
    for lock in list(_held):
        lock.release()


os.register_at_fork(after_in_child=_close_in_child)


def locked_error(directory: str, files: LocalFiles) -> ExperimentLockedError:
    """The refusal for a second writer, with all that the holder's claim tells."""
    claim = None
    for epoch in reversed(list_epochs(directory, files)):
        try:
            claim = read_claim(directory, epoch, files)
            break
        except (FrameError, OSError):
            continue
    where = os.path.dirname(directory)
    if claim is None:
        return ExperimentLockedError(
            f"the experiment at {where} is being opened by another process on this host; "
            'wait for it to end, or open it with mode="read"'
        )
    since = datetime.fromtimestamp(claim.opened_at, tz=UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return ExperimentLockedError(
        f"the experiment at {where} is open for writing by pid {claim.pid} on {claim.hostname} since {since}; "
        'wait for it to end (or end it), or open the experiment with mode="read"',
        pid=claim.pid,
        hostname=claim.hostname,
        since=claim.opened_at,
    )


# -- claims ------------------------------------------------------------------------------------------------


def list_epochs(directory: str, files: LocalFiles) -> list[int]:
    """Numbers of the claims present, rising."""
    return sorted(int(m[1]) for name in files.list_dir(directory) if (m := _EPOCH_NAME.match(name)))


def epoch_path(directory: str, epoch: int) -> str:
    """Where the claim `epoch` stands."""
    return f"{directory}/epoch-{epoch}"


def read_claim(directory: str, epoch: int, files: LocalFiles) -> Claim:
    """The claim with this number.

    Raises:
        FrameError: The file is damaged.
        OSError: It cannot be read.
    """
    data = files.read(epoch_path(directory, epoch))
    frame = decode_frame(data)
    claim = Claim.from_fields(decode_fields(frame.payload))
    if frame.type is not FrameType.CLAIM or frame.end != len(data) or claim.epoch != epoch:
        msg = "the claim does not fit its name"
        raise FrameError(msg)
    return claim


def new_claim(epoch: int, clock: Clock) -> Claim:
    """A claim of this process, with a fresh nonce; nobody knows of it yet."""
    hostname, pid, started = host_info()
    return Claim(
        epoch=epoch,
        nonce=secrets.token_bytes(16),
        hostname=hostname,
        pid=pid,
        started=started,
        opened_at=clock.time(),
    )


def claim_epoch(
    directory: str, files: LocalFiles, clock: Clock, at_least: int = 1, *, given: Claim | None = None
) -> Claim:
    """Claim the next epoch.

    Args:
        directory: The `.asynctune` directory.
        files: The disk.
        clock: For the time written into the claim.
        at_least: A number that the new epoch must not be below (state may know of epochs without a file).
        given: The very claim to make, number and nonce: it was made in the bucket before.

    Raises:
        FencedError: Another opening claimed it in the same moment, or has a higher number than the one given.
        StorageError: The disk refused.
    """
    epochs = list_epochs(directory, files)
    if given is None:
        claim = new_claim(max(at_least, epochs[-1] + 1 if epochs else 1), clock)
    else:
        claim = given
        if epochs and epochs[-1] >= claim.epoch:
            msg = (
                f"another process claimed the experiment at {os.path.dirname(directory)} as epoch {epochs[-1]}, and "
                f"this one has epoch {claim.epoch} in the bucket; open it again"
            )
            raise FencedError(msg)
    path = epoch_path(directory, claim.epoch)
    temporary = f"{directory}/.claim-{claim.nonce.hex()}"
    frame = encode_frame(FrameType.CLAIM, encode_fields(claim.fields()), epoch=claim.epoch, seq=0, prev=0)
    try:
        fd = files.create(temporary)
        try:
            try:
                files.write_all(fd, frame)
                files.sync(fd)
            finally:
                files.close(fd)
            _link(temporary, path, claim, directory, files)
        finally:
            files.unlink(temporary)
        files.sync_dir(directory)
        _fence_lower(directory, claim.epoch, files)
    except FileExistsError as error:
        msg = f"another process claimed the experiment at {os.path.dirname(directory)} in the same moment; retry"
        raise FencedError(msg) from error
    except OSError as error:
        msg = f"cannot claim the experiment: {error}"
        raise StorageError(msg, operation="claim", key=path, hint="check space and permissions") from error
    return claim


def _fence_lower(directory: str, epoch: int, files: LocalFiles) -> None:
    """Make sure that every lower claim is found to be fenced: by the next number, or by its own being gone.

    Numbers are left out where a bucket knows of more openings than this directory; and two openings may claim
    different numbers in the same moment, of which the second to look sees the other.
    """
    epochs = list_epochs(directory, files)
    if epochs and epochs[-1] > epoch:
        msg = (
            f"another process claimed the experiment at {os.path.dirname(directory)} as epoch {epochs[-1]} in the same "
            "moment; retry"
        )
        raise FencedError(msg)
    there, lowest = set(epochs), epoch
    while lowest - 1 in there and epoch - lowest < _KEEP_CLAIMS - 1:
        lowest -= 1
    for old in epochs:
        if old < lowest:
            with contextlib.suppress(FileNotFoundError):  # another opening tidies up, too
                files.unlink(epoch_path(directory, old))


def _link(temporary: str, path: str, claim: Claim, directory: str, files: LocalFiles) -> None:
    try:
        files.link(temporary, path)
    except OSError as error:
        # A network filesystem may apply the link and lose the reply: the file's own words settle it.
        try:
            mine = read_claim(directory, claim.epoch, files).nonce == claim.nonce
        except (FrameError, OSError):
            mine = False
        if mine:
            return
        if error.errno in _NO_LINKS:
            raise StorageError(
                f"the filesystem of {directory} makes no hard links ({error.strerror}), and so cannot decide which of "
                "two drivers owns an experiment",
                operation="claim",
                key=path,
                hint="keep the experiment on another filesystem: a local disk, NFS or Lustre; a bucket takes a copy of "
                "it by SyncConfig(upload_dir=...), without being mounted",
            ) from error
        raise


def is_fenced(directory: str, epoch: int, files: LocalFiles, *, shared: bool = False) -> bool:
    """Whether a higher claim than `epoch` exists. Two looks at names, a few microseconds on a local disk.

    Args:
        directory: The `.asynctune` directory.
        epoch: The number of one's own claim.
        files: The disk.
        shared: Another host may make claims: the directory is listed, because the client of a network filesystem may
            remember for a minute that a name was missing.

    Raises:
        OSError: The directory cannot be listed.
    """
    # Old claims are removed from the low end, so a missing one of mine means that there are higher ones.
    if shared:
        epochs = list_epochs(directory, files)
        return not epochs or epochs[-1] != epoch
    return files.exists(epoch_path(directory, epoch + 1)) or not files.exists(epoch_path(directory, epoch))


def check_claim(directory: str, epoch: int, files: LocalFiles, *, shared: bool = False) -> None:
    """Go on only if the experiment is still the opening's that claimed `epoch`. Arguments: as for `is_fenced`.

    Raises:
        FencedError: Another opening owns it.
        StorageError: It is gone, or a shared directory cannot be looked at.
    """
    try:
        if not is_fenced(directory, epoch, files, shared=shared):
            return
        is_there = shared or files.exists(directory)  # what was listed is there
    except FileNotFoundError:
        is_there = False
    except OSError as error:
        raise StorageError(
            f"{directory} cannot be listed, so that it cannot be told who owns the experiment: {error}",
            operation="commit",
            key=directory,
            hint="mend the filesystem and open the experiment again; everything acknowledged before is safe",
        ) from error
    if not is_there:
        raise StorageError(
            f"{directory} is gone: the experiment was moved or removed while it was open",
            operation="commit",
            key=directory,
            hint="nothing is written any more; if it was moved, open it where it is now",
        )
    raise FencedError(
        f"another process has taken over the experiment at {directory.rpartition('/')[0]}; this one writes nothing "
        "any more. Everything acknowledged before is safe"
    )
