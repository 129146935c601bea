"""Where experiments are copied to in these tests, with what stands between: a proxy that counts, a door that shuts."""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import urllib.request
from collections.abc import AsyncGenerator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self
from unittest import mock
from urllib.parse import parse_qs, urlsplit

from asynctune.storage.base import ObjectStorage
from asynctune.storage.uri import open_storage
from asynctune.storage.values import Directory, ObjectInfo
from asynctune.store.store import ExperimentStore
from tests.storage.fake_gcs import FakeGcs
from tests.storage.fault_proxy import GCS, S3, FaultProxy, Reply, Request
from tests.storage.moto import moto_server

__all__ = ["Door", "PartsProxy", "Place", "directory_place", "gcs_place", "s3_place", "s3_server"]

_NUMBERS: Final = itertools.count(1)


class Door:
    """Lets TCP connections through to a server, or refuses them; what it let through breaks when it shuts."""

    def __init__(self, upstream: str) -> None:
        parts = urlsplit(upstream)
        self._upstream = parts.hostname, parts.port
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._port = 0
        self.hangs = False
        """Whether what comes from now on is taken and never answered."""
        self.came = asyncio.Event()
        """Set with each connection."""

    @property
    def url(self) -> str:
        """Its own address."""
        return f"http://127.0.0.1:{self._port}"

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.shut()

    async def open(self) -> None:
        """Let through."""
        self.hangs = False
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]

    async def shut(self) -> None:
        """Refuse, and break what there is."""
        if self._server is not None:
            self._server.close()
            self._server = None
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def hang(self) -> None:
        """Break what there is, and let what comes wait for ever."""
        await self.shut()
        await self.open()
        self.hangs = True

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.came.set()
        # a cancelled connection's task would be an error to asyncio's streams
        with suppress(asyncio.CancelledError):
            await self._carry(reader, writer)
        self._tasks.discard(task)
        writer.transport.abort()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.hangs:
            with suppress(ConnectionError):
                while await reader.read(1 << 16):
                    pass
            return
        with suppress(OSError):
            there_reader, there_writer = await asyncio.open_connection(*self._upstream)
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(_pipe(reader, there_writer))
                    group.create_task(_pipe(there_reader, writer))
            finally:
                there_writer.transport.abort()


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
        writer.write_eof()


class PartsProxy(FaultProxy):
    """Takes some time for each part of an upload, and counts those that came again after they were acknowledged.

    Attributes:
        sent: How many parts were acknowledged.
        again: How many came although they had been.
        reached: Set when so many are `wanted`.
        uploads: Ids of the uploads, by how many processes sent parts for them (`next_process` says when one begins).
    """

    part_s = 0.02

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.sent = 0
        self.again = 0
        self.uploads: dict[str, set[int]] = {}
        self.wanted = 0
        self.reached = asyncio.Event()
        self._done: dict[str, dict[int, int]] = {}
        self._process = 0

    def next_process(self) -> None:
        """Whoever sent parts is dead."""
        self._process += 1

    @property
    def resumed(self) -> int:
        """Of how many uploads parts were sent by more than one process."""
        return sum(len(processes) > 1 for processes in self.uploads.values())

    async def _answer(self, name: str, request: Request, head: bytes, reader: asyncio.StreamReader) -> Reply:
        self.requests.clear()  # they hold the bodies
        if request.kind != "put_part":
            return await super()._answer(name, request, head, reader)
        upload, first, last = _part(request)
        process = self._process
        self.uploads.setdefault(upload, set()).add(process)
        done = self._done.setdefault(upload, {})
        # of the same process it may be a repetition of what seemed lost
        if any(known != process and first <= number <= last for number, known in done.items()):
            self.again += 1
        await asyncio.sleep(self.part_s)
        reply = await super()._answer(name, request, head, reader)
        status = int(reply.head.split(b" ", 2)[1])
        if status in {200, 308}:
            self.sent += 1
            if self.sent >= self.wanted:
                self.reached.set()
            if taken := re.search(rb"(?im)^range: *bytes=0-(\d+)", reply.head):
                last = int(taken[1])
            done |= dict.fromkeys(range(first, last + 1, _CHUNK if _is_session(request) else 1), process)
        return reply


_CHUNK: Final = 256 << 10


def _is_session(request: Request) -> bool:
    return request.target.startswith("/session/")


