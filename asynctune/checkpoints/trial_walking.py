"""Owns finding the own files of a trial in its directory, on its node and on the head. Blocking, for a thread."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress

from asynctune.breathing import breathe
from asynctune.checkpoints.tree import Tree, TreeFile
from asynctune.checkpoints.trial_paths import LOG_FILES, belongs_to_trial, check_trial_path
from asynctune.errors import ConfigError

__all__ = ["has_own_files", "own_files", "walk_own"]

logger = logging.getLogger("asynctune")


def walk_own(
    root: str, refused: Callable[[str, ConfigError], None] | None = None
) -> Iterator[tuple[str, os.stat_result]]:
    """The regular files below a trial's directory that are the trial's own; no link is followed, and none is one.

    Args:
        root: Absolute path of the trial's directory.
        refused: Told of one that cannot travel, and why.
    """
    pending = [""]
    while pending:
        below = pending.pop()
        with (
            suppress(FileNotFoundError, NotADirectoryError),
            os.scandir(os.path.join(root, below)) as entries,
        ):
            for entry in entries:
                path = f"{below}/{entry.name}" if below else entry.name
                if not belongs_to_trial(path):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    pending.append(path)
                elif entry.is_file(follow_symlinks=False):
                    try:
                        check_trial_path(path)
                    except ConfigError as error:
                        if refused is not None:
                            refused(path, error)
                        continue
                    with suppress(FileNotFoundError):
                        yield path, entry.stat(follow_symlinks=False)


def has_own_files(root: str) -> bool:
    """Whether earlier starts have left files there that a further one may go on with; what they printed is none.

    Also where that cannot be seen: whoever needs them is told why.
    """
    try:
        return any(path not in LOG_FILES for path, _ in walk_own(root))
    except OSError:
        return True


def own_files(root: str) -> Tree:
    """Those files, as something that can be lent to a node (`lending.TreeSource`)."""
    tree = Tree(os.path.realpath(root), 0o700)
    for path, info in walk_own(root, _stays):
        breathe()
        if path not in LOG_FILES:
            source = os.path.join(tree.root, path)
            mode = stat.S_IMODE(info.st_mode)
            tree.files.append(
                TreeFile(path, source, info.st_size, info.st_mtime_ns, info.st_ino, mode, info.st_nlink == 1)
            )
    tree.files.sort(key=lambda file: file.path)
    parents = {os.path.dirname(file.path) for file in tree.files} - {""}
    for parent in list(parents):
        while parent := os.path.dirname(parent):
            parents.add(parent)
    tree.directories = [(path, 0o755) for path in sorted(parents)]
    return tree


def _stays(path: str, why: ConfigError) -> None:
    logger.warning("%a is not brought to the node of its trial: %s", path, why)
