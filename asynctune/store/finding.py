"""Owns finding an experiment's directory: where it is, whether one may be made there, its lock. Blocking, for a thread.

Refuses what would be a silent fresh start. What the directory holds is read by `store.opening`.
"""

from __future__ import annotations

import contextlib
import os
from typing import Final

from asynctune.errors import ConfigError, CorruptStateError, ExperimentNotFoundError, StorageError
from asynctune.files import LocalFiles, is_disk_full
from asynctune.state.epochs import HostLock, locked_error
from asynctune.state.sharing import Sharing, lock_and_look

__all__ = [
    "STATE_DIR",
    "check_apart",
    "check_not_lost",
    "is_copy",
    "local_path",
    "lock_experiment",
    "prepare_directory",
    "remove_leftovers",
    "storage_error",
]

STATE_DIR: Final = ".asynctune"
"""Name of the directory that holds an experiment's state."""

_CURRENT: Final = "CURRENT"


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
        msg = f"{text.partition('://')[0]}:// is no directory of this machine; give the path of one"
        raise ConfigError(msg)
    return os.path.abspath(os.path.expanduser(text.removeprefix("file://")))


def is_copy(path: str, files: LocalFiles) -> bool:
    """Whether a directory is the copy of an experiment, as `upload_dir` makes it, and not an experiment's own."""
    state_dir = f"{path}/{STATE_DIR}"
    if files.exists(f"{state_dir}/{_CURRENT}"):
        return True
    # A network filesystem may say for a moment that a file which another host has just replaced is missing: its name
    # is there all the time.
    with contextlib.suppress(OSError):
        return _CURRENT in files.list_dir(state_dir)
    return False


def check_apart(path: str, copy: str) -> None:
    """Refuse a copy that would be in the experiment's own directory, or the other way round.

    Raises:
        ConfigError: It would be.
    """
    own, other = os.path.realpath(path), os.path.realpath(copy)
    if os.path.commonpath([own, other]) in (own, other):
        msg = (
            f"the copy of the experiment in {path} would be in {copy}: neither can be in the other, or be the same; "
            "choose another upload_dir"
        )
        raise ConfigError(msg)


def prepare_directory(path: str, state_dir: str, mode: str, files: LocalFiles) -> None:
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


def lock_experiment(state_dir: str, files: LocalFiles) -> tuple[HostLock, Sharing]:
    """The lock, and what it is worth.

    Raises:
        ExperimentLockedError: Another process has it; the message says which.
    """
    lock, sharing = lock_and_look(state_dir)
    if lock is None:
        raise locked_error(state_dir, files)
    return lock, sharing


def check_not_lost(path: str, state_dir: str, files: LocalFiles) -> None:
    """Where there are trials, there was a journal: it is begun before the first of them."""
    trials = [name for name in files.list_dir(path) if not name.startswith(".") and name != "lost+found"]
    if trials:
        msg = (
            f"{state_dir} holds no commit, but {path} holds {trials[0]!r}: the experiment's state is lost. Nothing "
            "was changed; bring the state back from a backup"
        )
        raise CorruptStateError(msg, path=state_dir)


def remove_leftovers(state_dir: str, files: LocalFiles) -> None:
    """Temporary files of openings that ended in the middle of something; the lock says that none is at work."""
    for name in files.list_dir(state_dir):
        if name.startswith((".claim-", ".snap-")):
            files.unlink(f"{state_dir}/{name}")


def storage_error(operation: str, path: str, error: OSError) -> StorageError:
    """What the disk said, as this library's error."""
    hint = "check that the directory and its files can be read and written by this user"
    if is_disk_full(error):
        hint = "free some space; nothing of the experiment was changed"
    return StorageError(
        f"cannot {operation} the experiment at {path}: {error}", operation=operation, key=path, hint=hint
    )
