"""Owns a disk that fails when told to: `LocalFiles` with faults set at chosen operations.

Every operation is counted and kept in a log, whatever thread it comes from. A fault hits the n-th operation of
some kinds, counted from the moment it is set.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final, TypeVar

from asynctune.files import DIR_MODE, FILE_MODE, LocalFiles

__all__ = ["CHANGES", "LOOKS", "Fault", "FaultyFiles", "Operation"]

T = TypeVar("T")

CHANGES: Final = frozenset(
    {
        "clone",
        "close",
        "create",
        "link",
        "make_dir",
        "make_plain_dir",
        "open_append",
        "remove_dir",
        "remove_tree",
        "rename",
        "set_mode",
        "set_time",
        "sync",
        "sync_data",
        "sync_dir",
        "sync_filesystem",
        "truncate",
        "unlink",
        "write",
    }
)
"""Kinds of operations that change the disk, or promise that it was changed."""

LOOKS: Final = frozenset(
    {"exists", "list_dir", "lock", "open_read", "open_update", "read", "read_from", "stat", "unlock"}
)
"""Kinds of operations that only look."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation: its number among all (from 1), its kind (the method's name), and the path it was on."""

    number: int
    kind: str
    path: str


@dataclass(slots=True, eq=False)
class Fault:
    """A fault that was set; `hits` says how often it struck.

    Attributes:
        kinds: Kinds it counts; empty: all.
        nth: How many of them are still to come until it strikes: 1 is the next.
        errno: What the operation fails with; `None`: it does not fail.
        lasting: Whether each one after the n-th is struck too, until healed.
        after_bytes: A write puts so many bytes down, and at least one less than all, before it fails; without an
            errno, it is a short write.
        applied: The operation is done first, and then reported as failed.
        call: Called before the operation, in its thread; what it raises is raised there.
        hits: How often it struck.
    """

    kinds: frozenset[str]
    nth: int
    errno: int | None = None
    lasting: bool = False
    after_bytes: int | None = None
    applied: bool = False
    call: Callable[[Operation], object] | None = None
    hits: int = 0

    def due(self, kind: str) -> bool:
        """Count one operation; whether it is struck."""
        if self.kinds and kind not in self.kinds:
            return False
        self.nth -= 1
        struck = self.nth == 0 or (self.lasting and self.nth < 0)
        self.hits += struck
        return struck


