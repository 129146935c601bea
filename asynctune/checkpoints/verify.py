"""Owns the question whether a committed directory still is what was recorded, and copies that answer it.

The outcome is a value, a `VerifyReport`: whoever asked decides what damage means. Reading is streamed and off
the event loop.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from asynctune.checkpoints.breathing import FILES_BETWEEN_BREATHS, breathe
from asynctune.checkpoints.copying import FileTask, read_files
from asynctune.checkpoints.disk import DiskThreads, SourceError
from asynctune.checkpoints.manifest import Manifest, ManifestError, ManifestFile, digest_of
from asynctune.checkpoints.tree import private_mode
from asynctune.files import DIR_MODE, FILE_MODE, LocalFiles
from asynctune.trial import MANIFEST_FILE

__all__ = [
    "Problem",
    "VerifyReport",
    "copy_verified",
    "make_directories",
    "sync_directories",
    "verify_directory",
]

ProblemKind = Literal["manifest", "missing", "size", "content", "unreadable", "extra"]

_SHOWN: Final = 3
_ABSENT: Final = "is missing, with its whole directory"
_OURS: Final = {
    errno.EACCES,
    errno.EPERM,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.ESTALE,
    errno.EINTR,
}


@dataclass(frozen=True, slots=True)
class Problem:
    """One difference between a directory and what was recorded of it.

    Attributes:
        kind: `"manifest"` (missing, damaged or another one), `"missing"`, `"size"`, `"content"` (checksums),
            `"unreadable"`, or `"extra"`: something that was put there later.
        path: Relative path of the file.
        detail: What is wrong, in words.
    """

    kind: ProblemKind
    path: str
    detail: str

    def __str__(self) -> str:
        return f"{self.path}: {self.detail}"


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What the verification of one directory found.

    Attributes:
        path: The directory.
        problems: Everything found.
        manifest: Its manifest, where that is the recorded one.
    """

    path: str
    problems: tuple[Problem, ...] = ()
    manifest: Manifest | None = None

    @property
    def ok(self) -> bool:
        """Whether it is exactly what was recorded."""
        return not self.problems

    @property
    def intact(self) -> bool:
        """Whether every recorded file is as it was; something extra may lie beside them."""
        return all(problem.kind == "extra" for problem in self.problems)

    @property
    def absent(self) -> bool:
        """Whether not even the directory is there."""
        return any(problem.detail == _ABSENT for problem in self.problems)

    def __str__(self) -> str:
        if self.ok:
            return f"{self.path} is intact"
        more = f" and {len(self.problems) - _SHOWN} more" if len(self.problems) > _SHOWN else ""
        return "; ".join(map(str, self.problems[:_SHOWN])) + more


async def verify_directory(
    path: str, manifest_sha256: str, *, files: LocalFiles, threads: DiskThreads, contents: bool = True
) -> VerifyReport:
    """Compare a committed directory with its manifest, and the manifest with its record.

    Args:
        path: Absolute path of the directory.
        manifest_sha256: The manifest's digest in the record.
        files: Reads the manifest.
        threads: Where the blocking calls go.
        contents: Read every byte; otherwise names and sizes only.

    Raises:
        OSError: It cannot be told, because this process may not read it or has no descriptors left.
    """
    layout = await threads.run(_check_layout, files, path, manifest_sha256)
    problems = list(layout.problems)
    if contents:
        problems += await _read(threads, files, layout, None, durable=False)
    return VerifyReport(path, tuple(problems), layout.manifest)


async def copy_verified(
    path: str, manifest_sha256: str, target: str, *, files: LocalFiles, threads: DiskThreads, durable: bool
) -> VerifyReport:
    """Copy the files of a committed directory into the empty directory `target`, and verify the copies.

    Nothing is copied where names and sizes are wrong already; extra files are not copied. When this fails, or
    the report is not `intact`, what `target` holds is of no use and is the caller's to remove.

    Raises:
        OSError: `target` cannot be written, or it cannot be told whether the source is intact.
    """
    layout = await threads.run(_check_layout, files, path, manifest_sha256)
    report = VerifyReport(path, tuple(layout.problems), layout.manifest)
    if layout.manifest is None or not report.intact:
        return report
    directories = await threads.run(make_directories, files, target, layout.manifest)
    problems = await _read(threads, files, layout, target, durable=durable)
    if durable:
        await threads.run(sync_directories, files, target, directories)
    return VerifyReport(path, (*report.problems, *problems), layout.manifest)


@dataclass(slots=True)
class _Layout:
    """What can be told without reading files: which are there, with permission bits, and what is wrong."""

    path: str
    manifest: Manifest | None
    present: list[tuple[ManifestFile, int]]
    problems: list[Problem]


def _check_layout(files: LocalFiles, path: str, digest: str) -> _Layout:
    manifest, problem = _load_manifest(files, path, digest)
    if manifest is None:
        return _Layout(path, None, [], [] if problem is None else [problem])
    layout = _Layout(path, manifest, [], [])
    for number, file in enumerate(manifest.files):
        if number % FILES_BETWEEN_BREATHS == 0:
            breathe()
        _check_file(layout, file)
    known = {file.path for file in manifest.files} | {MANIFEST_FILE}
    extra = sorted(_names(path) - known)
    layout.problems += [Problem("extra", name, "is not in the manifest") for name in extra]
    return layout


