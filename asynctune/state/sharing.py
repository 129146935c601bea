"""Owns what is known of the filesystem of an experiment: its locks, and whether others may use it too. Blocking.

A lock between openings (`flock` on `LOCK`) only makes a refusal friendly; that two drivers do no harm to each other is
the work of the claims (`asynctune.state.epochs`), which need `link` alone. So a filesystem without working locks is
taken all the same, and its user is told once. Locks can be missing (`flock` fails), pretended (two openings both
get one), or kept on this host only, which an NFS mount with `nolock` or `local_lock` does without a word: the mount's
options in `/proc/self/mountinfo` tell.
"""

from __future__ import annotations

import errno
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Literal

from asynctune.files import FILE_MODE, LocalFiles
from asynctune.state.epochs import HostLock

__all__ = ["Locks", "Mount", "Sharing", "lock_and_look", "mount_of", "parse_mounts"]

Locks = Literal["working", "this_host", "pretended", "missing"]
"""Of two openings: the second is refused; is refused on one host alone; is not refused; cannot even ask."""

_NO_LOCKS: Final = frozenset({errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EBADF})

_NETWORK: Final = re.compile(
    "9p|acfs|afs|beegfs|ceph|cifs|coda|davfs|fuse|gfs2|glusterfs|gpfs|lustre|ncpfs|nfs4?|ocfs2|orangefs|panfs|"
    "prl_fs|pvfs2|smb3|smbfs|vboxsf|virtiofs|wekafs"
)
# FUSE filesystems that only this machine sees; all others are taken for networks.
_LOCAL_FUSE: Final = re.compile(
    "bindfs|cryfs|encfs|exfat|ext[234]|fuse-overlayfs|gocryptfs|lxcfs|mergerfs|ntfs|ntfs-3g|portal|squashfuse|unionfs"
)
# FUSE filesystems without locks of their own: the kernel keeps them on this host.
_LOCAL_LOCKS_FUSE: Final = re.compile("blobfuse2?|gcsfuse|goofys|mount-s3|rclone|s3fs|sshfs")
# Options that keep flock on this host: nfs(5), mount.cifs(8), mount.lustre(8), gfs2(5), mount.ocfs2(8).
_LOCAL_LOCKS: Final = frozenset(
    {"local_lock=all", "local_lock=flock", "localflock", "localflocks", "nobrl", "nolock"}
)


@dataclass(frozen=True, slots=True)
class Mount:
    """Where a filesystem is mounted, and how.

    Attributes:
        point: The directory.
        kind: The filesystem's type, as the system calls it: `"ext4"`, `"nfs4"`, `"fuse.sshfs"`.
        options: Of the mount and of the filesystem.
    """

    point: str
    kind: str
    options: frozenset[str]

    @property
    def is_network(self) -> bool:
        """Whether other hosts may have the same files. By the type alone: a bind or an overlay of it is not seen."""
        if self.kind.startswith("fuse."):
            return not _LOCAL_FUSE.fullmatch(self._name)
        return _NETWORK.fullmatch(self.kind) is not None

    @property
    def keeps_locks_here(self) -> bool:
        """Whether it is known that locks are not seen by other hosts."""
        without = _LOCAL_LOCKS_FUSE.fullmatch(self._name) or self.options & _LOCAL_LOCKS
        return self.is_network and bool(without)

    @property
    def _name(self) -> str:
        return self.kind.removeprefix("fuse.")


@dataclass(frozen=True, slots=True)
class Sharing:
    """What was found out about the directory of an experiment.

    Attributes:
        directory: The directory.
        locks: What locks are worth there. `"working"` on a network filesystem means that nothing speaks against it:
            one host cannot see more.
        mount: The filesystem; `None` where the system does not tell.
    """

    directory: str
    locks: Locks
    mount: Mount | None

    @property
    def is_network(self) -> bool:
        """Whether drivers on other hosts may have the same files."""
        return self.mount is not None and self.mount.is_network

    @property
    def may_be_shared(self) -> bool:
        """Whether the lock alone does not keep every other driver out."""
        return self.is_network or self.locks != "working"

    @property
    def warning(self) -> str | None:
        """What to tell a user, one message; `None` where locks work."""
        if self.locks == "working":
            return None
        what = {
            "this_host": "keeps locks on this host only, so a driver on another host",
            "pretended": "grants one lock to two openings, so a second driver",
            "missing": "has no locks, so a second driver",
        }[self.locks]
        where = "" if self.mount is None else f" ({self.mount.kind} at {self.mount.point})"
        return (
            f"the filesystem of {self.directory}{where} {what} is not refused: it takes the experiment over, and the "
            "first one ends with FencedError. Nothing is damaged by that; start one driver at a time, or mount the "
            "filesystem with working locks"
        )


def lock_and_look(state_dir: str) -> tuple[HostLock | None, Sharing]:
    """Take the lock of an experiment as far as there is one, and tell what it is worth.

    Args:
        state_dir: The `.asynctune` directory.

    Returns:
        The lock, or `None` if another opening has it. Where locks are missing the lock excludes nobody; it is to be
        released all the same.

    Raises:
        OSError: The file `LOCK` cannot be opened.
    """
    path = f"{state_dir}/LOCK"
    mount = mount_of(state_dir)
    try:
        lock = HostLock.acquire(path)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        # The descriptor alone: what follows has a lock to release, on any filesystem.
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
        return HostLock(fd), Sharing(state_dir, "missing", mount)
    locks: Locks = "working"
    if mount is not None and mount.keeps_locks_here:
        locks = "this_host"
    if lock is not None and _is_granted_twice(path):
        locks = "pretended"
    return lock, Sharing(state_dir, locks, mount)


def _is_granted_twice(path: str) -> bool:
    """Whether a second opening gets the lock that this process has. It is closed again, which ends no other's lock."""
    files = LocalFiles()
    with suppress(OSError):  # refused in another way than a lock is: also refused
        fd = files.open_update(path)
        try:
            return files.lock(fd)
        finally:
            files.close(fd)
    return False


# -- the mounts of this system -------------------------------------------------------------------------------


def mount_of(directory: str) -> Mount | None:
    """The mount that a directory is on; `None` where the system does not tell (it is not Linux).

    Raises:
        OSError: There is no such directory.
    """
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # By number: paths would have to be resolved, and one mount can hide another at the same place.
        found = re.search(r"^mnt_id:\s*(\d+)$", _text(f"/proc/self/fdinfo/{fd}"), re.MULTILINE)
        return None if found is None else parse_mounts(_text("/proc/self/mountinfo")).get(int(found[1]))
    finally:
        os.close(fd)


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except OSError:
        return ""


def parse_mounts(text: str) -> dict[int, Mount]:
    """The mounts of `/proc/self/mountinfo`, by their numbers; see proc_pid_mountinfo(5). Other lines are left out."""
    mounts: dict[int, Mount] = {}
    for line in text.splitlines():
        before, separator, after = line.partition(" - ")
        own, of_all = before.split(" "), after.split(" ")
        if not separator or len(own) < 6 or len(of_all) < 3 or not own[0].isdigit():  # noqa: PLR2004 - fields
            continue
        options = frozenset([*own[5].split(","), *of_all[2].split(",")])
        mounts[int(own[0])] = Mount(_unescaped(own[4]), of_all[0], options)
    return mounts


def _unescaped(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)
