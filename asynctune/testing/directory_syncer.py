"""Owns `DirectorySyncer`, the simplest `Syncer`: for tests, and for people to see what one is."""

from __future__ import annotations

import fnmatch
import os
import shutil
from collections.abc import Sequence

__all__ = ["DirectorySyncer"]


class DirectorySyncer:
    """A `Syncer` for directories of this machine, plain and blocking: the simplest that passes the suite.

    It removes what is not in the source, and takes a file of the same size and modification time for unchanged.

    Attributes:
        sent: Paths of the files that it has copied, in order.
    """

    def __init__(self) -> None:
        self.sent: list[str] = []

    def sync_up(self, local_dir: str, remote_dir: str, exclude: Sequence[str] | None = None) -> bool:
        """Copy to another directory."""
        os.makedirs(remote_dir, exist_ok=True)
        self._sync(local_dir, remote_dir, exclude or ())
        return True

    def sync_down(self, remote_dir: str, local_dir: str, exclude: Sequence[str] | None = None) -> bool:
        """Copy from it. Where there is none, nothing is copied."""
        if os.path.isdir(remote_dir):
            self._sync(remote_dir, local_dir, exclude or ())
        return True

    def delete(self, remote_dir: str) -> bool:
        """Delete it."""
        if os.path.isdir(remote_dir):
            shutil.rmtree(remote_dir)
        return True

    def _sync(self, source: str, target: str, exclude: Sequence[str]) -> None:
        wanted = _files(source, exclude)
        for path in _files(target, exclude).keys() - wanted.keys():
            os.unlink(os.path.join(target, path))
        for path, about in sorted(wanted.items()):
            place = os.path.join(target, path)
            if _about(place) != about:
                os.makedirs(os.path.dirname(place), exist_ok=True)
                shutil.copy2(os.path.join(source, path), f"{place}.part")
                os.replace(f"{place}.part", place)
                self.sent.append(path)


def _files(directory: str, exclude: Sequence[str]) -> dict[str, tuple[int, int] | None]:
    found = {}
    if not os.path.isdir(directory):
        raise NotADirectoryError(directory)
    for root, _, names in os.walk(directory):
        for name in names:
            path = os.path.relpath(os.path.join(root, name), directory)
            if not any(fnmatch.fnmatch(path, pattern) for pattern in exclude):
                found[path] = _about(os.path.join(root, name))
    return found


def _about(path: str) -> tuple[int, int] | None:
    try:
        info = os.stat(path)
    except FileNotFoundError:
        return None
    return info.st_size, info.st_mtime_ns
