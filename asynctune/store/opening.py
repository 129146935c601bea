"""Owns the start of a store: finding the experiment, claiming it, reading it back. Blocking, for a thread.

Decides which mode applies and refuses what would be a silent fresh start; leaves the running to the store.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
from dataclasses import dataclass, field
from typing import Final, Literal, get_args

from asynctune.clock import Clock
from asynctune.errors import (
    ConfigError,
    CorruptStateError,
    ExperimentExistsError,
    ExperimentNotFoundError,
    StorageError,
)
from asynctune.files import LocalFiles, is_disk_full
from asynctune.packing import unpack
from asynctune.state.codec import FrameError
from asynctune.state.epochs import (
    Claim,
    HostLock,
    claim_epoch,
    is_alive,
    list_epochs,
    locked_error,
    read_claim,
)
from asynctune.state.journal import Journal, secure_tail
from asynctune.state.lineage import extend_history
from asynctune.state.recovered import Notice, Recovered
from asynctune.state.recovery import recover
from asynctune.store.records import Records, check_format

__all__ = ["Mode", "OpenedForReading", "OpenedForWriting", "Opening", "open_for_reading", "open_for_writing"]

Mode = Literal["create", "resume", "read", "auto"]

STATE_DIR: Final = ".asynctune"


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """How an experiment was opened, and what was found.

    Attributes:
        epoch: Number of this opening; for a reader, of the newest one.
        hostname: Host of the writer.
        pid: Process of the writer.
        opened_at: When it was opened for writing, seconds since the Unix epoch.
        resumed: Whether there was an experiment already.
        recovered_commits: Number of the last commit found.
        tear: What a crash had cut short and was left behind, one sentence; `None` after a clean end.
        damage: Damaged files that another generation made good, one sentence each.
        previous_closed_at: When the opening before was closed; `None` if it was not, or there was none.
    """

    epoch: int
    hostname: str
    pid: int
    opened_at: float
    resumed: bool
    recovered_commits: int = 0
    tear: str | None = None
    damage: tuple[str, ...] = field(default=())
    previous_closed_at: float | None = None


@dataclass(slots=True)
class OpenedForWriting:
    """What the store takes over."""

    lock: HostLock
    journal: Journal
    records: Records
    recovered: Recovered
    opening: Opening
    experiment_id: str
    node_ip: str
    recovery_s: float


@dataclass(slots=True)
class OpenedForReading:
    """What a reader takes over."""

    records: Records
    recovered: Recovered
    claim: Claim | None
    alive: bool | None
    opening: Opening


def check_mode(mode: object) -> None:
    """Refuse an unknown mode.

    Raises:
        ConfigError: Not one of the four.
    """
    if mode not in get_args(Mode):
        msg = f"mode must be one of {', '.join(map(repr, get_args(Mode)))}, not {mode!r}"
        raise ConfigError(msg)


def local_path(location: object) -> str:
    """The absolute path of a location given by a user.

    Raises:
        ConfigError: Not a path of this machine.
    """
    if not isinstance(location, str | os.PathLike):
        msg = f"location must be a path, not {type(location).__name__}"
        raise ConfigError(msg)
    text = os.fsdecode(location)
    if "\0" in text or not text:
        msg = f"{text!r} is no path"
        raise ConfigError(msg)
    if "://" in text and not text.startswith("file://"):
        msg = f"{text.partition('://')[0]}:// locations are not supported by this release; give a local directory"
        raise ConfigError(msg)
    return os.path.abspath(os.path.expanduser(text.removeprefix("file://")))


def open_for_writing(path: str, mode: str, files: LocalFiles, clock: Clock) -> OpenedForWriting:
    """Lock, claim and read the experiment at `path`, making it if the mode allows.

    Raises:
        ConfigError, ExperimentExistsError, ExperimentNotFoundError: The place does not fit the mode.
        ExperimentLockedError, FencedError: Another opening has it.
        CorruptStateError, UnsupportedFormatError: It cannot be read.
        StorageError: The disk refused.
    """
    state_dir = f"{path}/{STATE_DIR}"
    try:
        _prepare(path, state_dir, mode, files)
        lock = _lock(state_dir, files)
    except OSError as error:
        raise _storage_error("open", path, error) from error
    try:
        return _open_locked(path, state_dir, mode, files, clock, lock)
    except OSError as error:
        lock.release()
        raise _storage_error("open", path, error) from error
    except BaseException:
        lock.release()
        raise


def _prepare(path: str, state_dir: str, mode: str, files: LocalFiles) -> None:
    """Make the directories, if the mode allows and nothing says that there was an experiment before."""
    parent = os.path.dirname(path)
    if not os.path.isdir(parent):
        msg = (
            f"there is no directory {parent}: is the disk mounted? Make the directory first, "
            "asynctune does not, so that a missing disk is never mistaken for a new experiment"
        )
        raise ConfigError(msg)
    if files.exists(path) and not os.path.isdir(path):
        msg = f"{path} is not a directory; an experiment is one"
        raise ConfigError(msg)
    if files.exists(state_dir):
        return
    if mode == "resume":
        msg = f"there is no experiment at {path}; check the path, or open it with mode='create'"
        raise ExperimentNotFoundError(msg)
    found = [name for name in files.list_dir(path) if not name.startswith(".")] if files.exists(path) else []
    if "lost+found" in found:
        found.remove("lost+found")
    if found and not files.exists(state_dir):  # looked at again: another opening may have begun meanwhile
        msg = (
            f"{path} holds {found[0]!r} but no experiment state ({STATE_DIR}); asynctune starts only in an empty "
            "directory, so that a lost state is never mistaken for a new experiment. Choose another directory, or "
            "bring the state back"
        )
        raise ConfigError(msg)
    # Two openings may make it in the same moment: the lock decides between them, not this.
    if not files.exists(path):
        with contextlib.suppress(FileExistsError):
            files.make_dir(path, 0o777 & ~_umask())
        files.sync_dir(parent)
    with contextlib.suppress(FileExistsError):
        files.make_dir(state_dir)
    files.sync_dir(path)


def _umask() -> int:
    # Linux tells without changing it, which would race with other threads
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:
            for line in status:
                if line.startswith("Umask:"):
                    return int(line.split()[1], 8)
    except OSError:
        pass
    return 0o022


def _lock(state_dir: str, files: LocalFiles) -> HostLock:
    lock = HostLock.acquire(f"{state_dir}/LOCK")
    if lock is None:
        raise locked_error(state_dir, files)
    return lock


def _open_locked(
    path: str, state_dir: str, mode: str, files: LocalFiles, clock: Clock, lock: HostLock
) -> OpenedForWriting:
    epochs = list_epochs(state_dir, files)
    if mode == "create" and recover(state_dir, files).seq > 0:
        msg = f"there is an experiment at {path} already; open it with mode='resume', or choose another directory"
        raise ExperimentExistsError(msg)
    claim = claim_epoch(state_dir, files, clock)
    # read after the claim: what an older writer still adds is acknowledged to nobody
    began = clock.monotonic()
    recovered = recover(state_dir, files, rows_after=_projected)
    recovery_s = clock.monotonic() - began
    resumed = recovered.seq > 0
    check_format(recovered.records, path)
    if recovered.position is not None:
        secure_tail(state_dir, recovered.position.name, files)
    if not resumed:
        _check_really_new(path, state_dir, epochs, mode, files)
    if recovered.claim is not None and recovered.claim.epoch >= claim.epoch:
        claim = claim_epoch(state_dir, files, clock, at_least=recovered.claim.epoch + 1)
    experiment_id = recovered.experiment_id or secrets.token_hex(8)
    _remove_leftovers(state_dir, files)
    node_ip = _node_ip()
    records = Records.index(dict(recovered.records))
    journal = Journal(
        state_dir,
        experiment_id=experiment_id,
        claim=claim,
        node_ip=node_ip,
        history=extend_history(recovered.history, claim.epoch, claim.nonce, recovered.seq),
        records=recovered.records,
        seq=recovered.seq,
        crc=recovered.crc,
        files=files,
        clock=clock,
    )
    recovered.records = {}
    journal.start_segment()
    opening = _describe(claim, records, recovered, resumed=resumed)
    return OpenedForWriting(lock, journal, records, recovered, opening, experiment_id, node_ip, recovery_s)


def _check_really_new(path: str, state_dir: str, epochs: list[int], mode: str, files: LocalFiles) -> None:
    """No commit was found: the creation was cut short before it acknowledged anything, or the state is lost."""
    _check_not_lost(path, state_dir, files)
    if mode == "resume" and not epochs:
        msg = f"there is no experiment at {path}; check the path, or open it with mode='create'"
        raise ExperimentNotFoundError(msg)


def _check_not_lost(path: str, state_dir: str, files: LocalFiles) -> None:
    """Where there are trials, there was a journal: it is begun before the first of them."""
    trials = [name for name in files.list_dir(path) if not name.startswith(".") and name != "lost+found"]
    if trials:
        msg = (
            f"{state_dir} holds no commit, but {path} holds {trials[0]!r}: the experiment's state is lost. Nothing "
            "was changed; bring the state back from a backup"
        )
        raise CorruptStateError(msg, path=state_dir)


def _remove_leftovers(state_dir: str, files: LocalFiles) -> None:
    """Temporary files of openings that ended in the middle of something; the lock says that none is at work."""
    for name in files.list_dir(state_dir):
        if name.startswith((".claim-", ".snap-")):
            files.unlink(f"{state_dir}/{name}")


def _describe(claim: Claim, records: Records, recovered: Recovered, *, resumed: bool) -> Opening:
    previous = records.get("opening") or {}
    return Opening(
        epoch=claim.epoch,
        hostname=claim.hostname,
        pid=claim.pid,
        opened_at=claim.opened_at,
        resumed=resumed,
        recovered_commits=recovered.seq,
        tear=_first(recovered.notices, "tear"),
        damage=tuple(n.message for n in recovered.notices if n.kind == "damage"),
        previous_closed_at=previous.get("closed_at"),
    )


def _first(notices: list[Notice], kind: str) -> str | None:
    return next((n.message for n in notices if n.kind == kind), None)


def _projected(records: dict[str, bytes]) -> int:
    data = records.get("projected")
    return 0 if data is None else int(unpack(data))


def _node_ip() -> str:
    """The address other hosts would see; no packet is sent."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(("192.0.2.1", 9))  # an address reserved for documentation (RFC 5737)
            return str(probe.getsockname()[0])
    except OSError:
        return "127.0.0.1"


