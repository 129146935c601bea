"""Owns the directory of an agent on its node: where trials write that do not see the driver's. Blocking.

Each agent has its own, and holds a lock beside it. One whose agent was killed has nobody who holds that, and is swept
by the next agent on that node: what a dead node had not handed over is of no use to anybody.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import stat
import tempfile
from typing import Final

from asynctune.errors import ConfigError

__all__ = ["NodeDirectory"]

logger = logging.getLogger("asynctune")

_LOCK: Final = ".lock"
_MODE: Final = 0o700


class NodeDirectory:
    """That of one agent. Every method is for a thread.

    Args:
        parent: Absolute path, made if it is missing; `None`: below the directory for temporary files.
        agent_id: Whose.
    """

    def __init__(self, parent: str | None, agent_id: str) -> None:
        self._parent = os.path.join(
            tempfile.gettempdir() if parent is None else os.path.expanduser(parent),
            f"asynctune-{os.getuid()}",
        )
        self.path: Final = os.path.join(self._parent, f"agent-{agent_id}")
        self._lock: int | None = None

    def make(self) -> None:
        """Make it, and sweep those that nobody holds.

        Raises:
            ConfigError: It cannot be made, or others could write there.
        """
        try:
            os.makedirs(self._parent, mode=_MODE, exist_ok=True)
            info = os.lstat(self._parent)
            if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.getuid():
                raise ConfigError(f"{self._parent} belongs to somebody else; give worker_dir another place")
            self._sweep()
            self._lock = _locked(self.path + _LOCK)
            os.mkdir(self.path, _MODE)
        except OSError as error:
            raise ConfigError(
                f"cannot make {self.path} for what trials write: {error}; give worker_dir a place on the nodes' disks"
            ) from error

    def remove(self) -> None:
        """Remove it with all in it, and let go of it. Again: does nothing."""
        if self._lock is not None:
            _sweep(self.path, self._lock)
            self._lock = None

    def _sweep(self) -> None:
        for name in os.listdir(self._parent):
            if not name.startswith("agent-") or not name.endswith(_LOCK):
                continue
            path = os.path.join(self._parent, name)
            try:
                fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            except FileNotFoundError:
                continue  # somebody else sweeps it
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(fd)  # its agent lives
                continue
            logger.info("%s was left by an agent that was killed, and is removed", path.removesuffix(_LOCK))
            _sweep(path.removesuffix(_LOCK), fd)


def _locked(path: str) -> int:
    """A lock file that this process holds, and that nobody has swept meanwhile."""
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(fd, fcntl.LOCK_EX)
        try:
            if os.path.samestat(os.fstat(fd), os.stat(path)):
                return fd
        except FileNotFoundError:
            pass
        os.close(fd)


def _sweep(path: str, lock: int) -> None:
    try:
        shutil.rmtree(path, ignore_errors=True)
        if not os.path.lexists(path):  # else another agent finds it by its lock
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path + _LOCK)
    finally:
        os.close(lock)