def _check_file(layout: _Layout, file: ManifestFile) -> None:
    try:
        info = os.lstat(os.path.join(layout.path, file.path))
    except OSError as error:
        if not isinstance(error, FileNotFoundError | NotADirectoryError):
            _raise_if_ours(error)
        layout.problems.append(Problem("missing", file.path, "is missing"))
        return
    if not stat.S_ISREG(info.st_mode):
        layout.problems.append(Problem("content", file.path, "is no regular file any more"))
    elif info.st_size != file.size_bytes:
        detail = f"has {info.st_size:,} bytes instead of {file.size_bytes:,}"
        layout.problems.append(Problem("size", file.path, detail))
    else:
        layout.present.append((file, stat.S_IMODE(info.st_mode)))


def _names(path: str) -> set[str]:
    found: set[str] = set()
    for directory, _, names in os.walk(path):
        breathe()
        relative = os.path.relpath(directory, path)
        found.update(name if relative == "." else f"{relative}/{name}" for name in names)
    return found


def _load_manifest(files: LocalFiles, path: str, digest: str) -> tuple[Manifest | None, Problem | None]:
    try:
        encoded = files.read(os.path.join(path, MANIFEST_FILE))
    except (FileNotFoundError, NotADirectoryError):
        what = "is missing" if files.exists(path) else _ABSENT
        return None, Problem("manifest", MANIFEST_FILE, what)
    except OSError as error:
        _raise_if_ours(error)
        return None, Problem("unreadable", MANIFEST_FILE, error.strerror or str(error))
    if digest_of(encoded) != digest:
        return None, Problem("manifest", MANIFEST_FILE, "is not the recorded one (its SHA-256 differs)")
    try:
        return Manifest.decode(encoded), None
    except ManifestError as error:
        return None, Problem("manifest", MANIFEST_FILE, str(error))


def _raise_if_ours(error: OSError) -> None:
    """Raise an error that says something about this process or the moment, not about the checkpoint."""
    if error.errno in _OURS:
        raise error


async def _read(
    threads: DiskThreads, files: LocalFiles, layout: _Layout, target: str | None, *, durable: bool
) -> list[Problem]:
    tasks = await threads.run(_tasks, layout, target)
    unreadable: list[SourceError] = []
    read = await read_files(threads, files, tasks, durable=durable, unreadable=unreadable)
    return await threads.run(_compare, layout, read, unreadable)


def _tasks(layout: _Layout, target: str | None) -> list[FileTask]:
    tasks = []
    for number, (file, mode) in enumerate(layout.present):
        if number % FILES_BETWEEN_BREATHS == 0:
            breathe()
        tasks.append(
            FileTask(
                path=file.path,
                source=os.path.join(layout.path, file.path),
                size=file.size_bytes,
                target=None if target is None else os.path.join(target, file.path),
                mode=private_mode(mode, FILE_MODE),
            )
        )
    return tasks


def _compare(
    layout: _Layout, read: Sequence[ManifestFile], unreadable: Sequence[SourceError]
) -> list[Problem]:
    problems = []
    for error in unreadable:
        if error.error is not None:
            _raise_if_ours(error.error)
        problems.append(Problem("unreadable", error.path.removeprefix(layout.path + "/"), error.reason))
    expected = {file.path: file for file, _ in layout.present}
    problems += [_difference(expected[file.path], file) for file in read if file != expected[file.path]]
    return sorted(problems, key=lambda problem: problem.path)


def _difference(expected: ManifestFile, actual: ManifestFile) -> Problem:
    crc, sha = expected.crc32c != actual.crc32c, expected.sha256 != actual.sha256
    which = "CRC-32C and SHA-256 differ" if crc and sha else "SHA-256 differs" if sha else "CRC-32C differs"
    return Problem("content", expected.path, f"has other content than was recorded ({which})")


def _directories(manifest: Manifest) -> list[str]:
    """Relative paths of the directories that its files need, and of its empty ones, parents first."""
    wanted = set(manifest.empty_directories)
    for path in [*(file.path for file in manifest.files), *manifest.empty_directories]:
        end = path.rfind("/")
        while end > 0 and path[:end] not in wanted:
            wanted.add(path[:end])
            end = path.rfind("/", 0, end)
    return sorted(wanted)


def make_directories(files: LocalFiles, target: str, manifest: Manifest) -> list[str]:
    """In a thread: make the directories of a checkpoint in the empty directory `target`; their relative paths."""
    directories = _directories(manifest)
    for relative in directories:
        files.make_dir(os.path.join(target, relative), DIR_MODE)
    return directories


def sync_directories(files: LocalFiles, target: str, directories: Sequence[str]) -> None:
    """In a thread: make the names in them, and in `target`, durable."""
    for relative in reversed(directories):
        files.sync_dir(os.path.join(target, relative))
    files.sync_dir(target)
