"""Owns looking at a directory of a user's files: what is in it, and what may not be in a checkpoint.

It only looks; blocking, for a thread. Refused with an error that names the entry: symbolic links out of the
tree, dangling ones, links to directories, devices, FIFOs, sockets, names that are no Unicode text, and the
paths that `manifest.check_paths` refuses. A link to a regular file inside the tree stands for a copy of that
file: a link kept as it is would mean something else once the directory has another place.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from asynctune.checkpoints.breathing import FILES_BETWEEN_BREATHS, breathe
from asynctune.checkpoints.manifest import ManifestError, check_paths
from asynctune.errors import ConfigError
from asynctune.trial import MANIFEST_FILE

__all__ = ["Tree", "TreeFile", "private_mode", "scan_tree"]

_KINDS: Final = (
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISBLK, "a block device"),
    (stat.S_ISCHR, "a character device"),
)


@dataclass(frozen=True, slots=True)
class TreeFile:
    """A regular file as it was when looked at.

    Attributes:
        path: Relative POSIX path.
        source: Absolute path to read from; for a symbolic link, of what it points at.
        size: Bytes.
        mtime_ns: Time of the last change of the content.
        inode: Its identity on the filesystem.
        mode: Permission bits.
        sole: Whether this is its only name, so that nobody writes to it by another one.
    """

    path: str
    source: str
    size: int
    mtime_ns: int
    inode: int
    mode: int
    sole: bool


@dataclass(slots=True)
class Tree:
    """What a directory holds.

    Attributes:
        root: Absolute path, without symbolic links.
        mode: Permission bits of the root.
        files: Regular files, sorted by path.
        directories: Relative path and permission bits of each directory below the root, parents first.
        empty_directories: Those of them that hold nothing, sorted.
    """

    root: str
    mode: int
    files: list[TreeFile] = field(default_factory=list)
    directories: list[tuple[str, int]] = field(default_factory=list)
    empty_directories: list[str] = field(default_factory=list)

    @property
    def movable(self) -> bool:
        """Whether each file has one name and is no link, so that the directory can be taken as it stands."""
        return all(file.sole for file in self.files)


def private_mode(mode: int, at_least: int) -> int:
    """Permission bits for a staged copy: others may not write, and set-uid, set-gid and sticky are gone."""
    return (mode & 0o755) | at_least


def scan_tree(root: str, *, committed: bool = False) -> Tree:
    """List what is below `root`.

    Args:
        root: The directory; a symbolic link to one is followed.
        committed: It is a committed or staged checkpoint: its manifest is left out instead of being refused.

    Raises:
        ConfigError: No directory, or something in it that a checkpoint cannot hold.
        OSError: It cannot be read.
    """
    real = os.path.realpath(root)
    try:
        info = os.stat(real)
    except (FileNotFoundError, NotADirectoryError):
        info = None
    if info is None or not stat.S_ISDIR(info.st_mode):
        raise ConfigError(f"no directory at {root}; write the checkpoint's files there first")
    tree = Tree(real, stat.S_IMODE(info.st_mode))
    pending = [""]
    count = 0
    while pending:
        relative = pending.pop()
        directory = os.path.join(real, relative) if relative else real
        entries = 0
        for entry in _entries(directory):
            count += 1
            if count % FILES_BETWEEN_BREATHS == 0:
                breathe()
            if committed and not relative and entry.name == MANIFEST_FILE:
                continue
            entries += 1
            path = f"{relative}/{entry.name}" if relative else entry.name
            if entry.is_dir(follow_symlinks=False):
                tree.directories.append((path, stat.S_IMODE(entry.stat(follow_symlinks=False).st_mode)))
                pending.append(path)
            else:
                tree.files.append(_file(real, path, entry))
        if not entries and relative:
            tree.empty_directories.append(relative)
    tree.files.sort(key=lambda file: file.path)
    tree.directories.sort()
    tree.empty_directories.sort()
    try:
        check_paths([file.path for file in tree.files], tree.empty_directories)
    except ManifestError as error:
        raise ConfigError(f"{root} cannot be stored as a checkpoint: {error}") from error
    return tree


def _entries(directory: str) -> Iterator[os.DirEntry[str]]:
    with os.scandir(directory) as entries:
        yield from entries


def _file(root: str, path: str, entry: os.DirEntry[str]) -> TreeFile:
    source, info, linked = entry.path, entry.stat(follow_symlinks=False), False
    if stat.S_ISLNK(info.st_mode):
        source, info, linked = *_resolve(root, entry.path), True
    if not stat.S_ISREG(info.st_mode):
        kind = next((name for test, name in _KINDS if test(info.st_mode)), "not a regular file")
        raise ConfigError(f"{entry.path} is {kind}, and a checkpoint holds regular files only; remove it")
    return TreeFile(
        path=path,
        source=source,
        size=info.st_size,
        mtime_ns=info.st_mtime_ns,
        inode=info.st_ino,
        mode=stat.S_IMODE(info.st_mode),
        sole=not linked and info.st_nlink == 1,
    )


def _resolve(root: str, link: str) -> tuple[str, os.stat_result]:
    try:
        target = os.path.realpath(link, strict=True)
        info = os.stat(target)
    except OSError as error:
        raise ConfigError(f"{link} is a symbolic link to nowhere ({error.strerror}); remove it") from error
    if target != root and not target.startswith(root.rstrip("/") + "/"):
        raise ConfigError(
            f"{link} is a symbolic link out of the directory, to {target}; copy the file instead"
        )
    if stat.S_ISDIR(info.st_mode):
        raise ConfigError(
            f"{link} is a symbolic link to a directory, which cannot be stored; copy its files instead"
        )
    return target, info
