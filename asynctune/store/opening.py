"""Owns the start of a store on a directory: claiming the experiment, reading it back. Blocking, for a thread.

Decides which mode applies; the directory itself is found by `store.finding`, the running is left to the store.
"""

from __future__ import annotations

import os
import secrets
import socket
from dataclasses import dataclass, field
from typing import Literal, get_args

from asynctune.clock import Clock
from asynctune.errors import (
    ConfigError,
    CorruptStateError,
    ExperimentExistsError,
    ExperimentNotFoundError,
    FencedError,
)
from asynctune.files import LocalFiles
from asynctune.packing import unpack
from asynctune.state.codec import FrameError
from asynctune.state.epochs import (
    Claim,
    HostLock,
    claim_epoch,
    is_alive,
    list_epochs,
    read_claim,
)
from asynctune.state.journal import Journal, secure_tail
from asynctune.state.lineage import extend_history
from asynctune.state.mirror.installing import is_being_replaced, replacing_error
from asynctune.state.recovered import Notice, Recovered
from asynctune.state.recovery import recover
from asynctune.state.sharing import Sharing
from asynctune.store.finding import (
    STATE_DIR,
    check_not_lost,
    lock_experiment,
    prepare_directory,
    remove_leftovers,
    storage_error,
)
from asynctune.store.records import Records, check_format

__all__ = [
    "Found",
    "Mode",
    "OpenedForReading",
    "OpenedForWriting",
    "Opening",
    "find",
    "is_dead",
    "look",
    "open_for_reading",
    "open_for_writing",
    "take",
]

Mode = Literal["create", "resume", "read", "auto"]


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
class Found:
    """An experiment's directory, locked by this opening as far as there are locks. Nothing is claimed yet."""

    path: str
    state_dir: str
    lock: HostLock
    sharing: Sharing


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


def open_for_writing(path: str, mode: str, files: LocalFiles, clock: Clock) -> OpenedForWriting:
    """Lock, claim and read the experiment at `path`, making it if the mode allows.

    Raises:
        ConfigError, ExperimentExistsError, ExperimentNotFoundError: The place does not fit the mode.
        ExperimentLockedError, FencedError: Another opening has it.
        CorruptStateError, UnsupportedFormatError: It cannot be read.
        StorageError: The disk refused.
    """
    found = find(path, mode, files)
    try:
        return take(found, mode, files, clock)
    except BaseException:
        found.lock.release()
        raise


def find(path: str, mode: str, files: LocalFiles) -> Found:
    """Lock the experiment's directory, which is made if the mode allows. Errors: as for `open_for_writing`."""
    state_dir = f"{path}/{STATE_DIR}"
    try:
        prepare_directory(path, state_dir, mode, files)
        return Found(path, state_dir, *lock_experiment(state_dir, files))
    except OSError as error:
        raise storage_error("open", path, error) from error


def is_dead(owner: Claim, found: Found, files: LocalFiles) -> bool:
    """Whether the last owner of the copy cannot be at work: its process is gone, or it had this very directory.

    This opening has the directory's lock, which the owner would have; that proves something where locks work.
    """
    try:
        had_this = read_claim(found.state_dir, owner.epoch, files).nonce == owner.nonce
    except (FrameError, OSError):
        had_this = False  # it was an opening of another directory
    return (had_this and found.sharing.locks == "working") or is_alive(owner) is False


def look(found: Found, files: LocalFiles) -> Recovered:
    """What the directory holds before anything is claimed, without result rows. Errors: as for `open_for_writing`."""
    try:
        return recover(found.state_dir, files)
    except OSError as error:
        raise storage_error("open", found.path, error) from error


def take(
    found: Found,
    mode: str,
    files: LocalFiles,
    clock: Clock,
    made: Claim | None = None,
    experiment_id: str | None = None,
) -> OpenedForWriting:
    """Claim the directory that was found, unless it is claimed already, and read it.

    Args:
        found: It; its lock stays the caller's to release after an error.
        mode: As for `open_for_writing`.
        files: The disk.
        clock: Time.
        made: The claim that was made already, for the copy too.
        experiment_id: What the copy says; a directory that has no state yet gets the same. `None`: one is made.

    Errors: as for `open_for_writing`.
    """
    try:
        return _take(found, mode, files, clock, made, experiment_id)
    except OSError as error:
        raise storage_error("open", found.path, error) from error


