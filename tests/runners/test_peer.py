"""Calls between two machines: each answered once, however often the connection breaks; and what ends them."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import struct
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asynctune.errors import ConfigError, NotFoundError, StorageError, TrialFailedError
from asynctune.runners.frames import frame, receive_frame
from asynctune.runners.peer import Peer, PeerLostError, _closed
from asynctune.storage.budget import ByteBudget
from tests.runners.wires import LOOK_S, Pair, ends_of_a_wire
from tests.runners.world import until


class Echo:
    """Answers with what it was asked, and counts."""

    def __init__(self):
        self.seen: Counter[str] = Counter()

    async def __call__(self, op, arguments):
        self.seen[op] += 1
        await asyncio.sleep(0)
        return arguments


async def test_both_ends_ask_and_are_answered():
    left, right = Echo(), Echo()
    async with Pair(left, right) as pair:
        pair.connect()
        answers = await asyncio.gather(
            *(peer.call(f"n{n}", {"n": n}) for n in range(20) for peer in (pair.left, pair.right))
        )
    assert answers == [{"n": n} for n in range(20) for _ in range(2)]
    assert set(left.seen.values()) == set(right.seen.values()) == {1}


async def test_a_call_waits_for_the_first_connection():
    async with Pair(waits_first=True) as pair:
        assert not pair.left.has_connected
        asking = asyncio.create_task(pair.left.call("x"))
        await asyncio.sleep(5 * LOOK_S)
        assert not asking.done()
        pair.connect()
        assert await asking is None
        assert pair.left.has_connected


# -- connections that break ------------------------------------------------------------------------------------

cuts = st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 3000)), max_size=8)
sizes = st.lists(st.sampled_from([0, 10, 200, 2000, 150_000]), min_size=1, max_size=8)


@settings(max_examples=40)
@given(cuts, sizes, sizes)
def test_each_call_is_answered_once_whatever_breaks(cuts, to_right, to_left):
    """After any number of bytes in either direction: nothing is done twice, and every answer comes."""

    async def ask():
        left, right = Echo(), Echo()
        async with Pair(left, right) as pair:
            pair.keep_connecting(cuts)
            async with asyncio.timeout(20):
                answers = await asyncio.gather(
                    *(pair.left.call(f"r{n}", {"b": b"x" * size}) for n, size in enumerate(to_right)),
                    *(pair.right.call(f"l.{n}", {"b": b"y" * size}) for n, size in enumerate(to_left)),
                )
        assert [len(each["b"]) for each in answers] == [*to_right, *to_left]
        assert right.seen == {f"r{n}": 1 for n in range(len(to_right))}
        assert left.seen == {f"l.{n}": 1 for n in range(len(to_left))}

    asyncio.run(ask())


async def test_many_breaks_while_calls_go_on(rng, caplog):
    """Callers that wait for their answers before they ask again, over wires of any length, for a while."""
    right = Echo()
    async with Pair(right=right) as pair:
        asked: Counter[str] = Counter()

        async def ask(name):
            for n in range(60):
                asked[f"{name}{n}"] += 1
                size = rng.choice([1, 100, 5000, 70_000])
                assert len((await pair.left.call(f"{name}{n}", {"b": bytes(size)}))["b"]) == size

        pair.keep_connecting([(rng.randrange(400_000), rng.randrange(400_000)) for _ in range(60)])
        await asyncio.gather(*(ask(name) for name in "abcd"))
    assert right.seen == asked
    assert "socket.send() raised" not in caplog.text


async def test_a_new_connection_replaces_one_that_says_nothing():
    """One end knows that it broke, and the other does not yet."""
    async with Pair() as pair:
        first = pair.connect()
        await pair.left.call("x")
        first.goes_on.clear()
        asking = asyncio.create_task(pair.left.call("y", {"b": b"z" * 3_000_000}))  # more than buffers hold
        await asyncio.sleep(5 * LOOK_S)
        assert not asking.done()
        pair.connect()
        async with asyncio.timeout(5):
            await asking


async def test_who_can_tries_another_connection_after_a_silence():
    """What lies between two machines may forget a connection, and tell neither of them."""
    async with Pair(of_left={"renew_after_s": 5 * LOOK_S}) as pair:
        pair.connect().goes_on.clear()
        asking = asyncio.create_task(pair.left.call("x"))
        await pair.left.detached()
        pair.connect()
        async with asyncio.timeout(5):
            await asking


# -- memory ----------------------------------------------------------------------------------------------------


async def test_large_messages_take_from_the_budget_until_they_are_answered():
    budget = ByteBudget(400_000)
    most = now = 0

    async def store(op, arguments):
        nonlocal most, now
        now += len(arguments["b"])
        most = max(most, now)
        await asyncio.sleep(0.002)
        now -= len(arguments["b"])

    async with Pair(right=store, of_right={"budget": budget}) as pair:
        pair.connect()
        await asyncio.gather(*(pair.left.call("x.y", {"b": bytes(190_000)}) for _ in range(20)))
        assert 190_000 < most <= 400_000
        await pair.left.call("x.y", {"b": bytes(1_000_000)})  # more than there is
    assert budget.taken_bytes == 0


async def test_a_call_that_may_take_long_keeps_nothing_of_the_budget():
    """A large report waits for its checkpoint, whose bytes need the budget to come."""
    came = asyncio.Event()

    async def report(op, arguments):
        if op == "report":
            await came.wait()
        came.set()

    async with Pair(right=report, of_right={"budget": ByteBudget(100_000)}) as pair:
        pair.connect()
        async with asyncio.timeout(5):
            await asyncio.gather(
                pair.left.call("report", {"b": bytes(300_000)}), pair.left.call("a.b", {"b": bytes(300_000)})
            )


async def test_a_full_budget_is_not_the_other_ends_silence():
    budget = ByteBudget(100_000)
    async with Pair(of_right={"budget": budget}, lost_after_s=5 * LOOK_S) as pair:
        async with budget.take(100_000):
            pair.connect()
            asking = asyncio.create_task(pair.left.call("x.y", {"b": bytes(90_000)}))
            await asyncio.sleep(20 * LOOK_S)
            assert pair.right.why_closed is None
            assert not asking.done()
        await asking


async def test_a_slow_large_message_is_not_silence():
    async with Pair(lost_after_s=25 * LOOK_S) as pair:
        wire = pair.connect()

        async def slow():
            while True:
                wire.goes_on.clear()
                await asyncio.sleep(3 * LOOK_S)
                wire.goes_on.set()
                await asyncio.sleep(0)

        slowing = asyncio.create_task(slow())
        await pair.left.call("x.y", {"b": bytes(2_000_000)})
        slowing.cancel()
        assert pair.right.why_closed is None


async def test_answers_are_forgotten_when_they_have_come():
    async with Pair(Echo(), Echo()) as pair:
        pair.connect()
        most = 0
        for _ in range(300):
            await asyncio.gather(*(pair.left.call("x", {"n": n}) for n in range(20)))
            most = max(most, len(pair.right._answers))
        assert most <= 60
        await until(lambda: not pair.right._answers)  # a sign of life tells, too
        assert not pair.right._answering
        assert not pair.left._calls


async def test_an_end_leaves_the_budget_as_it_was():
    """Also of messages that nobody has begun to answer."""
    budget = ByteBudget(1_000_000)

    async def stuck(op, arguments):
        await asyncio.Event().wait()

    for turns in range(0, 40, 3):
        async with Pair(right=stuck, of_right={"budget": budget}) as pair:
            pair.connect()
            asking = [asyncio.create_task(pair.left.call("x.y", {"b": bytes(90_000)})) for _ in range(12)]
            for _ in range(turns):
                await asyncio.sleep(0)
            pair.right.close("ends")
            pair.left.close("ends")
            for each in asking:
                with pytest.raises(PeerLostError):
                    await each
        assert budget.taken_bytes == 0


# -- who is lost -----------------------------------------------------------------------------------------------


async def test_who_says_nothing_is_lost():
    async with Pair(lost_after_s=5 * LOOK_S) as pair:
        wire = pair.connect()
        await pair.left.call("x")
        await asyncio.sleep(10 * LOOK_S)
        assert pair.left.why_closed is None, "signs of life are enough"
        wire.goes_on.clear()
        with pytest.raises(PeerLostError, match="the right one has given no sign of life for 0"):
            await pair.left.call("x")
        with pytest.raises(PeerLostError, match="no sign of life"):
            await pair.left.call("x")


async def test_who_does_not_come_back_is_lost():
    async with Pair(back_within_s=5 * LOOK_S) as pair:
        wire = pair.connect()
        await pair.left.call("x")
        wire.task.cancel()
        with pytest.raises(
            PeerLostError, match="the right one has closed its connection, and did not come back"
        ):
            await pair.left.call("x")


async def test_one_who_was_quiet_before_has_its_time_to_come_back():
    async with Pair(lost_after_s=100 * LOOK_S, back_within_s=20 * LOOK_S) as pair:
        wire = pair.connect()
        wire.goes_on.clear()
        await asyncio.sleep(30 * LOOK_S)
        wire.task.cancel()
        await pair.left.detached()
        await asyncio.sleep(5 * LOOK_S)
        pair.connect()
        await pair.left.call("x")


async def test_one_who_never_reads_does_not_hold_up_the_end():
    """What is written and not taken would be waited for by a polite end."""
    peer = Peer(Echo(), name="the other one", lost_after_s=30, look_s=LOOK_S)
    (reader, writer), (_, silent) = await ends_of_a_wire()
    running = asyncio.create_task(peer.run())
    peer.attach(reader, writer)
    asking = asyncio.create_task(peer.call("x", {"b": bytes(30_000_000)}))
    await asyncio.sleep(0.05)
    peer.close("was ended")
    async with asyncio.timeout(2):
        with pytest.raises(PeerLostError, match="the other one was ended"):
            await asking
        await running
    await _closed(silent)


async def test_a_suspended_end_blames_nobody(monkeypatch):
    """Its clock jumps; the looks that it counts do not."""
    async with Pair(lost_after_s=10 * LOOK_S) as pair:
        pair.connect()
        await pair.left.call("x")
        loop = asyncio.get_running_loop()
        real = loop.time
        monkeypatch.setattr(loop, "time", lambda: real() + 1000)
        await pair.left.call("x")
        assert pair.left.why_closed is None


# -- what goes wrong ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "garbage",
    [
        struct.pack("!I", 2**31) + b"x",
        struct.pack("!I", 3) + b"\xc1\xc1\xc1",
        frame([1, 2]),
        struct.pack("!I", 0),
        b"GET / HTTP/1.1\r\n\r\n",
    ],
    ids=["too-long", "not-packed", "not-a-map", "empty", "http"],
)
async def test_who_sends_what_cannot_be_read_has_to_connect_again(garbage, caplog):
    peer = Peer(Echo(), name="the other one", lost_after_s=30, look_s=LOOK_S)
    running = asyncio.create_task(peer.run())
    ours, (reader, writer) = await ends_of_a_wire()
    peer.attach(*ours)
    writer.write(garbage)
    while await reader.read(1 << 16):
        pass
    await _closed(writer)
    assert "the other one sent what cannot be read" in caplog.text
    ours, (reader, writer) = await ends_of_a_wire()
    peer.attach(*ours)
    writer.write(frame({"call": 1, "op": "x", "with": {}, "has": 1}))
    assert struct.unpack("!I", await reader.readexactly(4))[0] > 0
    await _closed(writer)
    peer.close("ends")
    await running


@pytest.mark.parametrize(
    "message",
    [
        {},
        {"call": "x", "op": 3},
        {"call": 1},
        {"answer": 77, "value": 1},
        {"answer": "x"},
        {"has": "x"},
        {"kind": "from the future"},
    ],
    ids=["empty", "types", "no-op", "nobody-asked", "answer-type", "has-type", "unknown"],
)
async def test_what_makes_no_sense_is_passed_over(message):
    peer = Peer(Echo(), name="the other one", lost_after_s=30, look_s=LOOK_S)
    running = asyncio.create_task(peer.run())
    ours, (reader, writer) = await ends_of_a_wire()
    peer.attach(*ours)
    writer.write(frame(message))
    writer.write(frame({"call": 1, "op": "x", "with": {"n": 1}, "has": 1}))
    size = struct.unpack("!I", await reader.readexactly(4))[0]
    assert b"value" in await reader.readexactly(size)
    await _closed(writer)
    peer.close("ends")
    await running


@pytest.mark.parametrize("error", [3, {}, {"kind": 7}, {"kind": "StorageError", "text": None}], ids=str)
async def test_an_error_that_makes_no_sense_is_one_nevertheless(error):
    peer = Peer(Echo(), name="the other one", lost_after_s=30, look_s=LOOK_S)
    running = asyncio.create_task(peer.run())
    ours, (_, writer) = await ends_of_a_wire()
    peer.attach(*ours)
    asking = asyncio.create_task(peer.call("x"))
    await asyncio.sleep(0)
    writer.write(frame({"answer": 1, "error": error}))
    with pytest.raises((TrialFailedError, StorageError)):
        await asking
    await _closed(writer)
    peer.close("ends")
    await running


async def test_what_is_raised_there_is_raised_here():
    raises = {
        "config": ConfigError("not like this"),
        "storage": StorageError("full", operation="put", key="k", retryable=True),
        "not-found": NotFoundError("gone"),
        "trial": TrialFailedError("broke"),
        "other": ValueError("odd"),
        "surrogate": OSError("a\udcff"),
        "long": ValueError("x" * 100_000_000),
    }

    async def fail(op, arguments):
        raise raises[op]

    async with Pair(right=fail) as pair:
        pair.connect()
        seen: dict[str, Any] = {}
        for op in raises:
            with pytest.raises((ConfigError, StorageError, TrialFailedError)) as caught:
                await pair.left.call(op)
            seen[op] = caught.value
    assert {op: type(error) for op, error in seen.items()} == {
        "config": ConfigError,
        "storage": StorageError,
        "not-found": NotFoundError,
        "trial": TrialFailedError,
        "other": TrialFailedError,
        "surrogate": TrialFailedError,
        "long": TrialFailedError,
    }
    assert seen["storage"].retryable
    assert str(seen["other"]) == "ValueError: odd"
    assert len(str(seen["long"])) < 200_000


async def test_an_answer_that_cannot_be_packed_is_an_error():
    async def answer(op, arguments):
        return object()

    async with Pair(right=answer) as pair:
        pair.connect()
        with pytest.raises(ConfigError, match="the answer to 'x'"):
            await pair.left.call("x")
        with pytest.raises(ConfigError, match="the call 'x'"):
            await pair.left.call("x", {"o": object()})
        assert not pair.left._calls


async def test_an_answer_that_was_given_up_is_told_of():
    """What a handler waits for may be cancelled; nobody waits for ever then."""

    async def give_up(op, arguments):
        gone = asyncio.get_running_loop().create_future()
        gone.cancel()
        await gone

    async with Pair(right=give_up) as pair:
        pair.connect()
        with pytest.raises(TrialFailedError, match="CancelledError"):
            await pair.left.call("x")


# -- the end -----------------------------------------------------------------------------------------------------


async def test_calls_can_be_cancelled_at_any_moment():
    right = Echo()
    async with Pair(right=right) as pair:
        pair.connect(20_000, None)
        for turns in range(30):
            asking = asyncio.create_task(pair.left.call("x", {"b": bytes(700)}))
            for _ in range(turns):
                await asyncio.sleep(0)
            asking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asking
        pair.connect()
        assert await pair.left.call("y", {"n": 1}) == {"n": 1}
        assert not pair.left._calls
        await until(lambda: not pair.right._answers)


async def test_closing_fails_what_waits_and_what_comes():
    async def stuck(op, arguments):
        await asyncio.Event().wait()

    async with Pair(right=stuck) as pair:
        pair.connect()
        asking = [asyncio.create_task(pair.left.call("x")) for _ in range(3)]
        await asyncio.sleep(0.02)
        pair.left.close("was ended")
        pair.left.close("again")
        for each in asking:
            with pytest.raises(PeerLostError, match="the right one was ended"):
                await each
        with pytest.raises(PeerLostError, match="the right one was ended"):
            await pair.left.call("x")
        (reader, writer), (_, other) = await ends_of_a_wire()
        pair.left.attach(reader, writer)  # of one that is closed
        assert writer.transport.is_closing()
        await _closed(other)


async def test_cancelling_run_ends_it_at_once():
    pair = Pair()
    async with pair:
        pair.connect()
        await pair.left.call("x")
        pair.serving[0].cancel()
        with pytest.raises(asyncio.CancelledError):
            await pair.serving[0]
        assert pair.left.why_closed == "was given up"
        pair.serving.pop(0)


async def test_nothing_is_left():
    before = asyncio.all_tasks()
    async with Pair(Echo(), Echo()) as pair:
        pair.connect(1000, 1000)
        asking = [asyncio.create_task(pair.left.call("x", {"b": bytes(900)})) for _ in range(5)]
        await asyncio.sleep(0.02)
    for each in asking:
        with contextlib.suppress(PeerLostError):
            await each
    assert asyncio.all_tasks() == before
    gc.collect()  # what is not closed warns, and warnings are errors


def test_the_worker_reads_the_same_frames():
    """One form for all connections."""
    import socket  # noqa: PLC0415 - for this test alone

    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(frame({"a": 1}))
        assert receive_frame(theirs) == {"a": 1}
