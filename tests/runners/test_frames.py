"""Frames between a driver and its workers."""

from __future__ import annotations

import asyncio
import socket
import struct

import pytest

from asynctune.errors import ConfigError
from asynctune.runners import frames
from asynctune.runners.frames import FrameError, frame, read_frame, receive_frame

MESSAGE = {"kind": "report", "metrics": {"loss": 0.5, "list": [1, (2, 3)]}, "checkpoint": None}


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    yield ours, theirs
    ours.close()
    theirs.close()


def reader_of(data):
    reader = asyncio.StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    return reader


async def test_messages_arrive_as_they_were_sent(pair):
    ours, theirs = pair
    ours.sendall(frame(MESSAGE) + frame([1]))
    assert await asyncio.to_thread(receive_frame, theirs) == MESSAGE
    assert await asyncio.to_thread(receive_frame, theirs) == [1]
    reader = reader_of(frame(MESSAGE) + frame([1]))
    assert await read_frame(reader) == MESSAGE
    assert await read_frame(reader) == [1]
    assert await read_frame(reader) is None


@pytest.mark.parametrize("cut", [1, 4, 5, 20])
async def test_an_end_within_a_frame_is_an_end(pair, cut):
    ours, theirs = pair
    ours.sendall(frame(MESSAGE)[:cut])
    ours.shutdown(socket.SHUT_WR)
    assert await asyncio.to_thread(receive_frame, theirs) is None
    assert await read_frame(reader_of(frame(MESSAGE)[:cut])) is None


async def test_what_is_no_frame_is_refused_before_anything_is_allocated(pair):
    ours, theirs = pair
    for bad in (struct.pack("!I", 2**32 - 1), struct.pack("!I", 1) + b"\xc1"):
        ours.sendall(bad)
        with pytest.raises(FrameError):
            await asyncio.to_thread(receive_frame, theirs)
        with pytest.raises(FrameError):
            await read_frame(reader_of(bad))


def test_a_message_over_the_limit_is_refused_where_it_is_made(monkeypatch):
    monkeypatch.setattr(frames, "MAX_FRAME_BYTES", 100)
    with pytest.raises(ConfigError, match=r"a report is 1,0.. bytes packed.*checkpoint"):
        frame({"x": b"x" * 1000}, "a report")
