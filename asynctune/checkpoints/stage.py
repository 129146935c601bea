"""Owns one checkpoint directory between nothing and committed: filled, sealed, put in its place, or given up.

Every method blocks and is for a thread. A `Stage` knows at any moment where its files are, so that whatever
fails or is cancelled, `withdraw` leaves nothing behind: a copy is removed, a directory that was taken goes
back.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Sequence
from typing import Final

from asynctune.checkpoints.disk import SourceError
from asynctune.checkpoints.manifest import Manifest, ManifestFile, digest_of
from asynctune.checkpoints.tree import Tree, private_mode, scan_tree
from asynctune.errors import ConfigError
from asynctune.files import DIR_MODE, FILE_MODE, LocalFiles
from asynctune.trial import DICT_FILE, MANIFEST_FILE

__all__ = ["Stage", "ensure_directory", "look", "require_unchanged"]

logger = logging.getLogger("asynctune")

# A rename that the filesystem does not offer for this directory; its files can still be copied.
_CANNOT_RENAME: Final = {errno.EXDEV, errno.EBUSY, errno.EPERM, errno.EACCES, errno.EINVAL}


def ensure_directory(files: LocalFiles, path: str, *, private: bool = False) -> None:
    """Make one directory, durably, unless it is there; a private one is asynctune's own affair."""
    if files.exists(path):
        return
    try:
        if private:
            files.make_dir(path)
        else:
            files.make_plain_dir(path)
    except FileExistsError:
        return
    files.sync_dir(os.path.dirname(path))


