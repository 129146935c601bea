"""Owns the head's end of checkpoints that come from one trial's node: which are on their way, and what each call does.

The calls (`homeward` makes them), and what is answered:

=============== ================================================= ===============================================
operation       arguments                                         answer
=============== ================================================= ===============================================
`home.offer`    `id`, `size`, `offset`, `data`: the encoded offer `{}`; after the last piece `complete` (runs of
                in pieces                                         file numbers) and `partial` (number, offset,
                                                                  crc32c), or `path` if all was there already
`home.chunks`   `id`, `pieces`: number of the file, offset,       `{}`
                crc32c, bytes
`home.finish`   `id`                                              `path` of the staged directory
`home.abandon`  `id`                                              `{}`; a finished one is removed too
=============== ================================================= ===============================================

What the trial's newest committed checkpoint has with the same content is taken from there, verified, and not sent.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Any, Final

from asynctune.checkpoints.arrival import Arrival
from asynctune.checkpoints.breathing import FILES_BETWEEN_BREATHS, breathe
from asynctune.checkpoints.copying import FileTask, read_files
from asynctune.checkpoints.disk import DiskThreads, SourceError, disk_errors, to_the_end
from asynctune.checkpoints.manifest import Manifest, ManifestError
from asynctune.checkpoints.offering import MAX_OFFER_BYTES, Offer
from asynctune.checkpoints.records import is_checkpoint_name
from asynctune.checkpoints.travelling import PIECE_BYTES, argument, listed, number
from asynctune.errors import ConfigError, StorageError
from asynctune.files import LocalFiles
from asynctune.trial import MANIFEST_FILE

__all__ = ["TreeReceiver"]

logger = logging.getLogger("asynctune")

_MAX_ID: Final = 256
_REMEMBERED: Final = 16  # finished ones whose sender may not have heard of it
_BEGUN: Final = 4  # of more than one, the node could not say that it has given the others up
_NUMBERS: Final = re.compile(r"\d+")


class _Incoming:
    """One checkpoint: its offer as it comes, then its files. One call at a time, in order, but for what is synced."""

    def __init__(self) -> None:
        self.turn = asyncio.Condition()
        self.offered = bytearray()
        self.arrival: Arrival | None = None
        self.path: str | None = None
        self.syncing = 0

    async def synced(self) -> None:
        """In its turn, which others may have meanwhile: nothing is being synced, and nothing was lost by it."""
        await self.turn.wait_for(lambda: not self.syncing)


class TreeReceiver:
    """Takes the checkpoints of one trial that runs on a node without this machine's disk.

    It may serve several connections one after the other: what came over the first is not sent again over the next.

    Args:
        trial_dir: Absolute path of the trial's directory here.
        files: The operating system.
        threads: Where blocking calls go.
    """

    def __init__(
        self, trial_dir: str | os.PathLike[str], *, files: LocalFiles | None = None, threads: DiskThreads
    ) -> None:
        self._trial_dir = os.fspath(trial_dir)
        self._files = LocalFiles() if files is None else files
        self._threads = threads
        self._incoming: dict[str, _Incoming] = {}
        self._closed = False

    async def handle(self, op: str, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        """Answer a call of the node.

        Raises:
            ConfigError: A call that makes no sense, or a checkpoint that cannot be.
            StorageError: What came is damaged or incomplete, or the disk refuses.
        """
        if self._closed:
            raise StorageError("the trial does not run on this node any more", operation="transfer")
        name = argument(arguments, "id", str)
        if len(name) > _MAX_ID:
            raise ConfigError(
                f"a checkpoint whose id has {len(name):,} characters cannot be told from others; {_MAX_ID} fit"
            )
        with disk_errors("take a checkpoint from its node", self._trial_dir):
            match op:
                case "home.offer":
                    incoming = await self._begun(name)
                    async with incoming.turn:
                        return await self._offer(name, incoming, arguments)
                case "home.chunks":
                    pieces = listed(arguments, "pieces", (int, int, int, bytes))
                    await self._take(name, pieces)
                    return {}
                case "home.finish":
                    incoming = self._known(name)
                    async with incoming.turn:
                        await incoming.synced()
                        if incoming.path is None:
                            staged = await self._threads.run(self._arriving(incoming, name).finish)
                            incoming.path, incoming.arrival = staged.path, None
                        return {"path": incoming.path}
                case "home.abandon":
                    await to_the_end(self._forget(name, claimed=()))
                    return {}
        raise ConfigError(f"a node asks for {op!r:.80}, which nobody does here")

    async def aclose(self, *, claimed: Collection[str] | None = None) -> None:
        """Remove what is not finished; what is belongs to whoever was told its path. Again: does nothing.

        Args:
            claimed: Paths of finished directories that somebody adopts; others, of which a node that died did not
                tell anybody, are removed. `None`: all of them stay.
        """
        self._closed = True
        await to_the_end(self._forget_all(claimed))

    # -- calls ---------------------------------------------------------------------------------------------

    async def _begun(self, name: str) -> _Incoming:
        if (incoming := self._incoming.get(name)) is not None:
            return incoming
        incoming = self._incoming[name] = _Incoming()
        finished = [each for each, other in self._incoming.items() if other.path is not None]
        for each in finished[:-_REMEMBERED]:
            del self._incoming[each]
        for each in [each for each, other in self._incoming.items() if other.path is None][:-_BEGUN]:
            await to_the_end(self._forget(each, claimed=None))
        return incoming

    def _known(self, name: str) -> _Incoming:
        if (incoming := self._incoming.get(name)) is None:
            raise _not_offered(name)
        return incoming

    def _arriving(self, incoming: _Incoming, name: str) -> Arrival:
        if incoming.arrival is None or self._closed:
            raise _not_offered(name)
        return incoming.arrival

    async def _offer(self, name: str, incoming: _Incoming, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        if self._closed or self._incoming.get(name) is not incoming:
            raise _not_offered(name)
        size = number(argument(arguments, "size", int), MAX_OFFER_BYTES + 1, "the size of an offer")
        offset, data = argument(arguments, "offset", int), argument(arguments, "data", bytes)
        if offset == 0:
            incoming.offered.clear()
        if offset != len(incoming.offered) or not data or len(data) > min(PIECE_BYTES, size - offset):
            raise ConfigError(f"a piece of an offer at {offset:,} does not follow what came before")
        incoming.offered += data
        if len(incoming.offered) < size:
            return {}
        encoded, incoming.offered = incoming.offered, bytearray()
        if incoming.path is not None:
            if await self._threads.run(self._files.exists, incoming.path):
                return {"path": incoming.path}
            incoming.path = None  # it was adopted: this is another one
        offer = await self._threads.run(Offer.decode, bytes(encoded))
        if incoming.arrival is not None and incoming.arrival.offer != offer:
            other, incoming.arrival = incoming.arrival, None
            await self._withdraw(other, None)
        if incoming.arrival is None:
            arrival = await self._threads.run(Arrival, self._trial_dir, self._files, offer)
            try:
                await self._threads.run(arrival.make)
                await _take_same(self._threads, self._files, self._trial_dir, arrival)
                present = await self._threads.run(arrival.present)
            except BaseException as error:
                await self._withdraw(arrival, error)
                raise
            incoming.arrival = arrival
            return present
        return await self._threads.run(incoming.arrival.present)

    async def _take(self, name: str, pieces: list[list[Any]]) -> None:
        incoming = self._known(name)
        async with incoming.turn:
            arrival = self._arriving(incoming, name)
            due = await self._threads.run(arrival.take, pieces)
            incoming.syncing += bool(due)
        # Not in its turn: the next pieces come meanwhile. Not answered either: so no more than a window is unsynced.
        if due:
            await to_the_end(self._sync(incoming, arrival, due))

    async def _sync(self, incoming: _Incoming, arrival: Arrival, due: list[int]) -> None:
        """Not given up with the call: a disk tells only once that it has lost something."""
        try:
            for index in due:
                try:
                    await self._threads.run(arrival.sync, index)
                except OSError:
                    async with incoming.turn:
                        await self._threads.run(arrival.start_over, index)
                    raise
        finally:
            async with incoming.turn:
                incoming.syncing -= 1
                incoming.turn.notify_all()

    # -- giving up -----------------------------------------------------------------------------------------

    async def _withdraw(self, arrival: Arrival, error: BaseException | None) -> None:
        try:
            await self._threads.run(arrival.withdraw)
        except OSError as left:
            if error is not None:
                error.add_note(f"{arrival.path} could not be removed either ({left})")
            else:
                _say_left(arrival.path, left)

    async def _forget(self, name: str, *, claimed: Collection[str] | None) -> None:
        if (incoming := self._incoming.pop(name, None)) is None:
            return
        async with incoming.turn:  # what runs in a thread ends first
            await incoming.synced()
            arrival, incoming.arrival = incoming.arrival, None
            if arrival is not None:
                await self._withdraw(arrival, None)
            elif incoming.path is not None and claimed is not None and incoming.path not in claimed:
                try:
                    await self._threads.run(self._files.remove_tree, incoming.path)
                except FileNotFoundError:  # it was adopted
                    return
                except OSError as left:
                    _say_left(incoming.path, left)

    async def _forget_all(self, claimed: Collection[str] | None) -> None:
        for name in list(self._incoming):
            await self._forget(name, claimed=claimed)


def _say_left(path: str, error: OSError) -> None:
    logger.warning("%s is of no use and could not be removed (%s); remove it", path, error)


def _not_offered(name: str) -> StorageError:
    return StorageError(
        "a piece of a checkpoint came that was not offered, or was given up",
        operation="transfer",
        key=name,
        retryable=True,
        hint="send it again",
    )


# -- what the newest checkpoint has already ----------------------------------------------------------------


async def _take_same(threads: DiskThreads, files: LocalFiles, trial_dir: str, arrival: Arrival) -> None:
    """Copy what is the same from the newest committed checkpoint; what cannot be, is wanted from the node."""
    tasks = await threads.run(_same, files, trial_dir, arrival)
    if not tasks:
        return
    unreadable: list[SourceError] = []
    read = await read_files(threads, files, list(tasks.values()), durable=True, unreadable=unreadable)
    await threads.run(_settle, arrival, tasks, {file.path: file for file in read})


def _same(files: LocalFiles, trial_dir: str, arrival: Arrival) -> dict[int, FileTask]:
    tasks: dict[int, FileTask] = {}
    directory, manifest = _newest(files, trial_dir)
    if manifest is None:
        return tasks
    have = {(file.sha256, file.size_bytes): file.path for file in reversed(manifest.files)}
    by_path = {file.path: file for file in manifest.files}
    for count, index in enumerate(arrival.wanted()):
        if count % FILES_BETWEEN_BREATHS == 0:
            breathe()
        file, target, mode = arrival.place_of(index)
        source = file.path if by_path.get(file.path) == file else have.get((file.sha256, file.size_bytes))
        if source is not None:
            place = os.path.join(directory, source)
            tasks[index] = FileTask(file.path, place, file.size_bytes, target=target, mode=mode)
    return tasks


def _newest(files: LocalFiles, trial_dir: str) -> tuple[str, Manifest | None]:
    try:
        names = [name for name in files.list_dir(trial_dir) if is_checkpoint_name(name)]
    except OSError:
        return "", None
    for name in sorted(names, key=_order, reverse=True)[:1]:
        directory = os.path.join(trial_dir, name)
        with suppress(OSError, ManifestError):  # vanished or damaged: nothing is taken from it
            return directory, Manifest.decode(files.read(os.path.join(directory, MANIFEST_FILE)))
    return "", None


def _order(name: str) -> list[int]:
    return [int(each) for each in _NUMBERS.findall(name)]


def _settle(arrival: Arrival, tasks: Mapping[int, FileTask], read: Mapping[str, Any]) -> None:
    wrong = []
    for index, task in tasks.items():
        if read.get(task.path) == arrival.place_of(index)[0]:
            arrival.placed(index)
        else:
            wrong.append(index)
    arrival.clear(wrong)
