"""What the tests of this room share: a sink that knows what is durable, files that fail, a room to work in."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self

from asynctune.checkpoints.bucket import Bucket
from asynctune.checkpoints.catalog import TrialCheckpoints
from asynctune.checkpoints.verify import VerifyReport, verify_directory
from asynctune.clock import Clock, SystemClock
from asynctune.config import CheckpointConfig
from asynctune.errors import StorageError
from asynctune.files import LocalFiles
from asynctune.packing import pack, unpack
from asynctune.trial import Checkpoint

TREE: Final = {"model.bin": b"weights" * 100, "a/b/deep.txt": b"deep", "a/other": b"", "z.json": b"{}"}


class MemorySink:
    """A `CommitSink` in memory that tells what was put from what is durable."""

    def __init__(self) -> None:
        self.records: dict[str, bytes] = {}
        self.durable: dict[str, bytes] = {}
        self.commits = 0
        self.before_commit: Callable[[], object] = lambda: None
        self.asked = asyncio.Semaphore(0)
        """Released once for each commit that somebody asks for."""
        self.gate = asyncio.Event()
        self.gate.set()
        self.put_error: Exception | None = None
        self.commit_error: Exception | None = None

    def get(self, key: str) -> Any | None:
        return unpack(self.records[key]) if key in self.records else None

    def steps(self, trial_id: str) -> Sequence[int]:
        prefix = f"checkpoint/{trial_id}/"
        return sorted(int(key.removeprefix(prefix)) for key in self.records if key.startswith(prefix))

    def put(self, key: str, value: Any) -> None:
        if self.put_error is not None:
            raise self.put_error
        self.records[key] = pack(value)

    def delete(self, key: str) -> None:
        if self.put_error is not None:
            raise self.put_error
        self.records.pop(key, None)

    async def commit(self) -> int:
        now = dict(self.records)
        self.asked.release()
        await asyncio.to_thread(self.before_commit)
        await self.gate.wait()
        if self.commit_error is not None:
            raise self.commit_error
        self.durable = now
        self.commits += 1
        return self.commits

    def crashed(self) -> MemorySink:
        """What the next opening finds: the durable records only."""
        again = MemorySink()
        again.records = dict(self.durable)
        again.durable = dict(self.durable)
        return again


class CountingFiles(LocalFiles):
    """Counts calls that change the disk, and fails or calls back at the n-th one (from 1).

    It does not wait for the disk: these tests make thousands of syncs and pull no plug.
    """

    CHANGES: Final = frozenset(
        {
            "clone",
            "close",
            "create",
            "make_dir",
            "make_plain_dir",
            "open_read",
            "remove_tree",
            "rename",
            "set_mode",
            "sync",
            "sync_data",
            "sync_dir",
            "unlink",
            "write",
        }
    )

    def __init__(self, fail_at: int | None = None, *, error: int = errno.EIO, forever: bool = False) -> None:
        self.calls: list[str] = []
        self.fail_at = fail_at
        self.forever = forever
        self.error = error
        self.at: dict[int, Callable[[], object]] = {}
        self._lock = threading.Lock()

    def sync(self, fd: int) -> None:
        os.fstat(fd)

    sync_data = sync

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if name not in CountingFiles.CHANGES:
            return value

        def counted(*args: Any) -> Any:
            with self._lock:
                self.calls.append(name)
                number = len(self.calls)
            if number in self.at:
                self.at[number]()
            failing = self.fail_at is not None and (
                number == self.fail_at or (self.forever and number > self.fail_at)
            )
            if failing:
                if name == "close":
                    value(*args)  # close(2) gives the descriptor back whatever it returns
                raise OSError(self.error, os.strerror(self.error), str(args[0]) if args else None)
            return value(*args)

        return counted


class Events(list[dict[str, Any]]):
    """Collects what is emitted."""

    def __init__(self) -> None:
        super().__init__()
        self._more = asyncio.Event()

    def __call__(self, kind: str, /, **data: Any) -> None:
        self.append({"kind": kind, **data})
        self._more.set()
        self._more = asyncio.Event()

    async def happened(self, kind: str, count: int = 1) -> dict[str, Any]:
        """Wait until there are so many of this kind; the last of them."""
        while len(self.of(kind)) < count:
            await self._more.wait()
        return self.of(kind)[count - 1]

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self if event["kind"] == kind]


class Room:
    """A catalog at work in an experiment, as the store would have it."""

    def __init__(
        self,
        path: Path,
        *,
        config: CheckpointConfig | None = None,
        files: LocalFiles | None = None,
        sink: MemorySink | None = None,
        epoch: int = 1,
        deleting: bool = True,
        clock: Clock | None = None,
        bucket: Bucket | None = None,
    ) -> None:
        self.path = path
        (path / ".asynctune").mkdir(mode=0o700, parents=True, exist_ok=True)
        self.sink = MemorySink() if sink is None else sink
        self.files = LocalFiles() if files is None else files
        self.events = Events()
        self.catalog = TrialCheckpoints(
            str(path),
            sink=self.sink,
            config=CheckpointConfig() if config is None else config,
            files=self.files,
            clock=SystemClock() if clock is None else clock,
            emit=self.events,
            epoch=epoch,
            bucket=bucket,
        )
        self._deleting = deleting
        self._run: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        if self._deleting:
            self._run = asyncio.create_task(self.catalog.run())
            await asyncio.sleep(0)
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.catalog.aclose()
        if self._run is not None:
            await self._run

    async def save(self, trial_id: str, source: Any = None, **options: Any) -> Any:
        """Save a directory for a trial whose directory is called like it."""
        directory = source
        if source is None:
            directory = self.path.parent / f"src-{trial_id}"
            if not directory.exists():  # written once: another save of it may be under way
                tree(directory)
        return await self.catalog.save(trial_id, directory, **{"trial_name": trial_id, **options})

    async def deleted(self) -> None:
        """Wait until nothing is left to delete."""
        await self.catalog._deletions.drain()

    def steps(self, trial_id: str = "t") -> list[int]:
        return [checkpoint.step or 0 for checkpoint in self.catalog.list(trial_id)]

    def directories(self, trial_id: str = "t") -> list[str]:
        """What lies in the trial's directory, sorted."""
        where = self.path / trial_id
        return sorted(entry.name for entry in where.iterdir()) if where.is_dir() else []

    def leftovers(self) -> list[str]:
        """What lies in staging, restored and quarantine."""
        home = self.path / ".asynctune"
        return sorted(
            str(entry.relative_to(home))
            for folder in ("staging", "restored", "quarantine")
            if (home / folder).is_dir()
            for entry in (home / folder).iterdir()
        )

    async def verify(self, trial_id: str = "t") -> list[VerifyReport]:
        """Verify every recorded checkpoint of the trial."""
        context = self.catalog._context
        return [
            await verify_directory(
                context.path_of(record),
                record.manifest_sha256,
                files=LocalFiles(),
                threads=context.threads,
            )
            for record in context.records.live(trial_id)
        ]


def tree(root: Path, content: Mapping[str, bytes] = TREE) -> Path:
    """Write files below `root`."""
    for name, data in content.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def read_tree(root: Path) -> dict[str, bytes]:
    """Every file below `root`, without a manifest."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name != ".manifest.json"
    }


def where(checkpoint: Checkpoint) -> Path:
    """Where the files of a committed checkpoint are."""
    assert checkpoint.path is not None
    return checkpoint.path


def disk_full() -> StorageError:
    return StorageError("the journal cannot be written", operation="write", retryable=True)
