"""Owns single requests to Google Cloud Storage: signed, their bodies streamed, their failures translated.

The client library makes the plain calls, and has the session. Whatever carries an object's bytes is sent here,
because the library reads files into memory and checks nothing.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from typing import Any, Final, TypeVar, cast
from urllib.parse import quote

import aiohttp
from gcloud.aio.storage import Storage
from yarl import URL

from asynctune.errors import AuthenticationError, StorageError
from asynctune.storage.gcs_auth import Credentials
from asynctune.storage.gcs_errors import broken, error_of, translated

__all__ = ["GcsHttp", "SentBody", "body_chunks", "parsed", "reply_json", "reply_text"]

T = TypeVar("T")

_MAX_REPLY_BYTES: Final = 1 << 20
_STALLED_S: Final = 60.0
_CONNECT_S: Final = 10.0
_CONNECTIONS: Final = 64
_READ_BYTES: Final = 256 << 10
_PLAIN_TIMEOUT_S: Final = 600  # behind the deadlines of `Retry`, which come first


class SentBody:
    """Bytes on their way to the server, which remember why they stopped.

    The HTTP client reads them in a task of its own, and may still do so when the request is over; a body that was
    closed breaks the connection then, because a shorter body must not look like a whole one.
    """

    def __init__(self, chunks: AsyncGenerator[bytes, None], size_bytes: int) -> None:
        self._chunks = chunks
        self._turn = asyncio.Lock()
        self._closed = False
        self.size_bytes = size_bytes
        self.sent = False
        self.error: StorageError | None = None

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        async with self._turn:
            if self._closed:
                raise ConnectionAbortedError
            try:
                return await anext(self._chunks)
            except StopAsyncIteration:
                self.sent = True
                raise
            except StorageError as error:
                self.error = error
                raise

    async def aclose(self) -> None:
        """Close the source."""
        async with self._turn:
            self._closed = True
            await self._chunks.aclose()


class GcsHttp:
    """A session with one bucket. To be made on the event loop, with credentials that were read in a thread."""

    def __init__(self, endpoint: str, bucket: str, credentials: Credentials, *, signed: bool) -> None:
        self._credentials = credentials
        self._signed = signed
        self._bucket = bucket
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=_CONNECTIONS),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S, sock_read=_STALLED_S),
            auto_decompress=False,
            read_bufsize=_READ_BYTES,
        )
        # The library calls `get` of the token alone; its own annotation of the session means another library.
        token, session = cast("Any", credentials), cast("Any", self._session)
        self._api = Storage(session=session, token=token, api_root=endpoint, api_is_dev=not signed)
        # A bucket's name and a key are percent-encoded whole: slashes in a key are no directories here.
        self._objects = f"{endpoint}/storage/v1/b/{quote(bucket, safe='')}/o"
        self._uploads = f"{endpoint}/upload/storage/v1/b/{quote(bucket, safe='')}/o"

    def object_url(self, name: str) -> str:
        """Of an object."""
        return f"{self._objects}/{quote(name, safe='')}"

    @property
    def uploads_url(self) -> str:
        """Where objects are sent."""
        return self._uploads

    # -- the library's calls ----------------------------------------------------------------------------------

    async def metadata(self, operation: str, key: str, name: str) -> dict[str, Any]:
        """What is known of an object."""
        reply = await self._plain(
            operation,
            key,
            lambda: self._api.download_metadata(
                self._bucket, name, headers={"Accept-Encoding": "identity"}, timeout=_PLAIN_TIMEOUT_S
            ),
        )
        return parsed(operation, key, reply)

    async def delete(self, key: str, name: str, params: Mapping[str, str] | None = None) -> None:
        """Delete an object."""
        reply = await self._plain(
            "delete",
            key,
            lambda: self._api.delete(self._bucket, name, params=dict(params or {}), timeout=_PLAIN_TIMEOUT_S),
        )
        if str(reply or "").strip():
            # who has deleted says nothing
            raise StorageError(
                f"delete of {key!r}: the server answers with success and says something else",
                operation="delete",
                key=key,
                retryable=True,
            )

    async def listing(self, operation: str, params: Mapping[str, str]) -> dict[str, Any]:
        """One page."""
        reply = await self._plain(
            operation,
            None,
            lambda: self._api.list_objects(
                self._bucket,
                params=dict(params),
                headers={"Accept-Encoding": "identity"},
                timeout=_PLAIN_TIMEOUT_S,
            ),
        )
        return parsed(operation, None, reply)

    async def _plain(self, operation: str, key: str | None, call: Callable[[], Awaitable[T]]) -> T:
        try:
            with translated(operation, key):
                return await call()
        except AuthenticationError as error:
            self._again(error)
            raise

    # -- requests of one's own --------------------------------------------------------------------------------

    @asynccontextmanager
    async def request(
        self,
        method: str,
        url: str,
        *,
        operation: str,
        key: str,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        body: SentBody | bytes | None = None,
        signed: bool = True,
    ) -> AsyncGenerator[aiohttp.ClientResponse, None]:
        """Send one request; the reply is open inside the block, whatever its status.

        Raises:
            StorageError: There was no reply; or the body's own error, which comes first.
        """
        every = {"Accept-Encoding": "identity", **(headers or {})}
        if signed and self._signed:
            every["Authorization"] = f"Bearer {await self._credentials.get()}"
        if isinstance(body, SentBody):
            every["Content-Length"] = str(body.size_bytes)
        target = URL(url, encoded=True)
        if params:
            target = target.update_query(dict(params))
        response: aiohttp.ClientResponse | None = None
        try:
            try:
                with translated(operation, key):
                    response = await self._session.request(
                        method, target, headers=every, data=body, allow_redirects=False
                    )
            except StorageError:
                if isinstance(body, SentBody) and body.error is not None:
                    raise body.error from None
                raise
            yield response
        finally:
            # Not released: a connection on which something was not read or not sent to its end is not used again.
            if response is not None and not (_is_over(response) and _is_sent(body)):
                response.close()
            if isinstance(body, SentBody):
                await body.aclose()

    async def failure(
        self, response: aiohttp.ClientResponse, operation: str, key: str, *, show: bool = True
    ) -> StorageError:
        """The error that a reply stands for."""
        text = await reply_text(response, operation, key)
        error = error_of(operation, key, response.status, response.headers, text, show=show)
        if isinstance(error, AuthenticationError):
            self._again(error)
        return error

    def _again(self, error: AuthenticationError) -> None:
        # A token may have run out, or been withdrawn: one more request, with a new one.
        if error.retryable:
            error.retryable = self._credentials.refused()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._session.close()
        await self._credentials.aclose()


def _is_over(response: aiohttp.ClientResponse) -> bool:
    return response.closed or response.content.at_eof()


def _is_sent(body: SentBody | bytes | None) -> bool:
    return not isinstance(body, SentBody) or body.sent


async def reply_text(response: aiohttp.ClientResponse, operation: str, key: str) -> str:
    """The text of a small reply."""
    data = bytearray()
    with translated(operation, key):
        async with aclosing(_chunks(response)) as chunks:
            async for chunk in chunks:
                data += chunk
                if len(data) > _MAX_REPLY_BYTES:
                    break
    return bytes(data).decode(errors="replace")


async def _chunks(response: aiohttp.ClientResponse) -> AsyncGenerator[bytes, None]:
    async for chunk in response.content.iter_any():
        yield chunk


async def body_chunks(response: aiohttp.ClientResponse, key: str) -> AsyncGenerator[bytes, None]:
    """The bytes of an object as they arrive."""
    with translated("get", key):
        async for chunk in response.content.iter_any():
            yield chunk


async def reply_json(response: aiohttp.ClientResponse, operation: str, key: str) -> dict[str, Any]:
    """The object that a reply describes."""
    text = await reply_text(response, operation, key)
    try:
        value = json.loads(text)
    except ValueError as error:
        failure = broken(operation, key, error)
    else:
        return parsed(operation, key, value)
    raise failure


def parsed(operation: str, key: str | None, value: Any) -> dict[str, Any]:
    """A reply of success has to be an object, and no error in disguise.

    Raises:
        StorageError: It is not; retryable.
    """
    if isinstance(value, dict) and "error" not in value:
        return value
    raise broken(operation, key, ValueError())
