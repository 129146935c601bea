"""Who may talk to a driver: who knows the secret of its run, and is expected. Nobody else stops anything."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import struct

import pytest

from asynctune.errors import ConfigError
from asynctune.runners import meeting
from asynctune.runners.agent import Order
from asynctune.runners.frames import frame, message_of
from asynctune.runners.meeting import Listener, StrangerError, dial, new_secret
from asynctune.runners.peer import Peer, _closed

SECRET = b"0123456789abcdef" * 2


async def answer(op, arguments):
    return [op, arguments]


@pytest.fixture
async def listener():
    made = Listener(SECRET)
    await made.start("127.0.0.1")
    yield made
    await made.aclose()
    await made.aclose()


@pytest.fixture
async def expected(listener):
    """A driver's peer whose agent is `a1`."""
    peer = Peer(answer, name="the agent", lost_after_s=30, waits_first=True)
    serving = asyncio.create_task(peer.run())
    listener.expect("a1", peer)
    yield peer
    peer.close("ends")
    await serving


@contextlib.asynccontextmanager
async def connected(listener, agent_id="a1", secret=SECRET):
    reader, writer = await dial("127.0.0.1", listener.port, agent_id, secret)
    try:
        yield reader, writer
    finally:
        await _closed(writer)


async def read(reader):
    (size,) = struct.unpack("!I", await reader.readexactly(4))
    return message_of(await reader.readexactly(size))


async def test_an_agent_that_is_expected_is_handed_to_its_peer(listener, expected):
    agent = Peer(answer, name="the driver", lost_after_s=30)
    serving = asyncio.create_task(agent.run())
    agent.attach(*await dial("127.0.0.1", listener.port, "a1", SECRET))
    assert await expected.call("x", {"n": 1}) == ["x", {"n": 1}]
    assert await agent.call("y", {"n": 2}) == ["y", {"n": 2}]
    agent.close("ends")
    await serving


async def test_who_does_not_know_the_secret_gets_nowhere(listener, expected):
    with pytest.raises(ConnectionResetError):
        async with connected(listener, secret=new_secret()):
            pass
    assert not expected.has_connected


async def test_an_agent_that_is_not_expected_is_told_so(listener, expected):
    with pytest.raises(StrangerError, match="agent a2 is not expected any more"):
        async with connected(listener, "a2"):
            pass
    listener.forget("a1")
    listener.forget("a1")
    with pytest.raises(StrangerError, match="agent a1 is not expected any more"):
        async with connected(listener):
            pass
    assert not expected.has_connected


async def test_a_second_connection_of_an_agent_replaces_the_first(listener, expected):
    async with connected(listener) as (first, _), connected(listener) as (reader, writer):
        assert await first.read() == b""  # it was hung up
        writer.write(frame({"call": 1, "op": "x", "with": {}, "has": 1}))
        assert (await read(reader))["answer"] == 1


async def test_a_greeting_that_was_heard_is_of_no_use_again(listener, expected, monkeypatch):
    """The numbers that are signed are new each time."""
    sent = []

    class Tap(asyncio.StreamWriter):
        def write(self, data):
            sent.append(data)
            super().write(data)

    with monkeypatch.context() as tapped:
        tapped.setattr(asyncio.streams, "StreamWriter", Tap)
        async with connected(listener):
            pass
    [said] = [each for each in sent if b"a1" in each]
    assert SECRET not in b"".join(sent)
    reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
    await read(reader)
    writer.write(said)
    assert await reader.read() == b""
    await _closed(writer)


@pytest.mark.parametrize(
    "greeting",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        struct.pack("!I", 5000) + bytes(5000),
        frame({"agent": "a1"}),
        frame({"agent": "a1", "nonce": b"", "proof": "text"}),
        frame({"agent": 3, "nonce": b"", "proof": b""}),
        frame([1]),
        frame({"agent": "a1", "nonce": bytes(32), "proof": bytes(32)}),
        b"",
    ],
    ids=["http", "too-long", "no-proof", "text", "number", "list", "wrong", "nothing"],
)
async def test_strangers_are_hung_up(listener, expected, greeting):
    reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
    await read(reader)
    writer.write(greeting)
    if writer.can_write_eof():
        writer.write_eof()
    with contextlib.suppress(ConnectionError):
        assert await reader.read() == b""
    await _closed(writer)
    assert not expected.has_connected
    async with connected(listener):
        pass  # others are not kept from it