class Stage:
    """A checkpoint directory that is not committed yet.

    Attributes:
        how: Where its files come from: `"copy"`, `"move"`, `"adopt"`, `"clone"`, for events.
        path: Where the directory is now, or will be; meaningless once withdrawn.
        entries: Its files, once they were read.
        empty_directories: Its directories without anything in them.
        source: A directory whose files were copied although it was given away: to be removed when the record
            is durable, not before.
    """

    def __init__(self, files: LocalFiles, path: str, how: str) -> None:
        self.how = how
        self.path = path
        self.entries: Sequence[ManifestFile] = ()
        self.empty_directories: Sequence[str] = ()
        self.source: str | None = None
        self._files = files
        self._staged_at = path
        self._manifest_at = f"{path}.manifest"
        self._exists = False
        self._origin: str | None = None

    # -- filling -------------------------------------------------------------------------------------

    def make(self, mode: int = DIR_MODE) -> None:
        """Start with an empty directory."""
        ensure_directory(self._files, os.path.dirname(self.path), private=True)
        self._exists = True  # before the call: it may fail after the directory was made
        self._files.make_dir(self.path, mode)

    def make_directories(self, tree: Tree) -> None:
        """Make the tree's directories, empty."""
        for relative, mode in tree.directories:
            self._files.make_dir(self._below(relative), private_mode(mode, DIR_MODE))

    def write_value(self, packed: bytes) -> None:
        """Write what `Checkpoint.from_dict` was given, as the one file of the checkpoint."""
        target = self._below(DICT_FILE)
        fd = self._files.create(target, FILE_MODE)
        try:
            self._files.write_all(fd, packed)
            self._files.sync(fd)
        finally:
            self._files.close(fd)

    def take(self, tree: Tree) -> bool:
        """Take the tree's directory by rename; False where that cannot be done, and it stands untouched."""
        ensure_directory(self._files, os.path.dirname(self.path), private=True)
        try:
            self._files.rename(tree.root, self.path)
        except OSError as error:
            if error.errno in _CANNOT_RENAME:
                return False
            raise
        self._exists, self._origin = True, tree.root
        return True

    def take_adopted(self, tree: Tree) -> None:
        """Take a directory that was staged elsewhere; it goes back there when this is given up."""
        self.path = self._staged_at = tree.root
        self._exists, self._origin = True, tree.root

    def seal(self, tree: Tree) -> None:
        """Give the directories their permission bits and make the names in them durable, deepest first."""
        for relative, mode in [*reversed(tree.directories), ("", tree.mode)]:
            fd = self._files.open_read(self._below(relative))
            try:
                self._files.set_mode(fd, private_mode(mode, DIR_MODE))
                self._files.sync(fd)
            finally:
                self._files.close(fd)

    def _below(self, relative: str) -> str:
        return os.path.join(self.path, relative) if relative else self.path

    def manifest(self) -> Manifest:
        """The manifest of its files, before it is known whose they are."""
        return Manifest(
            step=0,
            epoch=0,
            attempt=0,
            files=tuple(sorted(self.entries, key=lambda file: file.path)),
            empty_directories=tuple(self.empty_directories),
        )

    # -- ending --------------------------------------------------------------------------------------

    def place(self, manifest: Manifest, parent: str, names: Sequence[str]) -> str:
        """Write the manifest, and put the directory below `parent` by the first free one of `names`.

        Everything is durable when this returns, except that no record names it.

        Returns:
            The manifest's digest.
        """
        digest = self.write_manifest(manifest)
        ensure_directory(self._files, parent)
        target = parent
        for name in names:
            target = os.path.join(parent, name)
            # rename(2) replaces an empty directory: a name that is there is never used, whatever is in it.
            if not self._files.exists(target):
                break
        else:
            raise FileExistsError(errno.EEXIST, "a directory without a record is in the way", target)
        self._files.rename(self.path, target)
        self.path = target
        self._files.sync_dir(parent)
        # Whoever made the trial's directory may not have synced its name.
        self._files.sync_dir(os.path.dirname(parent))
        return digest

    def write_manifest(self, manifest: Manifest) -> str:
        """Write the manifest durably: last, so that a directory that has one is complete; returns its digest."""
        encoded = manifest.encode()
        # Not in the directory itself: one that is given up or crashed upon must not hold half a manifest.
        ensure_directory(self._files, os.path.dirname(self._manifest_at), private=True)
        temporary = self._manifest_at
        fd = self._files.create(temporary, FILE_MODE)
        try:
            try:
                self._files.write_all(fd, encoded)
                self._files.sync(fd)
            finally:
                self._files.close(fd)
            self._files.rename(temporary, self._below(MANIFEST_FILE))
        except BaseException:
            if self._files.exists(temporary):
                self._files.unlink(temporary)
            raise
        self._files.sync_dir(self.path)
        return digest_of(encoded)

    def withdraw(self) -> None:
        """Give it up: remove a copy, put a directory that was taken back where it was."""
        if not self._exists:
            return
        if self._origin is None:
            if self._files.exists(self.path):
                self._files.remove_tree(self.path)
        else:
            manifest = self._below(MANIFEST_FILE)
            if self.how == "move" and self._files.exists(manifest):
                self._files.unlink(manifest)
            self._put_back(self._origin)
        self._exists = False

    def _put_back(self, origin: str) -> None:
        if self.path == origin:
            return
        if not self._files.exists(origin):
            self._files.rename(self.path, origin)
            return
        if self.path != self._staged_at:
            self._files.rename(self.path, self._staged_at)
        logger.warning(
            "%s exists again, so the files that were taken from there stay at %s", origin, self._staged_at
        )


def look(source: str, *, committed: bool = False) -> Tree:
    """`scan_tree`, refusing a directory without any file: nobody means to keep that."""
    tree = scan_tree(source, committed=committed)
    if not tree.files:
        raise ConfigError(f"{source} holds no files; write the checkpoint's files there first")
    return tree


def require_unchanged(before: Tree, root: str) -> None:
    """Compare with the directory as it is now.

    Raises:
        SourceError: Something was added, removed or written meanwhile.
    """
    now = scan_tree(root)
    then = {(file.path, file.size, file.mtime_ns, file.inode) for file in before.files}
    changed = then ^ {(file.path, file.size, file.mtime_ns, file.inode) for file in now.files}
    if changed:
        name = min(changed)[0]
        raise SourceError(os.path.join(root, name), "changed while it was being saved")
    if [path for path, _ in before.directories] != [path for path, _ in now.directories]:
        raise SourceError(root, "changed while it was being saved")
