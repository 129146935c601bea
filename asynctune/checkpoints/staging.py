"""Owns how a user's files become a stage: a directory taken by rename, or copied by reflink or byte by byte.

Stages lie below `<experiment>/.asynctune/staging/`, on the filesystem of the experiment, until they are
committed. Never is a file hard-linked: the trial could write through its own name for it.

With `move=True` the directory is taken by rename when each file in it has one name and is no link; it is
hashed where it is, and goes back if anything fails. Otherwise (another filesystem, hard links, symbolic
links) it is copied, and the source is removed only after the record is durable.

A worker process without a store stages next to the trial by `stage_for_adoption`; what it returns travels to
the driver, which commits it without copying or hashing anything again.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from asynctune.checkpoints.breathing import FILES_BETWEEN_BREATHS, breathe
from asynctune.checkpoints.copying import FileTask, read_files
from asynctune.checkpoints.disk import DiskThreads, disk_errors
from asynctune.checkpoints.manifest import Manifest, ManifestError
from asynctune.checkpoints.records import is_checkpoint_name
from asynctune.checkpoints.stage import Stage, look, require_unchanged
from asynctune.checkpoints.tree import Tree, private_mode
from asynctune.checkpoints.verify import VerifyReport, copy_verified
from asynctune.errors import ConfigError
from asynctune.files import DIR_MODE, FILE_MODE, LocalFiles
from asynctune.trial import MANIFEST_FILE

__all__ = ["STAGED_PREFIX", "StagedCheckpoint", "Staging", "give_up", "stage_for_adoption"]

STAGED_PREFIX: Final = ".staged-"
"""How the names of directories begin that wait next to a trial for their adoption."""

_ONLY_FILES: Final = "save a directory with the checkpoint's files only"


@dataclass(frozen=True, slots=True)
class StagedCheckpoint:
    """A directory that was staged, hashed and synced, and waits to be adopted; it may be sent anywhere.

    Attributes:
        path: Absolute path of the directory.
        manifest: What it holds.
    """

    path: str
    manifest: Manifest

    def to_value(self) -> dict[str, Any]:
        """As a msgpack value, for a pipe."""
        return {"path": self.path, "manifest": self.manifest.encode()}

    @classmethod
    def from_value(cls, value: Mapping[str, Any]) -> StagedCheckpoint:
        """Take back what `to_value` made.

        Raises:
            ConfigError: It is something else.
        """
        try:
            path, encoded = value["path"], value["manifest"]
            if not isinstance(path, str) or not isinstance(encoded, bytes):
                raise TypeError("path must be text and manifest bytes")
            return cls(path, Manifest.decode(encoded))
        except (KeyError, TypeError, ManifestError) as error:
            raise ConfigError(
                f"not a staged checkpoint ({error!r}); make one with stage_for_adoption"
            ) from error


async def stage_for_adoption(
    directory: str | os.PathLike[str],
    target_parent: str | os.PathLike[str],
    *,
    move: bool = False,
    files: LocalFiles | None = None,
) -> StagedCheckpoint:
    """Stage a directory where no store is open, such as in a worker process; the driver adopts it.

    Without a loop: `asyncio.run(stage_for_adoption(...))`.

    Args:
        directory: The files.
        target_parent: Where the staged directory is made, on the experiment's filesystem: the trial's
            directory.
        move: Give the directory away, which spares the copy on one filesystem.
        files: The operating system; tests replace it.

    Raises:
        ConfigError: Something that a checkpoint cannot hold.
        StorageError: The disk said no, or the files were written to meanwhile; nothing is left behind.
    """
    files = LocalFiles() if files is None else files
    threads = DiskThreads()
    name = STAGED_PREFIX + secrets.token_hex(8)
    try:
        with disk_errors("stage a checkpoint", os.fspath(directory)):
            parent = await threads.run(os.path.realpath, target_parent)
            stage = Stage(files, os.path.join(parent, name), "move" if move else "copy")
            try:
                tree = await threads.run(look, os.fspath(directory))
                await _fill(threads, files, stage, tree, move=move)
                manifest = await threads.run(stage.manifest)
                await threads.run(stage.write_manifest, manifest)
                await threads.run(files.sync_dir, parent)
            except BaseException as error:
                await give_up(threads, stage, error)
                raise
            if stage.source is not None:
                # The staged copy is durable and complete, and belongs to the driver from now on.
                await threads.run(files.remove_tree, stage.source)
    finally:
        threads.close()
    return StagedCheckpoint(stage.path, manifest)


async def give_up(threads: DiskThreads, stage: Stage, error: BaseException) -> None:
    """Withdraw the stage because of `error`, which is told what cannot be removed; nothing is raised."""
    try:
        await threads.run(stage.withdraw)
    except OSError as left:
        error.add_note(f"{stage.path} could not be cleaned up either ({left}); the next opening does")


class Staging:
    """Makes stages below one experiment.

    Args:
        experiment_dir: Absolute path.
        files: The operating system.
        threads: Where blocking calls go.
        nonce: Tells the stages of this opening from those of others.
    """

    def __init__(self, experiment_dir: str, *, files: LocalFiles, threads: DiskThreads, nonce: str) -> None:
        self._experiment_dir = experiment_dir
        self._files = files
        self._threads = threads
        self._count = 0
        self._nonce = nonce
        self.root: Final = os.path.join(experiment_dir, ".asynctune", "staging")

    def _stage(self, how: str) -> Stage:
        self._count += 1
        return Stage(self._files, os.path.join(self.root, f"{how}-{self._nonce}-{self._count}"), how)

    async def of_directory(self, source: str, *, move: bool) -> Stage:
        """A stage with the files of a user's directory.

        Raises:
            ConfigError: Something that a checkpoint cannot hold, or a directory that is part of the
                experiment.
            SourceError: A file cannot be read, or was written to meanwhile.
            OSError: The stage cannot be written.
        """
        tree = await self._threads.run(self._look, source, move)
        stage = self._stage("move" if move else "copy")
        try:
            await _fill(self._threads, self._files, stage, tree, move=move)
        except BaseException as error:
            await give_up(self._threads, stage, error)
            raise
        return stage

    async def of_value(self, packed: bytes) -> Stage:
        """A stage with what `Checkpoint.from_dict` was given."""
        stage = self._stage("copy")

        def write() -> Tree:
            stage.make()
            stage.write_value(packed)
            return look(stage.path)

        try:
            tree = await self._threads.run(write)
            tasks = [FileTask(file.path, file.source, file.size) for file in tree.files]
            stage.entries = await read_files(self._threads, self._files, tasks, durable=True)
        except BaseException as error:
            await give_up(self._threads, stage, error)
            raise
        return stage

    async def of_committed(self, path: str, manifest_sha256: str) -> tuple[Stage | None, VerifyReport]:
        """A stage with a verified copy of a committed directory; none if that is damaged: see the report."""
        return await self.of_filled(
            lambda to: copy_verified(
                path, manifest_sha256, to, files=self._files, threads=self._threads, durable=True
            )
        )

    async def of_filled(
        self, fill: Callable[[str], Awaitable[VerifyReport]]
    ) -> tuple[Stage | None, VerifyReport]:
        """A stage with what `fill` brings, verified and durable, into the empty directory it is given."""
        stage = self._stage("clone")
        try:
            await self._threads.run(stage.make)
            report = await fill(stage.path)
            if report.manifest is None or not report.intact:
                await self._threads.run(stage.withdraw)
                return None, report
        except BaseException as error:
            await give_up(self._threads, stage, error)
            raise
        stage.entries = report.manifest.files
        stage.empty_directories = report.manifest.empty_directories
        return stage, report

    async def of_staged(self, staged: StagedCheckpoint | str) -> Stage:
        """A stage of a directory that is staged already: it is looked at, and neither copied nor read.

        Raises:
            ConfigError: It is not a staged directory, or not the one that was announced.
            OSError: It cannot be read.
        """
        stage = self._stage("adopt")
        manifest, tree = await self._threads.run(self._look_at_staged, staged)
        stage.take_adopted(tree)
        stage.entries, stage.empty_directories = manifest.files, manifest.empty_directories
        return stage

    # -- looking, in a thread ------------------------------------------------------------------------

    def _look(self, source: str, move: bool) -> Tree:
        real, home = os.path.realpath(source), os.path.realpath(self._experiment_dir)
        if home == real or home.startswith(real.rstrip("/") + "/"):
            raise ConfigError(f"{source} holds the experiment itself; {_ONLY_FILES}")
        if real.startswith(home + "/"):
            self._require_free(source, os.path.relpath(real, home).split("/"), move=move)
        return look(real)

    def _require_free(self, source: str, parts: list[str], *, move: bool) -> None:
        """Refuse what the experiment itself consists of."""
        own = parts[0] == ".asynctune" and (len(parts) < 3 or parts[1] != "restored")  # noqa: PLR2004
        committed = any(
            is_checkpoint_name(name)
            and os.path.lexists(os.path.join(self._experiment_dir, *parts[: depth + 1], MANIFEST_FILE))
            for depth, name in enumerate(parts)
        )
        if committed and (move or is_checkpoint_name(parts[-1])):
            raise ConfigError(
                f"{source} is a committed checkpoint and stays as it is; "
                "use clone_checkpoint or restore_checkpoint"
            )
        if not own and len(parts) == 1:  # a trial's directory
            own = any(is_checkpoint_name(name) for name in os.listdir(source))
        if own:
            raise ConfigError(f"{source} belongs to the experiment; {_ONLY_FILES}")

    def _look_at_staged(self, staged: StagedCheckpoint | str) -> tuple[Manifest, Tree]:
        path = staged if isinstance(staged, str) else staged.path
        hint = "stage it again with stage_for_adoption"
        if is_checkpoint_name(os.path.basename(path.rstrip("/"))):
            raise ConfigError(f"{path} is a committed checkpoint; use clone_checkpoint, which copies it")
        try:
            manifest = Manifest.decode(self._files.read(os.path.join(path, MANIFEST_FILE)))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise ConfigError(f"{path} is no staged checkpoint: it has no {MANIFEST_FILE}; {hint}") from error
        except ManifestError as error:
            raise ConfigError(f"the manifest in {path} cannot be used: {error}; {hint}") from error
        if isinstance(staged, StagedCheckpoint) and manifest.files != staged.manifest.files:
            raise ConfigError(f"{path} holds other files than were announced; {hint}")
        tree = look(path, committed=True)
        if {file.path: file.size for file in tree.files if file.sole} != manifest.sizes:
            raise ConfigError(f"the files in {path} are not those of its manifest; {hint}")
        if os.stat(tree.root).st_dev != os.stat(self._experiment_dir).st_dev:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), path)
        return manifest, tree


async def _fill(threads: DiskThreads, files: LocalFiles, stage: Stage, tree: Tree, *, move: bool) -> None:
    """Bring the tree's files into the stage, durably; the caller gives the stage up when this fails."""
    taken = await threads.run(_begin, stage, tree, move=move)
    tasks = await threads.run(_tasks, stage, tree, taken)
    stage.entries = await read_files(threads, files, tasks, durable=True)
    stage.empty_directories = tree.empty_directories
    await threads.run(require_unchanged, tree, stage.path if taken else tree.root)
    await threads.run(stage.seal, tree)
    if move and not taken:
        stage.source = tree.root


def _begin(stage: Stage, tree: Tree, *, move: bool) -> bool:
    """Take the directory, or make another one for copies; whether it was taken."""
    if move and tree.movable and stage.take(tree):
        return True
    stage.make(private_mode(tree.mode, DIR_MODE))
    stage.make_directories(tree)
    return False


def _tasks(stage: Stage, tree: Tree, taken: bool) -> list[FileTask]:
    tasks = []
    for number, file in enumerate(tree.files):
        if number % FILES_BETWEEN_BREATHS == 0:
            breathe()
        place = os.path.join(stage.path, file.path)
        tasks.append(
            FileTask(
                path=file.path,
                source=place if taken else file.source,
                size=file.size,
                target=None if taken else place,
                mode=private_mode(file.mode, FILE_MODE),
                seal=taken,
            )
        )
    return tasks