async def test_who_says_nothing_is_hung_up_after_a_while(listener, monkeypatch):
    monkeypatch.setattr(meeting, "_GREETING_S", 0.05)
    reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
    await read(reader)
    async with asyncio.timeout(5):
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
    await _closed(writer)


async def test_the_end_does_not_wait_for_strangers():
    listener = Listener(SECRET)
    await listener.start("127.0.0.1")
    reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
    await read(reader)
    async with asyncio.timeout(2):
        await listener.aclose()
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
    await _closed(writer)
    with pytest.raises(OSError, match="Connect"):
        await dial("127.0.0.1", listener.port, "a1", SECRET)


# -- the agent's end: whoever answers may be somebody else ---------------------------------------------------------


@contextlib.asynccontextmanager
async def somebody(says):
    """A server that is no driver; its port."""

    async def serve(reader, writer):
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await says(reader, writer)
        await _closed(writer)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await asyncio.sleep(0.01)


async def test_who_poses_as_the_driver_is_found_out():
    async def poses(reader, writer):
        writer.write(frame({"asynctune": 1, "nonce": bytes(32)}))
        await read(reader)
        writer.write(frame({"proof": bytes(32)}))
        await reader.read()

    async with somebody(poses) as port:
        with pytest.raises(StrangerError, match="does not know the secret"):
            await dial("127.0.0.1", port, "a1", SECRET)


async def test_who_sends_back_what_it_hears_is_found_out():
    """What an agent signs is of no use as a driver's signature."""

    async def reflects(reader, writer):
        nonce = bytes(32)
        writer.write(frame({"asynctune": 1, "nonce": nonce}))
        said = await read(reader)
        writer.write(frame({"proof": said["proof"]}))
        await reader.read()

    async with somebody(reflects) as port:
        with pytest.raises(StrangerError, match="does not know the secret"):
            await dial("127.0.0.1", port, "a1", SECRET)


@pytest.mark.parametrize(
    "says",
    [b"HTTP/1.1 400 Bad Request\r\n\r\n", frame({"asynctune": 99, "nonce": b"x"}), frame([1])],
    ids=["http", "another-release", "list"],
)
async def test_another_server_is_no_driver(says):
    async def speak(reader, writer):
        writer.write(says)
        await reader.read()

    async with somebody(speak) as port:
        with pytest.raises(StrangerError, match="no driver of this asynctune"):
            await dial("127.0.0.1", port, "a1", SECRET)


async def test_a_connection_that_breaks_while_they_greet_may_be_tried_again():
    async def hangs_up(reader, writer):
        writer.write(frame({"asynctune": 1, "nonce": bytes(32)})[:10])

    async with somebody(hangs_up) as port:
        with pytest.raises(ConnectionResetError):
            await dial("127.0.0.1", port, "a1", SECRET)


async def test_one_that_says_nothing_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(meeting, "_GREETING_S", 0.05)

    async def silent(reader, writer):
        await reader.read()

    async with somebody(silent) as port:
        with pytest.raises(TimeoutError):
            await dial("127.0.0.1", port, "a1", SECRET)


async def test_where_nobody_can_listen(listener):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ConfigError, match=r"cannot listen on 127\.0\.0\.1, port .* listen_host"):
            await Listener(SECRET).start("127.0.0.1", taken.getsockname()[1])


async def test_nothing_secret_is_said(listener, expected, caplog):
    caplog.set_level(logging.DEBUG)
    texts = []
    for agent_id, secret in (("a1", SECRET), ("a2", SECRET), ("a1", new_secret())):
        try:
            async with connected(listener, agent_id, secret):
                texts.append(repr(expected))
        except (StrangerError, OSError) as error:
            texts.append(f"{error!r} {error}")
    order = Order(
        host="h", port=1, agent_id="a1", secret=SECRET, hung_after_s=1, lost_after_s=1, worker_dir=None
    )
    texts += [repr(order), str(order), repr(listener), caplog.text]
    assert "a connection was refused" in caplog.text
    for text in texts:
        assert SECRET.decode() not in text
        assert SECRET.hex() not in text
    assert Order.unpack(order.pack()) == order
