"""Connections between two peers that a test breaks: after so many bytes, at once, or by silence."""

from __future__ import annotations

import asyncio
import contextlib
import socket

from asynctune.runners.peer import BUFFER_BYTES, Peer, _closed

LOOK_S = 0.02


async def ends_of_a_wire():
    """The streams at both ends of a connection; cancelled, they are closed."""
    making = asyncio.ensure_future(_ends())
    try:
        return await asyncio.shield(making)
    except asyncio.CancelledError:
        for _, writer in await making:
            await _closed(writer)
        raise


async def _ends():
    ours, theirs = socket.socketpair()
    return [
        await asyncio.open_connection(sock=ours, limit=BUFFER_BYTES),
        await asyncio.open_connection(sock=theirs, limit=BUFFER_BYTES),
    ]


class Wire:
    """A connection in two halves, which carries so many bytes each way and then breaks.

    Args:
        left: A peer.
        right: The other one.
        limits: How many bytes go from left to right, and back; `None`: any number.
    """

    def __init__(self, left, right, limits=(None, None)):
        self.left, self.right, self.limits = left, right, limits
        self.goes_on = asyncio.Event()  # cleared: it is silent, as a network that was cut
        self.goes_on.set()
        self.carried = 0
        self.task = asyncio.create_task(self.run())

    async def run(self):
        """Carry bytes until it breaks, or is cancelled."""
        (reader_a, writer_a), near = await ends_of_a_wire()
        try:
            (reader_b, writer_b), far = await ends_of_a_wire()
        except BaseException:
            await _closed(writer_a)
            await _closed(near[1])
            raise
        self.left.attach(*near)
        self.right.attach(*far)
        both = [
            asyncio.create_task(self._carry(reader_a, writer_b, self.limits[0])),
            asyncio.create_task(self._carry(reader_b, writer_a, self.limits[1])),
        ]
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in both:
                each.cancel()
            for writer in (writer_a, writer_b):
                writer.transport.abort()
            await asyncio.wait(both)

    async def _carry(self, reader, writer, limit):
        with contextlib.suppress(ConnectionError):
            while limit is None or limit > 0:
                data = await reader.read(65536 if limit is None else min(65536, limit))
                if not data:
                    return
                await self.goes_on.wait()
                writer.write(data)
                self.carried += len(data)
                await writer.drain()
                if limit is not None:
                    limit -= len(data)


class Pair:
    """Two peers that serve each other; ended by `aclose`."""

    def __init__(self, left=None, right=None, *, of_left=(), of_right=(), **options):
        async def nothing(op, arguments):
            return None

        options = {"lost_after_s": 30.0, "look_s": LOOK_S, **options}
        self.left = Peer(left or nothing, name="the right one", **{**options, **dict(of_left)})
        self.right = Peer(right or nothing, name="the left one", **{**options, **dict(of_right)})
        self.serving = []
        self.wires = []
        self.keeping = None

    async def __aenter__(self):
        self.serving = [asyncio.create_task(each.run()) for each in (self.left, self.right)]
        return self

    def connect(self, *limits):
        """Over a wire that breaks after so many bytes each way."""
        wire = Wire(self.left, self.right, limits or (None, None))
        self.wires.append(wire)
        return wire

    def keep_connecting(self, cuts):
        """One wire after the other, until the last, which lasts."""
        self.keeping = asyncio.create_task(self._keep_connecting(list(cuts)))

    async def _keep_connecting(self, cuts):
        for each in cuts:
            await asyncio.wait([self.connect(*each).task])
        self.connect()

    async def aclose(self):
        async with asyncio.timeout(10):
            if self.keeping is not None:
                self.keeping.cancel()
                await asyncio.wait([self.keeping])
            for wire in self.wires:
                if not wire.task.done():
                    await asyncio.sleep(0)  # it has begun
                    wire.task.cancel()
                    await asyncio.wait([wire.task])
            for each in (self.left, self.right):
                each.close("was closed by the test")
            for task in self.serving:
                await task
            for _ in range(3):
                await asyncio.sleep(0)  # the loop lets go of what was aborted

    async def __aexit__(self, *exc):
        await self.aclose()
