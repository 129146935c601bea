"""Owns the order in which the objects of a directory are listed. Blocking; holds the names of one branch at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final

from asynctune.breathing import breathe
from asynctune.errors import ConfigError
from asynctune.storage.keys import check_key
from asynctune.storage.local_files import STAGING, ObjectFiles, info_of
from asynctune.storage.local_lock import disk_errors
from asynctune.storage.values import Directory, ObjectInfo

__all__ = ["list_entries"]

_Found = tuple[str, "os.DirEntry[str]"]

_DIRECTORY: Final = "/"


def list_entries(
    objects: ObjectFiles, prefix: str, delimiter: str | None, start_after: str
) -> Iterator[ObjectInfo | Directory]:
    """See `ObjectStorage.list_objects`.

    A directory is sorted as its name with the slash behind it. So walking the tree, each directory's entries in their
    order, gives the keys in theirs: `a-b`, `a/c`, `a0`.

    Raises:
        StorageError: A directory cannot be read.
    """
    with disk_errors("list", prefix or None):
        objects.check_root("list")
    start = prefix[: prefix.rfind("/") + 1]
    branch = [_entries(objects, start)]
    while branch:
        found = next(branch[-1], None)
        if found is None:
            branch.pop()
            continue
        breathe()
        key, entry = found
        if key.endswith(_DIRECTORY):
            outside = not (key.startswith(prefix) or prefix.startswith(key))
            before = key < start_after and not start_after.startswith(key)
            if outside or before:
                continue
            if delimiter is None or "/" not in key[len(prefix) :]:
                branch.append(_entries(objects, key))
            elif key > start_after and _holds_an_object(objects, key):
                yield Directory(key)
        elif key.startswith(prefix) and key > start_after:
            try:
                info = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue  # deleted meanwhile
            yield info_of(key, info)


def _holds_an_object(objects: ObjectFiles, directory: str) -> bool:
    return next(list_entries(objects, directory, None, ""), None) is not None


def _entries(objects: ObjectFiles, directory: str) -> Iterator[_Found]:
    """Files and directories (with a slash behind) directly below, by key, in order."""
    found: list[_Found] = []
    with disk_errors("list", directory):
        try:
            with os.scandir(objects.path(directory) or "/") as entries:
                for entry in entries:
                    breathe()
                    if entry.is_dir(follow_symlinks=False):
                        if entry.name != STAGING and _is_name(entry.name):
                            found.append((f"{directory}{entry.name}/", entry))
                    elif entry.is_file(follow_symlinks=False) and _is_name(entry.name):
                        found.append((directory + entry.name, entry))
        except (FileNotFoundError, NotADirectoryError):
            return iter(())
    found.sort(key=lambda each: each[0])
    return iter(found)


def _is_name(name: str) -> bool:
    """What nobody could ask for by key is not listed."""
    try:
        check_key(name)
    except ConfigError:
        return False
    return True