def _take(
    found: Found,
    mode: str,
    files: LocalFiles,
    clock: Clock,
    made: Claim | None,
    experiment_id: str | None,
) -> OpenedForWriting:
    path, state_dir = found.path, found.state_dir
    epochs = list_epochs(state_dir, files)
    if mode == "create" and recover(state_dir, files).seq > 0:
        raise exists_error(path)
    claim = claim_epoch(state_dir, files, clock) if made is None else made
    # read after the claim: what an older writer still adds is acknowledged to nobody
    began = clock.monotonic()
    recovered = recover(state_dir, files, rows_after=projected_seq)
    recovery_s = clock.monotonic() - began
    resumed = recovered.seq > 0
    check_format(recovered.records, path)
    if recovered.position is not None:
        secure_tail(state_dir, recovered.position.name, files)
    if not resumed:
        _check_really_new(path, state_dir, epochs, mode, files)
    history = recovered.history
    if recovered.claim != claim:
        if recovered.claim is not None and recovered.claim.epoch >= claim.epoch:
            if made is not None:
                msg = f"another process has written to {path} meanwhile; nothing was changed, open the experiment again"
                raise FencedError(msg)
            claim = claim_epoch(state_dir, files, clock, at_least=recovered.claim.epoch + 1)
        history = extend_history(history, claim.epoch, claim.nonce, recovered.seq)
    experiment_id = recovered.experiment_id or experiment_id or secrets.token_hex(8)
    if found.sharing.locks == "working":
        remove_leftovers(state_dir, files)
    address = node_ip()
    records = Records.index(dict(recovered.records))
    journal = Journal(
        state_dir,
        experiment_id=experiment_id,
        claim=claim,
        node_ip=address,
        history=history,
        records=recovered.records,
        seq=recovered.seq,
        crc=recovered.crc,
        files=files,
        clock=clock,
        shared=found.sharing.may_be_shared,
    )
    recovered.records = {}
    journal.start_segment()
    opening = describe(claim, records, recovered, resumed=resumed)
    return OpenedForWriting(
        found.lock, journal, records, recovered, opening, experiment_id, address, recovery_s
    )


def exists_error(place: str) -> ExperimentExistsError:
    """The refusal to create where an experiment is."""
    return ExperimentExistsError(
        f"there is an experiment at {place} already; open it with mode='resume', or choose another directory"
    )


def _check_really_new(path: str, state_dir: str, epochs: list[int], mode: str, files: LocalFiles) -> None:
    """No commit was found: the creation was cut short before it acknowledged anything, or the state is lost."""
    check_not_lost(path, state_dir, files)
    if mode == "resume" and not epochs:
        msg = f"there is no experiment at {path}; check the path, or open it with mode='create'"
        raise ExperimentNotFoundError(msg)


def describe(claim: Claim, records: Records, recovered: Recovered, *, resumed: bool) -> Opening:
    """The opening that `claim` is, by what was found."""
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


def projected_seq(records: dict[str, bytes]) -> int:
    """The commit up to which the result files are durable."""
    data = records.get("projected")
    return 0 if data is None else int(unpack(data))


def node_ip() -> str:
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
        if is_being_replaced(state_dir, files):
            raise replacing_error(state_dir)
        claim, alive, recovered = _read(state_dir, files)
        if recovered.seq == 0:
            try:
                check_not_lost(path, state_dir, files)
            except CorruptStateError:
                # it may have been begun between the two looks
                claim, alive, recovered = _read(state_dir, files)
                if recovered.seq == 0:
                    raise
    except FileNotFoundError as error:
        msg = f"there is no experiment at {path}: no such directory"
        raise ExperimentNotFoundError(msg) from error
    except OSError as error:
        raise storage_error("read", path, error) from error
    if recovered.seq == 0 or recovered.claim is None:
        msg = (
            f"the experiment at {path} was never begun: its creation was cut short before anything was saved"
        )
        raise ExperimentNotFoundError(msg)
    check_format(recovered.records, path)
    records = Records.index(recovered.records)
    recovered.records = {}
    opening = describe(recovered.claim, records, recovered, resumed=True)
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
