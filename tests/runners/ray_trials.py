"""Trials for many machines: what they save says what it has to be, and what was acknowledged is in a log that all see.

Config: `n` iterations, `s` seconds each, `log` (a file that all nodes share), `me` (a file with the node's name);
`starves_at`: before this iteration its first start runs out of the memory of the control group `group`.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from asynctune import Checkpoint, Trainable, session
from asynctune.trial import MANIFEST_FILE

__all__ = [
    "Fresh",
    "Stepping",
    "acknowledged",
    "beginnings",
    "digest",
    "train",
    "train_async",
    "train_slowly",
]

LARGE_BYTES: Final = 200_000
MIB: Final = 1 << 20
MOST_BYTES: Final = 512 * MIB


def digest(directory: str | os.PathLike[str]) -> str:
    """Of all files in it that a trial wrote."""
    total = hashlib.sha256()
    for path in sorted(Path(directory).rglob("*")):
        if path.is_file() and path.name != MANIFEST_FILE:
            total.update(f"{path.relative_to(directory)}\0".encode())
            total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def _write(directory: str, iteration: int) -> None:
    Path(directory, "iteration").write_text(str(iteration))
    Path(directory, "same").write_bytes(b"as ever" * 10_000)
    Path(directory, "sub").mkdir(exist_ok=True)
    Path(directory, "sub", "large").write_bytes(os.urandom(LARGE_BYTES))


def _start() -> int:
    checkpoint = session.get_checkpoint()
    return 0 if checkpoint is None else _read(checkpoint.path)


def _read(directory: Any) -> int:
    return int(Path(directory, "iteration").read_text())


def _tell(config: dict[str, Any], trial_id: str, event: str, iteration: int, sha256: str = "") -> None:
    if config.get("log") is None:
        return
    line = {"event": event, "trial": trial_id, "iteration": iteration, "sha256": sha256, "pid": _me()}
    fd = os.open(config["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        os.write(fd, (json.dumps(line) + "\n").encode())
    finally:
        os.close(fd)


def _me() -> str:
    """This process; its number alone is that of a namespace."""
    return f"{os.getpid()}.{os.stat('/proc/self/ns/pid').st_ino}.{_BORN}"


_BORN: Final = time.monotonic_ns()


def _where(config: dict[str, Any]) -> str:
    me = config.get("me")
    return Path(me).read_text().strip() if me is not None and os.path.exists(me) else "head"


def _row(config: dict[str, Any], iteration: int, sha256: str) -> dict[str, Any]:
    return {
        "loss": config.get("x", 1.0) / iteration,
        "training_iteration": iteration,
        "sha256": sha256,
        "where": _where(config),
        "me": _me(),
    }


def train(config: dict[str, Any]) -> None:
    """A function."""
    begun, trial_id = _start(), session.get_trial_id()
    _tell(config, trial_id, "begun", begun)
    for iteration in range(begun + 1, config["n"] + 1):
        time.sleep(config.get("s", 0.0))
        with tempfile.TemporaryDirectory() as directory:
            _write(directory, iteration)
            sha256 = digest(directory)
            session.report(_row(config, iteration, sha256), Checkpoint.from_directory(directory))
        _tell(config, trial_id, "reported", iteration, sha256)


def train_slowly(config: dict[str, Any]) -> None:
    """The same, with a checkpoint every other time only."""
    begun, trial_id = _start(), session.get_trial_id()
    _tell(config, trial_id, "begun", begun)
    for iteration in range(begun + 1, config["n"] + 1):
        time.sleep(config.get("s", 0.0))
        if begun == 0 and iteration == config.get("starves_at"):
            _starve(config["group"])
        if iteration % 2:
            session.report(_row(config, iteration, ""))
            continue
        with tempfile.TemporaryDirectory() as directory:
            _write(directory, iteration)
            session.report(_row(config, iteration, digest(directory)), Checkpoint.from_directory(directory))


def _starve(group: str) -> None:
    """Use more memory than there is."""
    Path(group, "cgroup.procs").write_text("0")
    used: list[bytes] = []
    while len(used) * MIB < MOST_BYTES:
        used.append(b"x" * MIB)
    raise RuntimeError(f"{group} has no limit")


def train_once_failing(config: dict[str, Any]) -> None:
    """The first trial that comes so far, fails at an iteration; the file `flag` says that one has."""
    for iteration in range(_start() + 1, config["n"] + 1):
        if iteration == config["fails_at"]:
            try:
                os.close(os.open(config["flag"], os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                pass
            else:
                raise RuntimeError("as it was told")
        with tempfile.TemporaryDirectory() as directory:
            _write(directory, iteration)
            session.report(_row(config, iteration, digest(directory)), Checkpoint.from_directory(directory))


async def train_async(config: dict[str, Any]) -> None:
    """A coroutine."""
    for iteration in range(_start() + 1, config["n"] + 1):
        await asyncio.sleep(config.get("s", 0.0))
        directory = await asyncio.to_thread(tempfile.mkdtemp)
        try:
            _write(directory, iteration)
            await session.areport(
                _row(config, iteration, digest(directory)), Checkpoint.from_directory(directory)
            )
        finally:
            await asyncio.to_thread(shutil.rmtree, directory)


class Stepping(Trainable):
    """A class whose objects are used again. Its checkpoint is what it has drawn for the row."""

    def setup(self, config):
        self.setups = getattr(self, "setups", 0) + 1
        self.trials = 0
        self.reset_config(config)

    def reset_config(self, new_config):
        self.trials += 1
        self.drawn = b""
        return True

    def step(self):
        iteration = self.iteration + 1
        self.drawn = os.urandom(LARGE_BYTES)
        with tempfile.TemporaryDirectory() as directory:
            self._write(directory, iteration)
            row = _row(self.config, iteration, digest(directory))
        return {
            **row,
            "object": f"{_me()}.{id(self)}.{self.setups}",
            "trials": self.trials,
            "done": iteration >= self.config["n"],
        }

    def _write(self, directory, iteration):
        Path(directory, "iteration").write_text(str(iteration))
        Path(directory, "large").write_bytes(self.drawn)

    def save_checkpoint(self, checkpoint_dir):
        self._write(checkpoint_dir, self.iteration)

    def load_checkpoint(self, checkpoint):
        assert _read(checkpoint) == self.iteration
        self.drawn = Path(checkpoint, "large").read_bytes()


class Fresh(Trainable):
    """A class that tells what is around it."""

    def step(self):
        seen = {name: os.environ.get(name, "") for name in self.config["names"]}
        return {"seen": json.dumps(seen), "where": _where(self.config), "done": True}


def lines(log: Path) -> list[dict[str, Any]]:
    """All of a log; half a line at its end was told by somebody who was killed."""
    if not log.exists():
        return []
    return [json.loads(line) for line in log.read_text().splitlines(keepends=True) if line.endswith("\n")]


def acknowledged(log: Path) -> dict[str, dict[int, str]]:
    """What trials were told is safe: digests of their checkpoints by iteration."""
    found: dict[str, dict[int, str]] = {}
    for line in lines(log):
        if line["event"] == "reported":
            found.setdefault(line["trial"], {})[line["iteration"]] = line["sha256"]
    return found


def beginnings(log: Path) -> dict[str, list[tuple[str, int]]]:
    """Which process began each trial at which iteration.

    Asserts that no two ever took turns in one, and that none began before what was acknowledged.
    """
    begun: dict[str, list[tuple[str, int]]] = {}
    safe: dict[str, int] = {}
    for line in lines(log):
        starts = begun.setdefault(line["trial"], [])
        if line["event"] == "begun":
            assert line["iteration"] >= safe.get(line["trial"], 0), f"{line} although more was safe"
            starts.append((line["pid"], line["iteration"]))
        else:
            assert starts[-1][0] == line["pid"], f"{line} although {starts[-1]} goes on with it"
            safe[line["trial"]] = line["iteration"]
    return begun
