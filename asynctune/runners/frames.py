"""Owns the frames between a driver and its workers: a length, then one packed message. No message's meaning.

The bytes are msgpack of `asynctune.packing`, so nothing that a worker sends can run code in the driver. A frame
over the limit is refused by the sender, who can say whose it is, and by the receiver, who trusts nobody.
"""

from __future__ import annotations

import socket
import struct
from typing import Any, Final

from asynctune.errors import ConfigError
from asynctune.packing import UnpackError, pack, unpack

__all__ = [
    "MAX_FRAME_BYTES",
    "FrameError",
    "FrameReader",
    "frame",
    "length_of",
    "message_of",
    "receive_frame",
]

MAX_FRAME_BYTES: Final = 64 * 1024 * 1024
"""The largest message between a driver and a worker, packed, in bytes."""

_LENGTH: Final = struct.Struct("!I")


class FrameError(Exception):
    """The other side sent something that is no frame."""


def frame(message: Any, what: str = "message") -> bytes:
    """A message as bytes to send.

    Raises:
        ConfigError: It cannot be packed, or is too large; the text names `what`.
    """
    packed = pack(message, what)
    if len(packed) > MAX_FRAME_BYTES:
        raise ConfigError(
            f"{what} is {len(packed):,} bytes packed, and {MAX_FRAME_BYTES:,} fit between a trial and its driver; "
            "put large data into a checkpoint"
        )
    return _LENGTH.pack(len(packed)) + packed


class FrameReader:
    """Finds the messages in bytes as they arrive; for a driver, which waits for many workers at once."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def feed(self, data: bytes) -> list[Any]:
        """The messages that are complete with these bytes.

        Raises:
            FrameError: No frame.
        """
        self._bytes += data
        messages, start = [], 0
        while len(self._bytes) - start >= _LENGTH.size:
            body = start + _LENGTH.size
            end = body + length_of(self._bytes[start:body])
            if len(self._bytes) < end:
                break
            messages.append(message_of(bytes(self._bytes[body:end])))
            start = end
        if start:
            del self._bytes[:start]
        return messages


def receive_frame(connection: socket.socket) -> Any | None:
    """The next message on a worker's socket, blocking; `None` at its end.

    Raises:
        FrameError: No frame.
    """
    try:
        head = _receive(connection, _LENGTH.size)
        body = None if head is None else _receive(connection, length_of(head))
    except ConnectionError:
        return None
    return None if body is None else message_of(body)


def _receive(connection: socket.socket, size: int) -> bytes | None:
    parts = bytearray()
    while len(parts) < size:
        part = connection.recv(min(size - len(parts), 1 << 20))
        if not part:
            return None
        parts += part
    return bytes(parts)


def length_of(head: bytes | bytearray, limit: int = MAX_FRAME_BYTES) -> int:
    """How many bytes follow these four.

    Raises:
        FrameError: More than `limit`.
    """
    (length,) = _LENGTH.unpack(head)
    if length > limit:
        raise FrameError(f"a message of {length:,} bytes was announced; {limit:,} is the limit")
    return int(length)


def message_of(data: bytes | bytearray) -> Any:
    """The message in the bytes of a frame.

    Raises:
        FrameError: There is none.
    """
    try:
        return unpack(data)
    except UnpackError as error:
        raise FrameError(f"a message that cannot be unpacked: {error}") from error