def _part(request: Request) -> tuple[str, int, int]:
    """Of which upload this is what: numbers of parts for S3, bytes for GCS."""
    if _is_session(request):
        numbers = re.match(r"bytes (\d+)-(\d+)/", request.headers["content-range"])
        assert numbers is not None
        return request.target, int(numbers[1]), int(numbers[2])
    query = parse_qs(urlsplit(request.target).query)
    number = int(query["partNumber"][0])
    return query["uploadId"][0], number, number


@dataclass(kw_only=True)
class Place:
    """Somewhere to copy experiments to.

    Attributes:
        kind: `"s3"`, `"gs"`, `"file"`.
        upload_dir: For the first machine.
        others: For other machines, where it is another name there.
        env: What a process needs to reach it.
        direct: What it needs to reach it past proxy and door.
        options: What this process needs.
        proxy: What stands in front of it.
        door: Likewise.
    """

    kind: str
    upload_dir: str
    others: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    direct: dict[str, str] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    proxy: PartsProxy | None = None
    door: Door | None = None

    def uri(self, name: str, machine: int = 0) -> str:
        """Of an experiment, as one of the machines sees it."""
        above = self.upload_dir if machine == 0 or not self.others else self.others[machine - 1]
        return f"{above}/{name}"

    def read(self, name: str) -> Any:
        """Open the copy of an experiment for reading."""
        options = self.options or None
        return ExperimentStore.open(self.uri(name), "read", storage_options=options)

    async def storage(self, name: str) -> ObjectStorage:
        """Of an experiment; the caller closes it."""
        return await open_storage(self.uri(name), self.options)

    async def listing(self, name: str) -> dict[str, ObjectInfo]:
        """Every object of an experiment."""
        storage = await self.storage(name)
        try:
            return {
                info.key: info async for info in storage.list_objects() if not isinstance(info, Directory)
            }
        finally:
            await storage.aclose()

    async def uploads(self, name: str) -> list[str]:
        """Keys of uploads in parts that were neither finished nor aborted, where the storage tells."""
        storage = await self.storage(name)
        try:
            if not storage.upload_rules.listed:
                return []
            return [upload.key async for upload in storage.list_uploads()]
        finally:
            await storage.aclose()


def directory_place(directory: Path) -> Place:
    """A directory."""
    directory.mkdir(exist_ok=True)
    return Place(kind="file", upload_dir=str(directory))


@contextmanager
def s3_server() -> Iterator[str]:
    """An endpoint that takes small parts."""
    with mock.patch.dict(os.environ, S3_UPLOAD_PART_MIN_SIZE="1024"), moto_server() as endpoint:
        yield endpoint


@asynccontextmanager
async def s3_place(endpoint: str, *, door: bool = False) -> AsyncGenerator[Place, None]:
    """A new bucket, behind a proxy that counts, or behind a door."""
    bucket = f"bucket-{os.getpid()}-{next(_NUMBERS)}"
    request = urllib.request.Request(f"{endpoint}/{bucket}", method="PUT")
    (await asyncio.to_thread(urllib.request.urlopen, request, timeout=20)).close()
    async with AsyncExitStack() as stack:
        front: Door | PartsProxy = Door(endpoint) if door else PartsProxy(endpoint, S3)
        await stack.enter_async_context(front)
        env = {
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        yield Place(
            kind="s3",
            upload_dir=f"s3://{bucket}/some/where",
            env=env | {"AWS_ENDPOINT_URL": front.url},
            direct=env | {"AWS_ENDPOINT_URL": endpoint},
            options={"endpoint_url": endpoint, "key": "key", "secret": "secret", "region": "us-east-1"},
            proxy=None if isinstance(front, Door) else front,
            door=front if isinstance(front, Door) else None,
        )


@asynccontextmanager
async def gcs_place(*, door: bool = False) -> AsyncGenerator[Place, None]:
    """Likewise a bucket of a server in this process, which its clients are not."""
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(FakeGcs())
        url = server.url
        front: Door | PartsProxy = Door(url) if door else PartsProxy(url, GCS)
        await stack.enter_async_context(front)
        server.url = front.url  # where it sends the parts of uploads to
        yield Place(
            kind="gs",
            upload_dir=f"gs://{server.bucket}/some/where",
            env={"STORAGE_EMULATOR_HOST": front.url},
            direct={"STORAGE_EMULATOR_HOST": url},
            options={"endpoint_url": url, "anonymous": True},
            proxy=None if isinstance(front, Door) else front,
            door=front if isinstance(front, Door) else None,
        )
