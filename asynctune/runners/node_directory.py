"""Owns the directory of an agent on its node: where trials write that do not see the driver's. Blocking.

Each agent has its own, and holds a lock beside it. One whose agent was killed has nobody who holds that, and is swept
by the next agent that begins or ends on that node: what a dead node had not handed over is of no use to anybody.

A directory that cannot be made is told in one of two ways. What is wrong with the path or with who may write there is
a setting, which fails on this node however often it is tried: it ends the experiment. What the machine is in
the way of (a full disk, one that fails, or that the system has made read-only because it fails) concerns this node,
and may pass: the trial has failed, and goes on elsewhere.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import shutil
import stat
import tempfile
from typing import Final

from asynctune.errors import ConfigError, TrialFailedError

__all__ = ["NodeDirectory", "checked_worker_dir"]

logger = logging.getLogger("asynctune")

_LOCK: Final = ".lock"
_MODE: Final = 0o700
_OF_THE_PATH: Final = frozenset(
    {
        errno.EACCES,
        errno.EEXIST,
        errno.EINVAL,
        errno.ELOOP,
        errno.ENAMETOOLONG,
        errno.ENOENT,
        errno.ENOTDIR,
        errno.EPERM,
    }
)


def checked_worker_dir(worker_dir: str | os.PathLike[str] | None) -> str | None:
    """As it goes to the nodes.

    Raises:
        ConfigError: It is no directory on any machine.
    """
    if worker_dir is None:
        return None
    path = os.fspath(worker_dir) if isinstance(worker_dir, str | os.PathLike) else worker_dir
    if not isinstance(path, str) or not path.startswith(("/", "~")) or "\0" in path:
        raise ConfigError(
            f"worker_dir must be an absolute path of a directory on the nodes' disks, or None, not {worker_dir!r:.80}"
        )
    return path


class NodeDirectory:
    """That of one agent. Every method is for a thread.

    Args:
        parent: See `checked_worker_dir`; made if it is missing; `None`: below the directory for temporary files.
        agent_id: Whose.
    """

    def __init__(self, parent: str | None, agent_id: str) -> None:
        self._given = parent
        self._agent_id = agent_id
        self._lock: int | None = None
        self.path = ""
        """Where it is, once it was made."""

    def make(self) -> None:
        """Make it, and sweep those that nobody holds.

        Raises:
            ConfigError: It can never be made there, or others could write there.
            TrialFailedError: It cannot be made now, such as on a full disk.
        """
        place = self._given
        try:
            place = tempfile.gettempdir() if place is None else os.path.expanduser(place)
            if not os.path.isabs(place):
                raise ConfigError(f"worker_dir {place} is of nobody here; give it an absolute path")
            place = os.path.join(place, f"asynctune-{os.getuid()}")
            os.makedirs(place, mode=_MODE, exist_ok=True)
            info = os.lstat(place)
            if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.getuid():
                raise ConfigError(f"{place} belongs to somebody else; give worker_dir another place")
            self._sweep(place)
            path = os.path.join(place, f"agent-{self._agent_id}")
            self._lock = _locked(path + _LOCK)
            self.path = path
            os.mkdir(path, _MODE)
        except OSError as error:
            self.remove()
            text = f"cannot make a directory in {place or 'that for temporary files'}, for what trials write: {error}"
            if place is None or error.errno not in _OF_THE_PATH:  # with no place, all there are may be full
                raise TrialFailedError(text) from error
            raise ConfigError(
                f"{text}; give worker_dir a place where the user of the nodes can write"
            ) from error

    def remove(self) -> None:
        """Remove it with all in it, and let go of it; sweep those that nobody holds. Again: does nothing."""
        if self._lock is not None:
            _sweep(self.path, self._lock)
            self._lock = None
            with contextlib.suppress(OSError):  # whoever comes next tries again
                self._sweep(os.path.dirname(self.path))

    def _sweep(self, parent: str) -> None:
        for name in os.listdir(parent):
            if not name.startswith("agent-") or not name.endswith(_LOCK):
                continue
            path = os.path.join(parent, name)
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
