"""A small Google Cloud Storage that keeps to the protocol, for tests: preconditions, sessions, ranges, checksums.

It runs in the test's own event loop. Bytes are in a memory file, outside of what tracemalloc counts.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import os
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import formatdate
from typing import Any, Self
from urllib.parse import unquote

import google_crc32c
from aiohttp import web

CHUNK = 256 << 10
PREFIX = "/storage/v1/b/"

Fault = Callable[[web.Request], Awaitable[web.StreamResponse | None]]


@dataclass
class Piece:
    """Bytes as they came, somewhere in the memory file."""

    fd: int
    spans: list[tuple[int, int]] = field(default_factory=list)
    size: int = 0
    crc32c: int = 0

    def add(self, data: bytes) -> None:
        at = os.lseek(self.fd, 0, os.SEEK_END)
        os.pwrite(self.fd, data, at)
        self.spans.append((at, len(data)))
        self.size += len(data)
        self.crc32c = google_crc32c.extend(self.crc32c, data)

    def between(self, begin: int, end: int):
        position = 0
        for at, size in self.spans:
            first, last = max(begin - position, 0), min(end - position, size)
            if first < last:
                yield os.pread(self.fd, last - first, at + first)
            position += size


@dataclass
class Stored:
    content: Piece
    generation: int
    stored_at: float


@dataclass
class Session:
    name: str
    size: int
    condition: str | None
    crc32c: str | None
    content: Piece
    resource: dict | None = None


def text_of(crc32c: int) -> str:
    return base64.b64encode(crc32c.to_bytes(4)).decode()


def _name_of(request: web.Request, metadata: dict[str, Any]) -> str:
    """Of the object that is to be made: the body's goes before the query's."""
    return str(metadata.get("name") or request.query["name"])


class FakeGcs:
    """One server with one bucket.

    Attributes:
        faults: Asked one after the other before each request is served; the first answer is sent instead.
        takes: How many bytes of a chunk of a session are taken at most, in multiples of 256 KiB.
        damage: Damages bodies that are read.
        flips: So many of the next uploads lose a bit on their way here.
        ignores: Checksums are not looked at.
        writes: How many objects were stored.
        page: Greatest number of entries in a page.
    """

    def __init__(self, bucket: str = "bucket") -> None:
        self.bucket = bucket
        self.objects: dict[str, Stored] = {}
        self.sessions: dict[str, Session] = {}
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.received = 0
        self.faults: list[Fault] = []
        self.takes: int | None = None
        self.damage = False
        self.flips = 0
        self.ignores = False
        self.writes = 0
        self.page = 1000
        self.token: str | None = None
        self._fd = os.memfd_create("fake-gcs")
        self._numbers = itertools.count(time.time_ns() // 1000)
        self._runner: web.AppRunner | None = None
        self.url = ""

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/{path:.*}", self._serve)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._runner is not None
        await self._runner.cleanup()
        os.close(self._fd)

    # -- requests --------------------------------------------------------------------------------------------

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        self.requests.append((request.method, request.rel_url.raw_path, dict(request.headers)))
        for fault in self.faults:
            if (answer := await fault(request)) is not None:
                return answer
        return await self.serve(request)

    async def serve(self, request: web.Request) -> web.StreamResponse:
        path = request.rel_url.raw_path
        if path.startswith("/session/"):
            return await self._session(request, path.removeprefix("/session/"))
        if self.token is not None and request.headers.get("Authorization") != f"Bearer {self.token}":
            return refusal(401, "Invalid Credentials")
        upload = path.startswith("/upload")
        bucket, _, rest = path.removeprefix("/upload").removeprefix(PREFIX).partition("/o")
        if unquote(bucket) != self.bucket:
            return refusal(404, "The specified bucket does not exist.")
        if upload:
            resumable = request.query["uploadType"] == "resumable"
            return await (self._begin(request) if resumable else self._multipart(request))
        name = unquote(rest.removeprefix("/"))
        if not name:
            return self._list(request)
        if request.method == "DELETE":
            return self._delete(request, name)
        return await self._get(request, name)

    def _holds(self, name: str, condition: str | None) -> bool:
        there = self.objects.get(name)
        return condition is None or int(condition) == (0 if there is None else there.generation)

    def _store(self, name: str, content: Piece) -> dict:
        self.writes += 1
        self.objects[name] = Stored(content, next(self._numbers), time.time())
        return self._resource(name)

    def _resource(self, name: str) -> dict:
        stored = self.objects[name]
        return {
            "kind": "storage#object",
            "name": name,
            "bucket": self.bucket,
            "generation": str(stored.generation),
            "size": str(stored.content.size),
            "crc32c": text_of(stored.content.crc32c),
            "updated": datetime.fromtimestamp(stored.stored_at, UTC).isoformat(),
        }

    async def _multipart(self, request: web.Request) -> web.StreamResponse:
        boundary = request.content_type and request.headers["Content-Type"].partition("boundary=")[2]
        head, content = b"", Piece(self._fd)
        opening = f"--{boundary}\r\n".encode()
        closing = f"\r\n--{boundary}--\r\n".encode()
        held = b""
        metadata: dict | None = None
        async for chunk in request.content.iter_any():
            self.received += len(chunk)
            held += chunk
            if metadata is None:
                parts = held.split(opening, 2)
                if len(parts) < 3 or b"\r\n\r\n" not in parts[2]:
                    continue
                head, held = parts[1], parts[2].partition(b"\r\n\r\n")[2]
                metadata = json.loads(head.partition(b"\r\n\r\n")[2])
            if len(held) > len(closing) + CHUNK:
                content.add(held[: -len(closing)])
                held = held[-len(closing) :]
        if metadata is None or not held.endswith(closing):
            return refusal(400, "Malformed multipart body.")
        if rest := held.removesuffix(closing):
            if self.flips:
                self.flips -= 1
                rest = bytes([rest[0] ^ 1]) + rest[1:]
            content.add(rest)
        return self._finish(
            _name_of(request, metadata),
            content,
            request.query.get("ifGenerationMatch"),
            metadata.get("crc32c"),
        )

    def _finish(self, name: str, content: Piece, condition: str | None, crc32c: str | None) -> web.Response:
        if not self.ignores and crc32c is not None and crc32c != text_of(content.crc32c):
            return refusal(400, f"Provided CRC32C {crc32c!r} doesn't match calculated CRC32C.")
        if not self._holds(name, condition):
            return refusal(412, "At least one of the pre-conditions you specified did not hold.")
        return web.json_response(self._store(name, content))

    async def _get(self, request: web.Request, name: str) -> web.StreamResponse:
        condition = request.query.get("ifGenerationMatch")
        if name not in self.objects:
            return refusal(404, f"No such object: {self.bucket}/{name}")
        if not self._holds(name, condition):
            return refusal(412, "At least one of the pre-conditions you specified did not hold.")
        if request.query.get("alt") != "media":
            return web.json_response(self._resource(name))
        stored = self.objects[name]
        content, begin, end, status = stored.content, 0, stored.content.size, 200
        headers = {
            "X-Goog-Generation": str(stored.generation),
            "X-Goog-Hash": f"crc32c={text_of(content.crc32c)}",
            "Last-Modified": formatdate(stored.stored_at, usegmt=True),
        }
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", "")):
            begin, status = int(wanted[1]), 206
            end = min(end, int(wanted[2]) + 1) if wanted[2] else end
            if begin >= content.size:
                return web.Response(status=416, headers={"Content-Range": f"bytes */{content.size}"})
            headers["Content-Range"] = f"bytes {begin}-{end - 1}/{content.size}"
        reply = web.StreamResponse(status=status, headers=headers)
        reply.content_length = end - begin
        await reply.prepare(request)
        for chunk in content.between(begin, end):
            await reply.write(bytes(len(chunk)) if self.damage else chunk)
        await reply.write_eof()
        return reply

    def _delete(self, request: web.Request, name: str) -> web.Response:
        if name not in self.objects:
            return refusal(404, f"No such object: {self.bucket}/{name}")
        if not self._holds(name, request.query.get("ifGenerationMatch")):
            return refusal(412, "At least one of the pre-conditions you specified did not hold.")
        del self.objects[name]
        return web.Response(status=204)

    def _list(self, request: web.Request) -> web.Response:
        query = request.query
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        offset, token = query.get("startOffset", ""), query.get("pageToken", "")
        entries: dict[str, bool] = {}
        for name in sorted(self.objects):
            if name.startswith(prefix) and name >= offset:
                above, slash, _ = name[len(prefix) :].partition(delimiter or "\0")
                entries[prefix + above + slash if slash else name] = bool(slash)
        names = sorted(name for name in entries if name > token)
        page = names[: min(self.page, int(query.get("maxResults", self.page)))]
        answer: dict = {"kind": "storage#objects"}
        if items := [self._resource(name) for name in page if not entries[name]]:
            answer["items"] = items
        if prefixes := [name for name in page if entries[name]]:
            answer["prefixes"] = prefixes
        if len(page) < len(names):
            answer["nextPageToken"] = page[-1]
        return web.json_response(answer)

    # -- sessions --------------------------------------------------------------------------------------------

    async def _begin(self, request: web.Request) -> web.Response:
        metadata = await request.json()
        condition = request.query.get("ifGenerationMatch")
        number = f"secret-{next(self._numbers)}"
        size = int(request.headers["X-Upload-Content-Length"])
        self.sessions[number] = Session(
            _name_of(request, metadata), size, condition, metadata.get("crc32c"), Piece(self._fd)
        )
        return web.Response(headers={"Location": f"{self.url}/session/{number}"})

    async def _session(self, request: web.Request, number: str) -> web.StreamResponse:
        session = self.sessions.get(number)
        if request.method == "DELETE":
            self.sessions.pop(number, None)
            return web.Response(status=404 if session is None else 499)
        if session is None:
            return web.Response(status=499)
        if session.resource is not None:
            return web.json_response(session.resource)
        asked = request.headers["Content-Range"]
        if asked == f"bytes */{session.size}":
            return self._incomplete(session)
        wanted = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", asked)
        assert wanted is not None
        begin, end, size = int(wanted[1]), int(wanted[2]) + 1, int(wanted[3])
        if size != session.size or begin > session.content.size or (end < size and (end - begin) % CHUNK):
            return refusal(503 if begin > session.content.size else 400, "Invalid request.")
        await self._take(request, session, begin)
        if session.content.size < session.size:
            return self._incomplete(session)
        reply = self._finish(session.name, session.content, session.condition, session.crc32c)
        if reply.status == 200:
            session.resource = self._resource(session.name)
        else:
            del self.sessions[number]
        return reply

    async def _take(self, request: web.Request, session: Session, begin: int) -> None:
        """What comes is kept in whole units of 256 KiB, also of a request that breaks off."""
        skip, held, taken = session.content.size - begin, b"", 0
        try:
            async for chunk in request.content.iter_any():
                self.received += len(chunk)
                new = chunk[skip:]
                skip = max(skip - len(chunk), 0)
                held += new
                while len(held) >= CHUNK and (self.takes is None or taken < self.takes):
                    session.content.add(held[:CHUNK])
                    held, taken = held[CHUNK:], taken + CHUNK
        except (ConnectionError, asyncio.CancelledError):
            return
        if session.content.size + len(held) == session.size and self.takes is None:
            session.content.add(held)

    @staticmethod
    def _incomplete(session: Session) -> web.Response:
        size = session.content.size
        headers = {"Range": f"bytes=0-{size - 1}"} if size else {}
        return web.Response(status=308, headers=headers)


def refusal(
    status: int, message: str, reason: str = "", headers: dict[str, str] | None = None
) -> web.Response:
    body = {"error": {"code": status, "message": message, "errors": [{"reason": reason, "message": message}]}}
    return web.json_response(body, status=status, headers=headers)
