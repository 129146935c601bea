"""Frames between a driver and its workers."""

from __future__ import annotations

import asyncio
import socket
import struct

import pytest

from asynctune.errors import ConfigError
from asynctune.runners import frames
from asynctune.runners.frames import FrameError, FrameReader, frame, receive_frame

MESSAGE = {"kind": "report", "metrics": {"loss": 0.5, "list": [1, (2, 3)]}, "checkpoint": None}


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    yield ours, theirs
    ours.close()
    theirs.close()


async def test_messages_arrive_as_they_were_sent(pair):
    ours, theirs = pair
    ours.sendall(frame(MESSAGE) + frame([1]))
    assert await asyncio.to_thread(receive_frame, theirs) == MESSAGE
    assert await asyncio.to_thread(receive_frame, theirs) == [1]


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
def test_messages_come_out_whole_however_they_arrive(size):
    data = frame(MESSAGE) + frame([1]) + frame(None)
    reader, got = FrameReader(), []
    for start in range(0, len(data), size):
        got += reader.feed(data[start : start + size])
    assert got == [MESSAGE, [1], None]


@pytest.mark.parametrize("cut", [1, 4, 5, 20])
async def test_an_end_within_a_frame_is_an_end(pair, cut):
    ours, theirs = pair
    ours.sendall(frame(MESSAGE)[:cut])
    ours.shutdown(socket.SHUT_WR)
    assert await asyncio.to_thread(receive_frame, theirs) is None
    assert FrameReader().feed(frame(MESSAGE)[:cut]) == []


@pytest.mark.parametrize(
    "bad", [struct.pack("!I", 2**32 - 1), struct.pack("!I", 1) + b"\xc1"], ids=["too-long", "no-message"]
)
async def test_what_is_no_frame_is_refused_before_anything_is_allocated(pair, bad):
    ours, theirs = pair
    ours.sendall(bad)
    with pytest.raises(FrameError):
        await asyncio.to_thread(receive_frame, theirs)
    with pytest.raises(FrameError):
        FrameReader().feed(bad)


def test_a_message_over_the_limit_is_refused_where_it_is_made(monkeypatch):
    monkeypatch.setattr(frames, "MAX_FRAME_BYTES", 100)
    with pytest.raises(ConfigError, match=r"a report is 1,0.. bytes packed.*checkpoint"):
        frame({"x": b"x" * 1000}, "a report")