class FaultyFiles(LocalFiles):
    """The local disk, with faults. Safe to use, and to set faults on, from any thread.

    `write_all` counts as its writes; `sync_dir` and `remove_tree` count as one operation each.

    Example::

        files = FaultyFiles()
        store = await ExperimentStore.open(path, files=files)
        files.fail(errno.ENOSPC, on="write", lasting=True)
        ...
        files.heal()
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._faults: list[Fault] = []
        self._log: list[Operation] = []
        self._paths: dict[int, str] = {}

    # -- faults --------------------------------------------------------------------------------------------

    def fail(
        self,
        number: int = errno.EIO,
        *,
        on: str | Collection[str] = (),
        nth: int = 1,
        lasting: bool = False,
        after_bytes: int | None = None,
        applied: bool = False,
    ) -> Fault:
        """Make the n-th operation from now on fail.

        Args:
            number: The errno of its `OSError`.
            on: The kind or kinds that count, such as `"sync_data"` or `CHANGES`; none given: all.
            nth: Which of them: 1 is the next.
            lasting: The ones after it fail as well, until `heal`.
            after_bytes: A write that fails has put down so many bytes before, and never all.
            applied: The operation is done nevertheless (a network filesystem that lost its reply).

        Raises:
            ValueError: There is no such kind of operation, or `nth` is below 1.
        """
        return self._set(
            Fault(_kinds(on), nth, errno=number, lasting=lasting, after_bytes=after_bytes, applied=applied)
        )

    def cut(self, after_bytes: int, *, nth: int = 1) -> Fault:
        """Make the n-th write from now on a short one: it writes `after_bytes` (at least 1) and says so."""
        return self._set(Fault(frozenset({"write"}), nth, after_bytes=max(1, after_bytes)))

    def call(
        self,
        function: Callable[[Operation], object],
        *,
        on: str | Collection[str] = (),
        nth: int = 1,
        lasting: bool = False,
    ) -> Fault:
        """Call `function` before the n-th operation from now on, in the thread that does it.

        It may move a clock, cancel a task, wait for an event, end the process; what it raises is raised there.

        Raises:
            ValueError: As for `fail`.
        """
        return self._set(Fault(_kinds(on), nth, lasting=lasting, call=function))

    def heal(self) -> None:
        """Remove every fault."""
        with self._guard:
            self._faults.clear()

    def _set(self, fault: Fault) -> Fault:
        if fault.nth < 1:
            msg = f"nth counts from 1, not {fault.nth}"
            raise ValueError(msg)
        with self._guard:
            self._faults.append(fault)
        return fault

    # -- what happened -------------------------------------------------------------------------------------

    @property
    def log(self) -> list[Operation]:
        """Every operation so far, in order; a copy."""
        with self._guard:
            return list(self._log)

    def count(self, on: str | Collection[str] = ()) -> int:
        """How many operations of these kinds there were; none given: of all.

        Raises:
            ValueError: There is no such kind of operation.
        """
        kinds = _kinds(on) or CHANGES | LOOKS
        return sum(operation.kind in kinds for operation in self.log)

    # -- the one gate --------------------------------------------------------------------------------------

    def _enter(self, kind: str, path: str) -> list[Fault]:
        """Count an operation, call what is to be called, and return the faults that strike it."""
        with self._guard:
            operation = Operation(len(self._log) + 1, kind, path)
            self._log.append(operation)
            struck = [fault for fault in self._faults if fault.due(kind)]
            self._faults = [f for f in self._faults if f.lasting or f.nth > 0]
        for fault in struck:
            if fault.call is not None:
                fault.call(operation)
        return [fault for fault in struck if fault.call is None]

    def _do(self, kind: str, path: str, function: Callable[[], T]) -> T:
        faults = [fault for fault in self._enter(kind, path) if fault.errno is not None]
        if not faults:
            return function()
        fault = faults[0]
        assert fault.errno is not None
        if fault.applied:
            function()
        raise OSError(fault.errno, os.strerror(fault.errno), path)

    def _path(self, fd: int) -> str:
        with self._guard:
            return self._paths.get(fd, "")

    def _opened(self, fd: int, path: str) -> int:
        with self._guard:
            self._paths[fd] = path
        return fd

    # -- descriptors ---------------------------------------------------------------------------------------

    def create(self, path: str, mode: int = FILE_MODE) -> int:
        """`LocalFiles.create`, counted."""
        return self._opened(
            self._do("create", path, lambda: super(FaultyFiles, self).create(path, mode)), path
        )

    def open_append(self, path: str, mode: int = FILE_MODE) -> int:
        """`LocalFiles.open_append`, counted."""
        fd = self._do("open_append", path, lambda: super(FaultyFiles, self).open_append(path, mode))
        return self._opened(fd, path)

    def open_read(self, path: str) -> int:
        """`LocalFiles.open_read`, counted."""
        return self._opened(
            self._do("open_read", path, lambda: super(FaultyFiles, self).open_read(path)), path
        )

    def open_update(self, path: str) -> int:
        """`LocalFiles.open_update`, counted."""
        fd = self._do("open_update", path, lambda: super(FaultyFiles, self).open_update(path))
        return self._opened(fd, path)

    def lock(self, fd: int) -> bool:
        """`LocalFiles.lock`, counted."""
        return self._do("lock", self._path(fd), lambda: super(FaultyFiles, self).lock(fd))

    def unlock(self, fd: int) -> None:
        """`LocalFiles.unlock`, counted."""
        self._do("unlock", self._path(fd), lambda: super(FaultyFiles, self).unlock(fd))

    def set_time(self, fd: int, modified_ns: int) -> None:
        """`LocalFiles.set_time`, counted."""
        self._do("set_time", self._path(fd), lambda: super(FaultyFiles, self).set_time(fd, modified_ns))

    def set_mode(self, fd: int, mode: int) -> None:
        """`LocalFiles.set_mode`, counted."""
        self._do("set_mode", self._path(fd), lambda: super(FaultyFiles, self).set_mode(fd, mode))

    def write(self, fd: int, data: bytes | bytearray | memoryview) -> int:
        """`LocalFiles.write`, counted; may be cut short."""
        path = self._path(fd)
        faults = self._enter("write", path)
        if not faults:
            return super().write(fd, data)
        fault = faults[0]
        view = memoryview(data)
        count = 0
        if fault.applied:
            _write_plainly(fd, view)
        elif fault.after_bytes is not None:
            count = min(fault.after_bytes, max(len(view) - 1, 1 if fault.errno is None else 0))
            _write_plainly(fd, view[:count])
        if fault.errno is not None:
            raise OSError(fault.errno, os.strerror(fault.errno), path)
        return count

    def sync_data(self, fd: int) -> None:
        """`LocalFiles.sync_data`, counted."""
        self._do("sync_data", self._path(fd), lambda: super(FaultyFiles, self).sync_data(fd))

    def sync(self, fd: int) -> None:
        """`LocalFiles.sync`, counted."""
        self._do("sync", self._path(fd), lambda: super(FaultyFiles, self).sync(fd))

    def sync_filesystem(self, fd: int) -> bool:
        """`LocalFiles.sync_filesystem`, counted."""
        return self._do(
            "sync_filesystem", self._path(fd), lambda: super(FaultyFiles, self).sync_filesystem(fd)
        )

    def truncate(self, path: str, size: int) -> None:
        """`LocalFiles.truncate`, counted."""
        self._do("truncate", path, lambda: super(FaultyFiles, self).truncate(path, size))

    def close(self, fd: int) -> None:
        """`LocalFiles.close`, counted; one that fails has closed the descriptor all the same, as on Linux."""
        path = self._path(fd)
        with self._guard:
            self._paths.pop(fd, None)
        try:
            self._do("close", path, lambda: None)
        finally:
            os.close(fd)

    def clone(self, source_fd: int, target_fd: int) -> bool:
        """`LocalFiles.clone`, counted."""
        path = self._path(target_fd)
        return self._do("clone", path, lambda: super(FaultyFiles, self).clone(source_fd, target_fd))

    # -- names ---------------------------------------------------------------------------------------------

    def sync_dir(self, path: str) -> None:
        """`LocalFiles.sync_dir`, counted as one operation."""
        self._do("sync_dir", path, lambda: LocalFiles().sync_dir(path))

    def make_dir(self, path: str, mode: int = DIR_MODE) -> None:
        """`LocalFiles.make_dir`, counted."""
        self._do("make_dir", path, lambda: super(FaultyFiles, self).make_dir(path, mode))

    def make_plain_dir(self, path: str) -> None:
        """`LocalFiles.make_plain_dir`, counted."""
        self._do("make_plain_dir", path, lambda: super(FaultyFiles, self).make_plain_dir(path))

    def rename(self, source: str, target: str) -> None:
        """`LocalFiles.rename`, counted, with the target's path."""
        self._do("rename", target, lambda: super(FaultyFiles, self).rename(source, target))

    def link(self, source: str, target: str) -> None:
        """`LocalFiles.link`, counted, with the target's path."""
        self._do("link", target, lambda: super(FaultyFiles, self).link(source, target))

    def unlink(self, path: str) -> None:
        """`LocalFiles.unlink`, counted."""
        self._do("unlink", path, lambda: super(FaultyFiles, self).unlink(path))

    def remove_dir(self, path: str) -> None:
        """`LocalFiles.remove_dir`, counted."""
        self._do("remove_dir", path, lambda: super(FaultyFiles, self).remove_dir(path))

    def remove_tree(self, path: str) -> None:
        """`LocalFiles.remove_tree`, counted as one operation."""
        self._do("remove_tree", path, lambda: LocalFiles().remove_tree(path))

    # -- looking -------------------------------------------------------------------------------------------

    def exists(self, path: str) -> bool:
        """`LocalFiles.exists`, counted."""
        return self._do("exists", path, lambda: super(FaultyFiles, self).exists(path))

    def list_dir(self, path: str) -> list[str]:
        """`LocalFiles.list_dir`, counted."""
        return self._do("list_dir", path, lambda: super(FaultyFiles, self).list_dir(path))

    def read(self, path: str) -> bytes:
        """`LocalFiles.read`, counted."""
        return self._do("read", path, lambda: super(FaultyFiles, self).read(path))

    def read_from(self, path: str, offset: int, limit: int | None = None) -> bytes:
        """`LocalFiles.read_from`, counted."""
        return self._do("read_from", path, lambda: super(FaultyFiles, self).read_from(path, offset, limit))

    def stat(self, path: str) -> os.stat_result:
        """`LocalFiles.stat`, counted."""
        return self._do("stat", path, lambda: super(FaultyFiles, self).stat(path))


def _kinds(on: str | Collection[str]) -> frozenset[str]:
    kinds = frozenset({on} if isinstance(on, str) else on)
    if unknown := kinds - CHANGES - LOOKS:
        msg = f"no operation is called {', '.join(sorted(unknown))}; there are {', '.join(sorted(CHANGES | LOOKS))}"
        raise ValueError(msg)
    return kinds


def _write_plainly(fd: int, data: memoryview) -> None:
    while data:
        data = data[os.write(fd, data) :]