def open_for_reading(path: str, files: LocalFiles) -> OpenedForReading:
    """Read the experiment at `path`; takes no lock and writes nothing.

    Raises:
        ExperimentNotFoundError: There is none.
        CorruptStateError, UnsupportedFormatError: It cannot be read.
        StorageError: The disk refused.
    """
    state_dir = f"{path}/{STATE_DIR}"
    try:
        if not os.path.isdir(path) or not files.exists(state_dir):
            os.stat(path)
            msg = f"there is no experiment at {path} (no {STATE_DIR} in it)"
            raise ExperimentNotFoundError(msg)
        claim, alive, recovered = _read(state_dir, files)
        if recovered.seq == 0:
            try:
                _check_not_lost(path, state_dir, files)
            except CorruptStateError:
                # it may have been begun between the two looks
                claim, alive, recovered = _read(state_dir, files)
                if recovered.seq == 0:
                    raise
    except FileNotFoundError as error:
        msg = f"there is no experiment at {path}: no such directory"
        raise ExperimentNotFoundError(msg) from error
    except OSError as error:
        raise _storage_error("read", path, error) from error
    if recovered.seq == 0 or recovered.claim is None:
        msg = (
            f"the experiment at {path} was never begun: its creation was cut short before anything was saved"
        )
        raise ExperimentNotFoundError(msg)
    check_format(recovered.records, path)
    records = Records.index(recovered.records)
    recovered.records = {}
    opening = _describe(recovered.claim, records, recovered, resumed=True)
    return OpenedForReading(records, recovered, claim, alive, opening)


def _read(state_dir: str, files: LocalFiles) -> tuple[Claim | None, bool | None, Recovered]:
    claim = newest_claim(state_dir, files)
    alive = is_alive(claim) if claim is not None else False
    return claim, alive, recover(state_dir, files, live=alive is not False)


def newest_claim(state_dir: str, files: LocalFiles) -> Claim | None:
    """The claim with the highest number that can be read."""
    for epoch in reversed(list_epochs(state_dir, files)):
        try:
            return read_claim(state_dir, epoch, files)
        except (FrameError, FileNotFoundError):
            continue
    return None


def _storage_error(operation: str, path: str, error: OSError) -> StorageError:
    hint = "check that the directory and its files can be read and written by this user"
    if is_disk_full(error):
        hint = "free some space; nothing of the experiment was changed"
    return StorageError(
        f"cannot {operation} the experiment at {path}: {error}", operation=operation, key=path, hint=hint
    )
