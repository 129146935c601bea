"""Owns calls that carry bytes between a node and the head: how many are under way, and what may be in one. No file.

The other side answers an operation by its name, with arguments that can be packed; what carries the calls is injected.
A piece of a file travels with its crc32c, and a call carries many small pieces, or one of at most 1 MiB. The other side
begins to answer calls in the order in which they were made.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any, Final, Self, TypeVar

import google_crc32c

from asynctune.checkpoints.disk import disk_errors, to_the_end
from asynctune.errors import ConfigError, StorageError

__all__ = [
    "PIECES_AT_ONCE",
    "PIECE_BYTES",
    "PIECE_OVERHEAD",
    "WINDOW_BYTES",
    "Call",
    "CallWindow",
    "argument",
    "batched",
    "check_piece",
    "listed",
    "number",
    "travel_errors",
]

T = TypeVar("T")

Call = Callable[[str, Mapping[str, Any]], Awaitable[Mapping[str, Any]]]
"""Asks the other side: an operation and its arguments. It raises what the other side said, or ConnectionError."""

PIECE_BYTES: Final = 1 << 20
"""The most bytes of files in one call."""

PIECES_AT_ONCE: Final = 128
"""The most pieces in one call."""

PIECE_OVERHEAD: Final = 512
"""For how many bytes a piece counts besides its own, in what is under way."""

WINDOW_BYTES: Final = 16 << 20
"""How many bytes may be in calls that are not answered yet."""


def batched(
    pieces: Generator[T, None, None],
    size_of: Callable[[T], int],
    most_bytes: int,
    kind_of: Callable[[T], object] = lambda _: None,
) -> Generator[list[T], None, None]:
    """Pieces in their order, as many of one kind at a time as fit into one call. Closed, it closes what makes them.

    Args:
        pieces: What is to be sent, or asked for; none has more than `most_bytes`.
        size_of: The bytes of one.
        most_bytes: The most bytes in one call.
        kind_of: Those that differ in it go in different calls.
    """
    batch: list[T] = []
    total = 0
    with closing(pieces):
        for piece in pieces:
            size = size_of(piece)
            is_full = total + size > most_bytes or len(batch) == PIECES_AT_ONCE
            if batch and (is_full or kind_of(piece) != kind_of(batch[0])):
                yield batch
                batch, total = [], 0
            batch.append(piece)
            total += size
    if batch:
        yield batch


class CallWindow:
    """Makes calls ahead of their answers, so that a slow network does not mean a slow transfer. One caller at a time.

    For `async with`: leaving the block ends what is still under way; `drain` first.

    Args:
        call: Asks the other side.
        window_bytes: How many bytes may be in calls that are not answered; one call is always possible.
        answered: Awaited with each answer and what `start` was given with its call, in order.
    """

    def __init__(
        self,
        call: Call,
        window_bytes: int,
        answered: Callable[[Mapping[str, Any], Any], Awaitable[None]],
    ) -> None:
        self._call = call
        self._window_bytes = window_bytes
        self._answered = answered
        self._bytes = 0
        self._pending: deque[tuple[asyncio.Future[Mapping[str, Any]], int, Any]] = deque()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        calls = [call for call, _, _ in self._pending]
        self._pending.clear()
        for call in calls:
            call.cancel()
        if calls:
            await to_the_end(asyncio.gather(*calls, return_exceptions=True))

    async def start(self, op: str, arguments: Mapping[str, Any], size: int, about: Any = None) -> None:
        """Make a call as soon as there is room for its `size` bytes; earlier answers are taken meanwhile."""
        while self._pending and self._bytes + size > self._window_bytes:
            await self._take_first()
        self._pending.append((asyncio.ensure_future(self._call(op, arguments)), size, about))
        self._bytes += size

    async def drain(self) -> None:
        """Take every answer that is missing."""
        while self._pending:
            await self._take_first()

    async def _take_first(self) -> None:
        call, size, about = self._pending[0]
        answer = await call
        self._pending.popleft()
        self._bytes -= size
        await self._answered(answer, about)


@contextmanager
def travel_errors(doing: str, path: str) -> Iterator[None]:
    """`disk_errors`, but that the other side is gone stays a ConnectionError, which is no fault of a disk."""
    gone: ConnectionError | None = None
    with disk_errors(doing, path):
        try:
            yield
        except ConnectionError as error:
            gone = error
    if gone is not None:
        raise gone


def argument(arguments: Mapping[str, Any], name: str, kind: type[T]) -> T:
    """One argument of an operation, or one field of an answer.

    Raises:
        ConfigError: It is missing or something else: the other side runs another asynctune.
    """
    value = arguments.get(name)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ConfigError(f"{name} is {value!r:.80}, not {kind.__name__}; {_SAME_RELEASE}")
    return value


def listed(arguments: Mapping[str, Any], name: str, fields: tuple[type, ...]) -> list[list[Any]]:
    """A list of small lists with fields of these types.

    Raises:
        ConfigError: It is something else.
    """
    rows: list[Any] = argument(arguments, name, list)
    for row in rows:
        if not isinstance(row, list) or [type(field) for field in row] != list(fields):
            raise ConfigError(f"{name} has {row!r:.80} in it; {_SAME_RELEASE}")
    return rows


def number(value: Any, below: int, what: str) -> int:
    """A number from 0 to `below` - 1.

    Raises:
        ConfigError: It is something else.
    """
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < below:
        raise ConfigError(f"{what} is {value!r:.80}; {_SAME_RELEASE}")
    return value


def check_piece(path: str, data: bytes, crc32c: int) -> None:
    """Compare a piece that came with the checksum that came with it; for a thread.

    Raises:
        StorageError: It was damaged on its way; retryable.
    """
    if google_crc32c.value(data) != crc32c:
        raise StorageError(
            f"a piece of {path} was damaged on its way between two machines",
            operation="transfer",
            key=path,
            retryable=True,
            hint="it is sent again with the next attempt; if that fails too, check the network and the memory",
        )


_SAME_RELEASE: Final = "use the same release of asynctune on every machine"
