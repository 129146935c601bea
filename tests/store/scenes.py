"""What the tests of the store share: trials in every status, directories to save, files as they are."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from asynctune.clock import SystemClock
from asynctune.files import LocalFiles
from asynctune.state.recovery import recover
from asynctune.store.store import ExperimentStore
from asynctune.trial import TrialStatus

__all__ = [
    "PATHS",
    "Counter",
    "directory_with",
    "engine_of",
    "listing",
    "mirroring_of",
    "put_into",
    "result_rows",
    "state_of",
]

PATHS: dict[TrialStatus, tuple[TrialStatus, ...]] = {
    TrialStatus.PENDING: (),
    TrialStatus.RUNNING: (TrialStatus.RUNNING,),
    TrialStatus.PAUSED: (TrialStatus.RUNNING, TrialStatus.PAUSED),
    TrialStatus.TERMINATED: (TrialStatus.RUNNING, TrialStatus.TERMINATED),
    TrialStatus.ERROR: (TrialStatus.RUNNING, TrialStatus.ERROR),
}
"""How a new trial gets into each status."""


def put_into(store: ExperimentStore, trial_id: str, status: TrialStatus) -> None:
    """Lead a new trial into a status."""
    for step in PATHS[status]:
        store.set_status(trial_id, step)


def directory_with(path: Path, **files: str | bytes) -> Path:
    """A directory of these files; `__` in a name stands for a dot."""
    path.mkdir(parents=True, exist_ok=True)
    for name, content in (files or {"model__bin": b"weights"}).items():
        data = content.encode() if isinstance(content, str) else content
        (path / name.replace("__", ".")).write_bytes(data)
    return path


def result_rows(directory: Path) -> list[dict[str, Any]]:
    """The rows of a result.json, in order."""
    file = directory / "result.json"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def listing(path: Path) -> dict[str, tuple[int, int, int]]:
    """Every path below, with inode, size and mtime: what writing would change."""
    found = {}
    for root, directories, files in os.walk(path):
        for name in [*directories, *files]:
            info = os.lstat(os.path.join(root, name))
            found[os.path.relpath(os.path.join(root, name), path)] = (
                info.st_ino,
                info.st_size,
                info.st_mtime_ns,
            )
    return found


def state_of(location: Path) -> dict[str, bytes]:
    """The records on the disk, without who opened it and how far the result files are."""
    records = recover(str(location / ".asynctune"), LocalFiles()).records
    return {key: data for key, data in records.items() if key not in {"opening", "projected"}}


class Counter:
    """A searcher whose state is a number, with faults to order."""

    def __init__(self, value: Any = 0) -> None:
        self.value = value
        self.captures = 0
        self.given: list[Any] = []
        self.error: Exception | None = None

    def get_state(self) -> Any:
        self.captures += 1
        if self.error is not None:
            raise self.error
        return self.value

    def set_state(self, state: Any) -> None:
        self.given.append(state)
        self.value = state


class StoppedClock(SystemClock):
    """A clock whose wall time a test sets."""

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self.now = now

    def time(self) -> float:
        return self.now


def engine_of(store: ExperimentStore) -> Any:
    """What works behind a store opened for writing; its rooms are looked into as they are."""
    assert store._engine is not None
    return store._engine


def mirroring_of(store: ExperimentStore) -> Any:
    """What keeps the copy of a store that has one."""
    mirroring = engine_of(store).mirroring
    assert mirroring is not None
    return mirroring
