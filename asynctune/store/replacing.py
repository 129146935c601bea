"""Owns the replacing of what a directory holds by what the copy holds: result files first, then the state.

In this order, because the state says what the result files hold. From `begin` until the state is replaced, the
directory is refused without its copy (`state.mirror.installing`).
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from asynctune.clock import Clock
from asynctune.files import LocalFiles
from asynctune.packing import pack
from asynctune.state.epochs import claim_epoch
from asynctune.state.mirror.claiming import Claimed
from asynctune.state.mirror.installing import begin_replacing, install
from asynctune.store.access import Access
from asynctune.store.finding import storage_error
from asynctune.store.opening import Found, node_ip

__all__ = ["begin", "fetch_result_files", "install_copy", "replace", "set_aside_fork"]


async def replace(
    claimed: Claimed,
    access: Access,
    found: Found,
    files: LocalFiles,
    clock: Clock,
    in_thread: Callable[..., Awaitable[Any]],
) -> tuple[str | None, bool]:
    """Make what the copy holds the directory's own, in all steps.

    Returns:
        Where the old state was put, and whether there was something that the copy does not know.

    Raises:
        FencedError: Another opening claimed the directory meanwhile.
        StorageError: The copy or the disk failed.
    """
    parted: bool = await in_thread(begin, claimed, found, files, clock)
    if parted:
        await in_thread(set_aside_fork, claimed, found, files)
    await fetch_result_files(claimed, access, found.path)
    aside: str | None = await in_thread(install_copy, claimed, found, files)
    return aside, parted


def begin(claimed: Claimed, found: Found, files: LocalFiles, clock: Clock) -> bool:
    """Claim the directory, and say that what it holds is being replaced. Blocking, for a thread.

    Returns:
        Whether it holds something that the copy does not know; also if an opening that was cut short found that.

    Raises:
        FencedError: Another opening claimed the directory meanwhile.
        StorageError: The disk refused.
    """
    try:
        claim_epoch(found.state_dir, files, clock, given=claimed.claim)
        return begin_replacing(found.state_dir, claimed.claim, files, parted=claimed.relation == "fork")
    except OSError as error:
        raise storage_error("replace the state of", found.path, error) from error


async def fetch_result_files(claimed: Claimed, access: Access, path: str) -> None:
    """Bring the result files of all trials that the copy knows.

    Raises:
        StorageError: The bucket or the disk failed.
    """
    assert claimed.mirrored is not None
    records = claimed.mirrored.recovered.records
    await access.fetch_results(path, lambda name: _is_trial(name, records))


def set_aside_fork(claimed: Claimed, found: Found, files: LocalFiles) -> str:
    """Put away what only this disk knows: whole trials, and the result files of the others; where they are now.

    A trial's number may be given again, and its rows would be met there. Checkpoint directories of trials that the
    copy knows stay: those without a record are set aside when the checkpoints are put in order. Blocking, for a thread.

    Raises:
        StorageError: The disk refused.
    """
    assert claimed.mirrored is not None
    records = claimed.mirrored.recovered.records
    aside = f"{found.state_dir}/quarantine/{claimed.claim.epoch}-trials"
    try:
        for name in files.list_dir(found.path):
            path = os.path.join(found.path, name)
            if name.startswith(".") or name == "lost+found" or not os.path.isdir(path):
                continue
            if not _is_trial(name, records):
                _move(path, os.path.join(aside, name), files)
                continue
            for entry in files.list_dir(path):
                if not os.path.isdir(os.path.join(path, entry)):
                    _move(os.path.join(path, entry), os.path.join(aside, name, entry), files)
        return aside
    except OSError as error:
        raise storage_error("set aside a fork of", found.path, error) from error


def _is_trial(name: str, records: Mapping[str, bytes]) -> bool:
    return f"trial/{name}" in records or f"name/{name}" in records


def _move(source: str, target: str, files: LocalFiles) -> None:
    while files.exists(target):  # of an opening that was cut short here
        target += "~"
    os.makedirs(os.path.dirname(target), mode=0o700, exist_ok=True)
    files.rename(source, target)
    files.sync_dir(os.path.dirname(target))
    files.sync_dir(os.path.dirname(source))


def install_copy(claimed: Claimed, found: Found, files: LocalFiles) -> str | None:
    """Make the copy's state the directory's own; where the old state was put. Blocking, for a thread.

    Raises:
        StorageError: The disk refused.
    """
    mirrored = claimed.mirrored
    assert mirrored is not None
    records = dict(mirrored.recovered.records)
    # what the result files hold is what was fetched, whatever the disk of another machine had
    records["projected"] = pack(mirrored.current.projected, "projected")
    try:
        return install(
            found.state_dir,
            mirrored,
            claim=claimed.claim,
            history=claimed.history,
            node_ip=node_ip(),
            files=files,
            records=records,
        )
    except OSError as error:
        raise storage_error("replace the state of", found.path, error) from error
