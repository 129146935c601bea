"""Owns the talk between a driver and an agent: calls in both directions, over connections that may break and come back.

A call is answered once, however often the connection breaks meanwhile: what is not answered goes again over the next
connection, and what was answered already is answered from memory. Who connects to whom, and who may, is `meeting`'s;
what the calls mean is `remote`'s and `agent`'s. Frames are `frames`': msgpack, so nothing that comes can run code.

Memory is bounded: large messages take from a `ByteBudget` before they are read, so a sender that is quicker than the
disk finds its connection full.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, Final

from asynctune.runners.frames import FrameError, frame, length_of, message_of
from asynctune.runners.told_errors import raised, told
from asynctune.storage.budget import ByteBudget

__all__ = ["Handler", "Peer", "PeerLostError"]

logger = logging.getLogger("asynctune")

Handler = Callable[[str, Mapping[str, Any]], Awaitable[Any]]
"""Answers a call: its name and arguments, to a msgpack value."""

BUFFER_BYTES: Final = 1 << 20
"""How much a connection reads ahead."""

_BULK_BYTES: Final = 64 * 1024
_HEAD_BYTES: Final = 4


class PeerLostError(ConnectionError):
    """The other side is gone for good; says why."""


@dataclass(slots=True)
class _Connection:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @property
    def is_idle(self) -> bool:
        """Whether a sign of life is worth sending: what is under way is one."""
        return not self.writer.is_closing() and not self.writer.transport.get_write_buffer_size()


@dataclass(slots=True)
class _Call:
    """One that waits for its answer."""

    sent: bytes
    answer: asyncio.Future[Any] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Peer:
    """One end. `run` serves it until the other end is lost or `close` is called; somebody owns that task.

    Args:
        handle: Answers the other end's calls; several at a time. What it raises is raised there, see `told_errors`.
        name: Who the other end is, for messages.
        lost_after_s: Without a sign of life for so long it is lost. Counted in looks, not read from a clock: who was
            suspended blames nobody.
        back_within_s: How long a connection that broke may take to come back.
        waits_first: Until the other end has connected for the first time, it may take as long as it likes.
        renew_after_s: With a connection that says nothing for so long, another one is tried: for the end that can.
        look_s: Seconds between two looks, and two signs of life of this end.
        budget: What large messages take from; may be shared by many.
    """

    def __init__(
        self,
        handle: Handler,
        *,
        name: str,
        lost_after_s: float,
        back_within_s: float = 20.0,
        waits_first: bool = False,
        renew_after_s: float | None = None,
        look_s: float = 1.0,
        budget: ByteBudget | None = None,
    ) -> None:
        self.name = name
        self._handle = handle
        self._lost_after_s = lost_after_s
        self._back_within_s = min(back_within_s, lost_after_s)
        self._renew_after_s = renew_after_s
        self._look_s = min(look_s, lost_after_s / 4)
        self._budget = ByteBudget(64 << 20) if budget is None else budget
        self._connection: _Connection | None = None
        self._changed = asyncio.Event()
        self._over = asyncio.Event()
        self._detached = asyncio.Event()
        self._detached.set()
        self._closed: str | None = None
        self._waits = waits_first
        self._renews = False
        self._heard = 0
        self._reads = True  # no room for what it sends: then its silence is not its own
        self._held: set[AsyncExitStack] = set()
        self._next_call = 1
        self._calls: dict[int, _Call] = {}
        self._answering: set[int] = set()
        self._answers: dict[int, bytes] = {}
        self._forgotten = 0
        """Calls of the other end below this number were answered, and it has the answers."""

    @property
    def why_closed(self) -> str | None:
        """Why nothing is said any more; `None`: it may be."""
        return self._closed

    @property
    def has_connected(self) -> bool:
        """Whether the other end has been there."""
        return not self._waits

    # -- connections ---------------------------------------------------------------------------------------

    def attach(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Go on over this connection, whose other end has shown who it is; the one before, if any, ends."""
        if self._closed is not None:
            writer.transport.abort()
            return
        if self._connection is not None:
            self._connection.writer.transport.abort()
        self._connection = _Connection(reader, writer)
        self._heard += 1
        self._waits = self._renews = False
        self._detached.clear()
        self._changed.set()
        for call in self._calls.values():  # in order; of what is answered already, the answer comes again
            writer.write(call.sent)

    async def detached(self) -> None:
        """Return when there is no connection."""
        await self._detached.wait()

    def close(self, why: str) -> None:
        """Say nothing more: calls that wait fail with a `PeerLostError`. Again: does nothing."""
        if self._closed is not None:
            return
        self._closed = why
        self._over.set()
        self._detached.set()
        if self._connection is not None:
            self._connection.writer.transport.abort()  # closed politely, it would wait for who does not read
        for call in self._calls.values():
            if not call.answer.done():
                call.answer.set_exception(PeerLostError(f"{self.name} {why}"))
                call.answer.exception()  # who was cancelled meanwhile does not ask
        self._calls.clear()

    # -- calls ---------------------------------------------------------------------------------------------

    async def call(self, op: str, arguments: Mapping[str, Any] | None = None) -> Any:
        """Ask the other end, and wait for its answer. Cancelled, the answer is not waited for.

        Args:
            op: What is asked. One with a dot in its name moves bytes and is answered soon: until then it counts
                against the other end's budget.
            arguments: A msgpack value.

        Raises:
            PeerLostError: The other end is lost; what was asked may have been done.
            ConfigError: The arguments cannot be packed, or are too large; or the other end says so of something else.
            AsynctuneError: What the other end raised.
        """
        if self._closed is not None:
            raise PeerLostError(f"{self.name} {self._closed}")
        number = self._next_call
        message = {"call": number, "op": op, "with": dict(arguments or {}), "has": self._has()}
        call = _Call(frame(message, f"the call {op!r}"))
        self._next_call += 1
        self._calls[number] = call
        try:
            await self._send(call.sent)
            return await call.answer
        finally:
            self._calls.pop(number, None)

    def _has(self) -> int:
        """Every call of this end below this number has its answer."""
        return min(self._calls, default=self._next_call)

    async def _send(self, data: bytes) -> None:
        """Over the connection there is; where there is none, the next one brings it."""
        connection = self._connection
        if connection is None or connection.writer.is_closing():
            return
        with contextlib.suppress(ConnectionError):
            connection.writer.write(data)
            await connection.writer.drain()

    # -- serving -------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve the other end until it is lost or `close` is called; calls of its that are being answered then end."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._watch())
                tasks.create_task(self._serve_all(tasks))
                await self._over.wait()
                raise _EndError
        except* _EndError:
            pass
        finally:
            self.close("was given up")
            for stack in list(self._held):  # of calls that nobody has begun to answer
                await self._let_go(stack)
            if self._connection is not None:
                await _closed(self._connection.writer)
                self._connection = None

    async def _serve_all(self, tasks: asyncio.TaskGroup) -> None:
        while True:
            self._changed.clear()
            if self._connection is not None:
                await self._serve(self._connection, tasks)
            else:
                await self._changed.wait()

    async def _serve(self, connection: _Connection, tasks: asyncio.TaskGroup) -> None:
        try:
            while True:
                await self._take(await self._receive(connection.reader), tasks)
        except (asyncio.IncompleteReadError, OSError):
            pass  # it broke, or was replaced
        except FrameError as error:
            logger.warning("%s sent what cannot be read, and has to connect again: %s", self.name, error)
        finally:
            if self._connection is connection:
                self._connection = None
                self._detached.set()
            await _closed(connection.writer)

    async def _receive(self, reader: asyncio.StreamReader) -> tuple[Mapping[str, Any], AsyncExitStack]:
        size = length_of(await reader.readexactly(_HEAD_BYTES))
        self._heard += 1
        stack = AsyncExitStack()
        self._held.add(stack)
        try:
            if size > _BULK_BYTES:
                self._reads = False
                try:
                    await stack.enter_async_context(self._budget.take(size))
                finally:
                    self._reads = True
            message = message_of(await self._body(reader, size))
            if not isinstance(message, Mapping):
                raise FrameError(f"{message!r:.80} makes no sense")
        except BaseException:
            await self._let_go(stack)
            raise
        return message, stack

    async def _body(self, reader: asyncio.StreamReader, size: int) -> bytes | bytearray:
        """So many bytes; each part is a sign of life."""
        body = bytearray()
        while len(body) < size:
            part = await reader.read(min(size - len(body), BUFFER_BYTES))
            if not part:
                raise asyncio.IncompleteReadError(bytes(body), size)
            body += part
            self._heard += 1
        return body

    async def _take(
        self, received: tuple[Mapping[str, Any], AsyncExitStack], tasks: asyncio.TaskGroup
    ) -> None:
        message, stack = received
        if isinstance(has := message.get("has"), int) and has > self._forgotten:
            self._forgotten = has
            for number in [number for number in self._answers if number < has]:
                del self._answers[number]
        match message:
            case {"call": int(number), "op": str(op), "with": dict(arguments)}:
                if "." in op:
                    tasks.create_task(self._answer(number, op, arguments, stack))
                    return
                # It may take long: others need the budget for it to end.
                await self._let_go(stack)
                tasks.create_task(self._answer(number, op, arguments))
                return
            case {"answer": int(number)}:
                call = self._calls.get(number)
                if call is not None and not call.answer.done():
                    if "error" in message:
                        call.answer.set_exception(raised(message["error"]))
                    else:
                        call.answer.set_result(message.get("value"))
        await self._let_go(stack)

    async def _let_go(self, stack: AsyncExitStack) -> None:
        self._held.discard(stack)
        await stack.aclose()

    async def _answer(
        self, number: int, op: str, arguments: Mapping[str, Any], stack: AsyncExitStack | None = None
    ) -> None:
        try:
            if number < self._forgotten or number in self._answering:
                return  # it comes again, over a new connection
            said = self._answers.get(number)
            if said is None:
                self._answering.add(number)
                try:
                    said = await self._said(number, op, arguments)
                finally:
                    self._answering.discard(number)
                if number >= self._forgotten:
                    self._answers[number] = said
        finally:
            if stack is not None:
                await self._let_go(stack)
        await self._send(said)

    async def _said(self, number: int, op: str, arguments: Mapping[str, Any]) -> bytes:
        try:
            value = await self._handle(op, arguments)
            return frame({"answer": number, "value": value}, f"the answer to {op!r}")
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            return frame(
                {"answer": number, "error": told(error)}
            )  # what it waited for was given up, not this
        except Exception as error:  # noqa: BLE001 - whoever asked is told
            return frame({"answer": number, "error": told(error)})

    async def _watch(self) -> None:
        """Give signs of life, and look for those of the other end."""
        heard, quiet_s, away_s = -1, 0.0, 0.0
        while self._closed is None:
            await asyncio.sleep(self._look_s)
            connection = self._connection
            if connection is not None and connection.is_idle:
                connection.writer.write(frame({"beat": 1, "has": self._has()}))
            is_quiet = heard == self._heard and self._reads and not self._waits
            quiet_s = quiet_s + self._look_s if is_quiet else 0.0
            away_s = away_s + self._look_s if is_quiet and connection is None and not self._renews else 0.0
            heard = self._heard
            if away_s >= self._back_within_s:
                self.close(f"has closed its connection, and did not come back for {away_s:g} s")
            elif quiet_s >= self._lost_after_s:
                self.close(f"has given no sign of life for {quiet_s:g} s")
            elif (
                connection is not None and self._renew_after_s is not None and quiet_s >= self._renew_after_s
            ):
                # It may be of no use: what lies between two machines forgets connections, and tells nobody.
                self._renews = True
                connection.writer.transport.abort()


class _EndError(Exception):
    """Ends the tasks of a peer."""


async def _closed(writer: asyncio.StreamWriter) -> None:
    """Close a connection at once: what is not sent yet is not waited for."""
    writer.transport.abort()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
