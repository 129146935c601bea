"""Owns the state of an experiment as a `Syncer` carries it: immutable generations, named complete by a second call.

What the files and CURRENT hold is given from above, and not looked into. A generation is a directory with a name that
is used once, `<number>-<nonce of the opening>`, here and in the mirror below `.asynctune/export/`::

    files/     what no earlier generation of this opening has; copied by the first call
    current/   CURRENT: which generation has which file, with sizes and checksums, and the CURRENT of the state; copied
               by a second call, after the first has succeeded

Who reads takes the highest generation whose CURRENT and files are whole. Those of this opening refer to no directory of
another one. A generation is deleted when neither of the two newest named ones needs it: an older one is there while a
newer is on its way.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

import google_crc32c

from asynctune.checkpoints.breathing import breathe
from asynctune.checkpoints.context import logger
from asynctune.checkpoints.disk import DiskThreads, disk_errors
from asynctune.checkpoints.export_format import (
    FILE_NAME,
    GENERATION,
    MAX_CURRENT_BYTES,
    ExportEntry,
    decode_current,
    encode_current,
)
from asynctune.checkpoints.syncer_calls import SyncerCalls, make_place
from asynctune.errors import ConfigError, CorruptStateError, StorageError
from asynctune.files import LocalFiles
from asynctune.packing import UnpackError

__all__ = ["ExportFile", "FetchedExport", "StateExports"]

_EXPORT: Final = ".asynctune/export"
_CHUNK_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class ExportFile:
    """A file of the state, whose name is never used for another content.

    Attributes:
        name: Letters, digits, dots, dashes and underscores.
        source: Its bytes, or the absolute path of a file that has them and does not change.
    """

    name: str
    source: bytes | str


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchedExport:
    """What came back.

    Attributes:
        current: The CURRENT of the state, as it was given to `send`.
        files: Absolute path of each file that it was given with, by name.
        number: Of the generation.
        passed_over: Higher generations that are not whole: calls that failed, or damage.
    """

    current: bytes
    files: dict[str, str]
    number: int
    passed_over: tuple[str, ...] = ()


@dataclass(slots=True)
class _Known:
    """What the mirror has of this opening, and of others before."""

    number: int = 0
    named: list[dict[str, ExportEntry]] = field(default_factory=list)  # by the newest CURRENTs, newest first
    heads: list[str] = field(default_factory=list)
    others: set[str] = field(default_factory=set)  # to be deleted when nothing needs them


class StateExports:
    """Carries the state of one experiment by a `Syncer`, one generation at a time.

    Args:
        calls: The syncer.
        remote: The experiment's remote place.
        experiment_dir: Absolute path of the experiment, which exists with its `.asynctune`.
        files: The operating system.
        threads: Where the blocking calls go.
        nonce: 12 hex digits of this opening; drawn if not given.
        stage_dir: An existing directory where generations are frozen before `begin`, when the experiment's own may be
            another opening's yet, or not be there; `None`: there all the same.
    """

    def __init__(
        self,
        calls: SyncerCalls,
        remote: str,
        experiment_dir: str,
        *,
        files: LocalFiles,
        threads: DiskThreads,
        nonce: str | None = None,
        stage_dir: str | None = None,
    ) -> None:
        self._calls = calls
        self._remote = f"{remote.rstrip('/')}/{_EXPORT}"
        self._local = os.path.join(experiment_dir, *_EXPORT.split("/"))
        self._stage_dir = self._local if stage_dir is None else stage_dir
        self._files = files
        self._threads = threads
        self._nonce = nonce or secrets.token_hex(6)
        self._known = _Known()

    # -- there -------------------------------------------------------------------------------------------------

    async def send(self, files: Sequence[ExportFile], current: bytes) -> int:
        """Return when the mirror has this state, and names it; the number of its generation. One caller at a time.

        Args:
            files: All files that `current` needs. Those that the mirror has from this opening are not sent again.
            current: Which state it is; small.

        Raises:
            StorageError: The syncer or the disk failed. The mirror has the state before, or this one. Nothing is lost
                by calling again.
            ConfigError: A name that no file can have.
        """
        for file in files:
            if not FILE_NAME.fullmatch(file.name):
                raise ConfigError(f"no file of the state can be called {file.name!r}")
        known = self._known
        known.number += 1  # also after a failure: what that left is never added to
        name = f"{known.number:010d}-{self._nonce}"
        known.others.add(name)
        local = os.path.join(self._stage_dir, name)
        have = known.named[0] if known.named else {}
        with disk_errors("export the state", local):
            try:
                fresh = [file for file in files if file.name not in have]
                frozen = await self._threads.run(self._freeze, local, name, fresh)
                if fresh:
                    await self._calls.up(os.path.join(local, "files"), f"{self._remote}/{name}/files")
                named = {file.name: frozen.get(file.name) or have[file.name] for file in files}
                await self._threads.run(
                    self._write_current, local, encode_current(known.number, named, current)
                )
                await self._calls.up(os.path.join(local, "current"), f"{self._remote}/{name}/current")
                await self._threads.run(self._note, name)
            finally:
                await self._threads.run(self._remove, local)
        known.named = [named, *known.named[:1]]
        known.heads = [name, *known.heads[:1]]
        await self._delete_old()
        return known.number

    async def begin(self, after: int = 0) -> None:
        """Get ready to send: remove what a killed process left here, and go on with the numbers.

        Args:
            after: Number of the newest generation that is known from elsewhere.

        Raises:
            StorageError: The disk said no.
        """
        with disk_errors("export the state", self._local):
            left = await self._threads.run(self._begin)
        self._stage_dir = self._local
        self._known.others |= set(left)
        self._known.number = max(self._known.number, after, *map(_number, left), 0)

    async def _delete_old(self) -> None:
        """Delete what neither of the two newest CURRENTs needs. What fails is tried again with the next state."""
        known = self._known
        needed = {entry.generation for named in known.named for entry in named.values()} | set(known.heads)
        has_two = len(known.heads) > 1
        for name in sorted(known.others - needed):
            if not (has_two or name.endswith(self._nonce)):
                continue  # of an opening before, whose state is the second newest yet
            try:
                await self._calls.delete(f"{self._remote}/{name}")
            except StorageError as error:
                logger.warning("an old copy of the state stays in the mirror for now: %s", error)
                return
            known.others.discard(name)

    # -- and back ----------------------------------------------------------------------------------------------

    async def fetch(self, into: str, *, may_make: bool = False) -> FetchedExport | None:
        """Bring the newest whole state into the empty directory `into`; `None` where the mirror has none.

        Args:
            into: Absolute path; it may be left with other things in it.
            may_make: Some syncers fail where there is nothing to bring, as they do when the mirror is away. If that
                happens, something is put there and it is tried again, so that the two can be told apart.

        Raises:
            CorruptStateError: There is one, and no generation of it is whole.
            UnsupportedFormatError: It was written by a newer asynctune.
            StorageError: The syncer or the disk failed.
        """
        with disk_errors("fetch the state", into):
            try:
                await self._calls.down(self._remote, into)
            except StorageError:
                if not may_make:
                    raise
                await make_place(self._calls, f"{self._remote}/place", into, self._files, self._threads)
                await self._calls.down(self._remote, into)
            found = await self._threads.run(self._newest, into)
        if found is not None:
            for name in found.passed_over:
                logger.warning("the state %s in the mirror is not whole; an older one is used", name)
        return found

    # -- in a thread -------------------------------------------------------------------------------------------

    def _begin(self) -> list[str]:
        """Names of generations of the opening before, as far as they are known here."""
        try:
            names = self._files.list_dir(self._local)
        except FileNotFoundError:
            self._files.make_dir(self._local)
            return []
        for name in names:
            if GENERATION.fullmatch(name):
                self._remove(os.path.join(self._local, name))
        notes = self._read_note()
        return [*{*notes, *(name for name in names if GENERATION.fullmatch(name))}]

    def _freeze(self, local: str, name: str, files: Iterable[ExportFile]) -> dict[str, ExportEntry]:
        with suppress(FileExistsError):
            self._files.make_dir(self._stage_dir)
        self._files.make_dir(local)
        directory = os.path.join(local, "files")
        self._files.make_dir(directory)
        frozen = {}
        for file in files:
            target = os.path.join(directory, file.name)
            if isinstance(file.source, bytes):
                self._write(target, file.source)
            else:
                self._take(file.source, target)
            frozen[file.name] = ExportEntry(name, *self._checksum(target))
        return frozen

    def _take(self, source: str, target: str) -> None:
        """By another name for it; by copying it where that cannot be."""
        try:
            self._files.link(source, target)
            return
        except FileNotFoundError:
            raise
        except OSError:
            self._write(target, self._files.read(source))

    def _write(self, path: str, data: bytes) -> None:
        fd = self._files.create(path)
        try:
            self._files.write_all(fd, data)
        finally:
            self._files.close(fd)

    def _write_current(self, local: str, data: bytes) -> None:
        directory = os.path.join(local, "current")
        self._files.make_dir(directory)
        self._write(os.path.join(directory, "CURRENT"), data)

    def _note(self, name: str) -> None:
        """Write down which generations the next opening finds in the mirror; not worth a sync."""
        if self._stage_dir != self._local:
            return
        fresh = os.path.join(self._local, "sent.new")
        with suppress(FileNotFoundError):
            self._files.unlink(fresh)
        names = sorted({name, *self._known.others, *self._known.heads})
        self._write(fresh, "".join(f"{each}\n" for each in names).encode())
        self._files.rename(fresh, os.path.join(self._local, "sent"))

    def _read_note(self) -> list[str]:
        try:
            text = self._files.read(os.path.join(self._local, "sent")).decode("ascii", "replace")
        except FileNotFoundError:
            return []
        return [name for name in text.split("\n") if GENERATION.fullmatch(name)]

    def _remove(self, path: str) -> None:
        with suppress(FileNotFoundError):
            self._files.remove_tree(path)

    def _checksum(self, path: str) -> tuple[int, int]:
        size, crc32c = 0, 0
        while data := self._files.read_from(path, size, _CHUNK_BYTES):
            crc32c = google_crc32c.extend(crc32c, data)
            size += len(data)
            breathe()
        return size, crc32c

    def _newest(self, root: str) -> FetchedExport | None:
        names = sorted(
            (each for each in self._files.list_dir(root) if GENERATION.fullmatch(each)), reverse=True
        )
        self._known.others |= set(names)
        self._known.number = max([self._known.number, *map(_number, names)])
        bad: list[str] = []
        begun = False
        for name in names:
            path = os.path.join(root, name, "current", "CURRENT")
            try:
                data = self._files.read_from(path, 0, MAX_CURRENT_BYTES + 1)
            except (FileNotFoundError, NotADirectoryError):
                continue  # its first call, at most
            begun = True
            try:
                number, named, current = decode_current(data)
            except UnpackError:
                bad.append(name)
                continue
            files = {
                each: os.path.join(root, entry.generation, "files", each) for each, entry in named.items()
            }
            if all(self._is_whole(files[each], entry) for each, entry in named.items()):
                return FetchedExport(current=current, files=files, number=number, passed_over=tuple(bad))
            bad.append(name)
        if begun:
            raise CorruptStateError(
                f"no state in the mirror of {self._calls.name} is whole ({', '.join(bad)}); look into {_EXPORT} there",
                path=_EXPORT,
            )
        return None

    def _is_whole(self, path: str, entry: ExportEntry) -> bool:
        try:
            return self._checksum(path) == (entry.size_bytes, entry.crc32c)
        except (FileNotFoundError, NotADirectoryError):
            return False


def _number(name: str) -> int:
    return int(name.partition("-")[0])
