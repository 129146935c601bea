"""A reverse proxy in front of a server of S3 or GCS that spoils what it is told to: HTTP/1.1, on the test's event loop.

It holds each request and each reply whole, in memory. A fault strikes the n-th request of some kinds, counted from the
moment it is set; see `FAULTS` for what there is. Connections to clients are kept as a server would keep them, because
clients treat a connection that was in use before differently when it breaks.
"""

from __future__ import annotations

import asyncio
import base64
import re
import socket
import struct
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, Self
from urllib.parse import parse_qs, urlsplit

import google_crc32c

__all__ = ["FAULTS", "GCS", "S3", "FaultProxy", "Protocol", "ProxyFault", "Request"]


@dataclass(frozen=True)
class Request:
    """What came in: its number (from 1), its kind, and what it asks for."""

    number: int
    kind: str
    method: str
    target: str
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True)
class Reply:
    """A whole reply; `body` is what follows the head."""

    head: bytes
    body: bytes

    @classmethod
    def of(cls, status: int, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Reply:
        fields = {"Content-Length": str(len(body)), **(headers or {})}
        lines = [f"HTTP/1.1 {status} Answer", *(f"{name}: {value}" for name, value in fields.items())]
        return cls(("\r\n".join(lines) + "\r\n\r\n").encode(), body)


# -- what the two protocols call things ------------------------------------------------------------------------


@dataclass(frozen=True)
class Protocol:
    """How requests are told apart, and how errors look.

    Attributes:
        kind_of: The kind of a request, named like the storage's operation that sends it.
        refusals: By the name of a fault: status and code.
        error: The body of an error.
    """

    kind_of: Callable[[str, str, Mapping[str, str]], str]
    refusals: Mapping[str, tuple[int, str]]
    error: Callable[[int, str], bytes]

    def refusal(self, name: str) -> Reply:
        status, code = self.refusals[name]
        later = {"Retry-After": "1"} if name == "429" else {}
        return Reply.of(status, self.error(status, code), later)


def _s3_kind(method: str, target: str, headers: Mapping[str, str]) -> str:
    parts = urlsplit(target)
    query = parse_qs(parts.query, keep_blank_values=True)
    if "uploadId" in query:
        by = {"PUT": "put_part", "GET": "list_parts", "POST": "complete_upload", "DELETE": "abort_upload"}
        return by[method]
    if method == "POST":
        return "begin_upload" if "uploads" in query else "delete"
    if method == "GET" and "/" not in parts.path.strip("/"):
        return "list_uploads" if "uploads" in query else "list_objects"
    return {"GET": "get", "HEAD": "head", "PUT": "put", "DELETE": "delete"}[method]


def _s3_error(_: int, code: str) -> bytes:
    return f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>asked for</Message></Error>".encode()


def _gcs_kind(method: str, target: str, headers: Mapping[str, str]) -> str:
    parts = urlsplit(target)
    query = parse_qs(parts.query)
    if parts.path.startswith("/session/"):
        if method == "DELETE":
            return "abort_upload"
        return "list_parts" if headers.get("content-range", "").startswith("bytes */") else "put_part"
    if parts.path.startswith("/upload/"):
        return "begin_upload" if query.get("uploadType") == ["resumable"] else "put"
    if parts.path.rstrip("/").endswith("/o"):
        return "list_objects"
    if method == "DELETE":
        return "delete"
    return "get" if query.get("alt") == ["media"] else "head"


def _gcs_error(status: int, code: str) -> bytes:
    each = f'{{"reason": "{code}", "message": "asked for"}}'
    return f'{{"error": {{"code": {status}, "message": "asked for", "errors": [{each}]}}}}'.encode()


S3: Final = Protocol(
    _s3_kind,
    {
        "500": (500, "InternalError"),
        "503": (503, "SlowDown"),
        "429": (429, "TooManyRequests"),
        "409": (409, "ConditionalRequestConflict"),
        "412": (412, "PreconditionFailed"),
        "403": (403, "AccessDenied"),
        "expired": (400, "ExpiredToken"),
        "200 with an error": (200, "InternalError"),
    },
    _s3_error,
)
GCS: Final = Protocol(
    _gcs_kind,
    {
        "500": (500, "backendError"),
        "503": (503, "backendError"),
        "429": (429, "rateLimitExceeded"),
        "409": (409, "conflict"),
        "412": (412, "conditionNotMet"),
        "403": (403, "forbidden"),
        "expired": (401, "authError"),
        "200 with an error": (200, "backendError"),
    },
    _gcs_error,
)

# -- faults ------------------------------------------------------------------------------------------------------

_REFUSED: Final = tuple(S3.refusals)
FAULTS: Final = (
    "dropped before",  # the connection ends, and the server knows of nothing
    "dropped after",  # the server has done it; no byte of the reply comes
    *_REFUSED,  # the server knows of nothing
    *(f"{name} after" for name in _REFUSED),  # it has done it, and something between says otherwise
    "truncated",  # half of the reply's body, or of its head where it has none
    "corrupted",  # one bit of an object's bytes; of any other reply all of the body
    "damaged upload",  # one bit of the request's body, on its way to the server
    "reset",  # half of the request has come to the server
    "hang",  # no answer, until the client gives up
    "hang after",  # likewise, and the server has done it
    "slow",  # one byte of the reply a second
    "slow body",  # likewise, behind a head that comes at once
    "slow upload",  # one byte of the request a second is taken
)


@dataclass(eq=False)
class ProxyFault:
    """A fault that was set; `hits` tells how often it struck, `struck` is set when it does."""

    name: str
    kinds: frozenset[str]
    nth: int
    lasting: bool
    hits: int = 0
    struck: asyncio.Event = field(default_factory=asyncio.Event)

    def due(self, kind: str) -> bool:
        if self.kinds and kind not in self.kinds:
            return False
        self.nth -= 1
        return self.nth == 0 or (self.lasting and self.nth < 0)


class _BrokenError(Exception):
    """The client's connection is to end at once."""


class FaultProxy:
    """One proxy, on a port of its own.

    Args:
        upstream: The server, `http://127.0.0.1:port`.
        protocol: `S3` or `GCS`.
    """

    def __init__(self, upstream: str, protocol: Protocol) -> None:
        parts = urlsplit(upstream)
        assert parts.hostname is not None
        assert parts.port is not None
        self._upstream = parts.hostname, parts.port
        self._protocol = protocol
        self._server: asyncio.Server | None = None
        self._serving: set[asyncio.Task[None]] = set()
        self._faults: list[ProxyFault] = []
        self.requests: list[Request] = []
        self.url = ""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0, limit=1 << 20)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    def set(
        self, name: str, *, on: str | Collection[str] = (), nth: int = 1, lasting: bool = False
    ) -> ProxyFault:
        """Let a fault of `FAULTS` strike the n-th request of these kinds (none given: any) from now on."""
        assert name in FAULTS, name
        fault = ProxyFault(name, frozenset({on} if isinstance(on, str) else on), nth, lasting)
        self._faults.append(fault)
        return fault

    def heal(self) -> None:
        """Remove every fault; what hangs goes on hanging."""
        self._faults.clear()

    # -- one connection ------------------------------------------------------------------------------------------

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        try:
            while await self._exchange(reader, writer):
                pass
        except asyncio.CancelledError:
            _reset(writer)  # the proxy ends; asyncio would report the task's cancellation as an error
        except (_BrokenError, ConnectionError, asyncio.IncompleteReadError):
            _reset(writer)
        finally:
            writer.close()
            self._serving.discard(task)

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request and its reply; whether the connection is kept."""
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return False  # the client went away between two requests
        line, _, rest = head.decode("latin-1").partition("\r\n")
        method, target, _ = line.split(" ")
        headers = {
            name.lower(): value.strip()
            for name, _, value in (each.partition(":") for each in rest.splitlines() if each)
        }
        kind = self._protocol.kind_of(method, target, headers)
        name = self._strike(kind)
        size = int(headers.get("content-length", 0))
        assert "transfer-encoding" not in headers
        if name == "slow upload":
            while size:
                await asyncio.sleep(1)
                await reader.readexactly(1)
        body = await reader.readexactly(size)
        request = Request(len(self.requests) + 1, kind, method, target, headers, body)
        self.requests.append(request)
        reply = await self._answer(name, request, head, reader)
        await self._send(name, request, reply, writer)
        return headers.get("connection", "").lower() != "close"

    def _strike(self, kind: str) -> str:
        due = [fault for fault in self._faults if fault.due(kind)]
        self._faults = [fault for fault in self._faults if fault.lasting or fault.nth > 0]
        for fault in due:
            fault.hits += 1
            fault.struck.set()
        return due[0].name if due else ""

    async def _answer(self, name: str, request: Request, head: bytes, reader: asyncio.StreamReader) -> Reply:
        if name in self._protocol.refusals:
            return self._protocol.refusal(name)
        if name == "dropped before":
            raise _BrokenError
        if name == "reset":
            await self._forward(head, request.body[: len(request.body) // 2], whole=False)
            raise _BrokenError
        if name == "hang":
            await reader.read(1)  # nothing comes, but the end
            raise _BrokenError
        body = request.body
        if name == "damaged upload" and body:
            middle = len(body) // 2
            body = body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]
            if not _fits(
                request.headers, body
            ):  # not every server of the tests looks, and every real one does
                return Reply.of(400, self._protocol.error(400, "BadDigest"))
        reply = await self._forward(head, body)
        if name == "dropped after":
            raise _BrokenError
        if name == "hang after":
            await reader.read(1)
            raise _BrokenError
        if name.endswith(" after"):
            return self._protocol.refusal(name.removesuffix(" after"))
        return reply

    async def _forward(self, head: bytes, body: bytes, *, whole: bool = True) -> Reply:
        head = re.sub(rb"(?im)^connection:.*\r\n", b"", head)[:-2] + b"Connection: close\r\n\r\n"
        reader, writer = await asyncio.open_connection(*self._upstream, limit=1 << 20)
        try:
            writer.write(head + body)
            await writer.drain()
            if not whole:
                return Reply(b"", b"")
            answer = await reader.readuntil(b"\r\n\r\n")
            while answer.startswith(b"HTTP/1.1 100"):
                answer = await reader.readuntil(b"\r\n\r\n")
            content = b"" if head.startswith(b"HEAD ") else await _content(answer, reader)
        except BaseException:
            writer.transport.abort()  # closed politely, it would wait for who does not read
            raise
        finally:
            await _closed(writer)
        return self._as_ones_own(Reply(answer, content), headless=head.startswith(b"HEAD "))

    def _as_ones_own(self, reply: Reply, *, headless: bool) -> Reply:
        """The reply on a connection that is kept, with addresses that lead here."""
        head = re.sub(rb"(?im)^(connection|keep-alive|transfer-encoding):.*\r\n", b"", reply.head)
        host, port = self._upstream
        head = head.replace(f"http://{host}:{port}".encode(), self.url.encode())
        bare = re.match(rb"HTTP/1.[01] (204|304)", head) is not None
        if not headless and not bare:
            head = re.sub(rb"(?im)^content-length:.*\r\n", b"", head)[:-2]
            head += f"Content-Length: {len(reply.body)}\r\n\r\n".encode()
        return Reply(re.sub(rb"^HTTP/1.0", b"HTTP/1.1", head), reply.body)

    async def _send(self, name: str, request: Request, reply: Reply, writer: asyncio.StreamWriter) -> None:
        head, body = reply.head, reply.body
        if request.method == "HEAD":
            body = b""
        if name == "corrupted" and body:
            if request.kind == "get":
                middle = len(body) // 2
                body = body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]
            else:
                body = b"\xfe" * len(body)
        if name in ("slow", "slow body"):
            if name == "slow body":
                writer.write(head)
            for byte in body if name == "slow body" else head + body:
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(1)
            return
        if name == "truncated":
            writer.write(head + body[: len(body) // 2] if body else head[: len(head) // 2])
            await writer.drain()
            writer.close()  # not reset: what was written is to arrive
            raise ConnectionError
        writer.write(head + body)
        await writer.drain()


async def _content(head: bytes, reader: asyncio.StreamReader) -> bytes:
    if re.search(rb"(?im)^transfer-encoding:\s*chunked", head) is None:
        size = re.search(rb"(?im)^content-length:\s*(\d+)", head)
        return await (reader.read() if size is None else reader.readexactly(int(size[1])))
    parts = []
    while chunk := int((await reader.readuntil(b"\r\n")).partition(b";")[0], 16):
        parts.append(await reader.readexactly(chunk))
        await reader.readexactly(2)
    return b"".join(parts)


def _fits(headers: Mapping[str, str], body: bytes) -> bool:
    told = headers.get("x-amz-checksum-crc32c")
    return told is None or base64.b64decode(told) == google_crc32c.value(body).to_bytes(4)


def _reset(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    if sock is not None and not writer.is_closing():
        with suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def _closed(writer: asyncio.StreamWriter) -> None:
    """Close it, and return when that is so; cancelled, at once."""
    writer.close()
    try:
        await writer.wait_closed()
    except ConnectionError:
        pass
    except asyncio.CancelledError:
        writer.transport.abort()
        raise
