from __future__ import annotations

import asyncio

import google_crc32c
import pytest

from asynctune.checkpoints.travelling import (
    CallWindow,
    argument,
    batched,
    check_piece,
    listed,
    number,
    travel_errors,
)
from asynctune.errors import ConfigError, StorageError
from tests.checkpoints.buckets import quiet


class Slow:
    """Answers when it is told to."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.ended: list[int] = []
        self.gates: dict[int, asyncio.Event] = {}

    async def call(self, op, arguments):
        each = arguments["n"]
        self.asked.append(each)
        try:
            await self.gates.setdefault(each, asyncio.Event()).wait()
        finally:
            self.ended.append(each)
        if op == "fail":
            raise ConnectionResetError("gone")
        return {"n": each}


def batches(sizes: list[int], most: int = 10, kinds: str = "") -> list[list[int]]:
    numbered = (number for number in range(len(sizes)))
    return list(
        batched(numbered, lambda number: sizes[number], most, lambda number: kinds[number : number + 1])
    )


def test_pieces_go_together_as_far_as_they_fit():
    assert batches([]) == []
    assert batches([4, 6, 1, 10, 0, 9, 1, 3]) == [[0, 1], [2], [3, 4], [5, 6], [7]]
    assert batches([1] * 4, kinds="aaba") == [[0, 1], [2], [3]]
    assert list(map(len, batches([0] * 300))) == [128, 128, 44]


def test_batches_that_are_given_up_close_what_makes_their_pieces():
    closed = []

    def pieces():
        try:
            yield from (7, 7)
        finally:
            closed.append(True)

    made = batched(pieces(), lambda size: size, 10)
    assert next(made) == [7]
    assert not closed
    made.close()
    assert closed


async def test_calls_go_ahead_of_their_answers_as_far_as_the_window():
    slow, answers = Slow(), []

    async def answered(answer, about):
        answers.append((answer["n"], about))

    async def all_of_them():
        async with CallWindow(slow.call, 100, answered) as window:
            for each in range(6):
                await window.start("op", {"n": each}, 40, f"about {each}")
            await window.drain()

    task = asyncio.create_task(all_of_them())
    await quiet(3)
    assert slow.asked == [0, 1]
    slow.gates[1].set()
    await quiet(3)
    assert not answers
    slow.gates[0].set()
    await quiet(3)
    assert slow.asked == [0, 1, 2, 3]
    for each in range(2, 6):
        slow.gates.setdefault(each, asyncio.Event()).set()
    await task
    assert answers == [(each, f"about {each}") for each in range(6)]


async def test_one_call_is_always_possible():
    slow, answers = Slow(), []

    async def answered(answer, about):
        answers.append(answer["n"])

    slow.gates = {0: asyncio.Event(), 1: asyncio.Event()}
    for gate in slow.gates.values():
        gate.set()
    async with CallWindow(slow.call, 10, answered) as window:
        await window.start("op", {"n": 0}, 1000)
        await window.start("op", {"n": 1}, 1000)
        assert answers == [0]
        await window.drain()
    assert answers == [0, 1]


@pytest.mark.parametrize("op", [pytest.param("fail", id="failed"), pytest.param("op", id="left")])
async def test_leaving_ends_what_is_under_way(op):
    slow = Slow()

    async def answered(answer, about):
        pass

    async def some():
        async with CallWindow(slow.call, 100, answered) as window:
            await window.start(op, {"n": 0}, 1)
            await window.start("op", {"n": 1}, 1)
            await window.start("fail", {"n": 2}, 1)
            await asyncio.sleep(0)
            if op == "op":
                raise ConnectionResetError("gone")
            slow.gates[0].set()
            slow.gates[2].set()
            await window.drain()

    with pytest.raises(ConnectionResetError):
        await some()
    assert sorted(slow.ended) == [0, 1, 2]
    assert asyncio.all_tasks() == {asyncio.current_task()}


def test_that_the_other_side_is_gone_is_no_fault_of_a_disk():
    with pytest.raises(BrokenPipeError), travel_errors("send it", "/there"):
        raise BrokenPipeError("gone")
    with pytest.raises(StorageError, match="cannot send it: /there"), travel_errors("send it", "/there"):
        raise OSError(5, "Input/output error")
    with travel_errors("send it", "/there"):
        pass


def test_arguments_are_what_they_should_be():
    assert argument({"a": 1}, "a", int) == 1
    assert listed({"a": [[1, b""]]}, "a", (int, bytes)) == [[1, b""]]
    assert number(3, 4, "it") == 3
    for wrong in ({}, {"a": True}, {"a": "1"}, {"a": None}):
        with pytest.raises(ConfigError, match="use the same release"):
            argument(wrong, "a", int)
    for rows in (1, [1], [[1]], [[1, ""]], [[True, b""]], [(1, b"")]):
        with pytest.raises(ConfigError, match="use the same release"):
            listed({"a": rows}, "a", (int, bytes))
    for value in (-1, 4, True, "1", 1.0):
        with pytest.raises(ConfigError, match="it is"):
            number(value, 4, "it")


def test_a_piece_is_compared_with_its_checksum():
    check_piece("f", b"x", google_crc32c.value(b"x"))
    with pytest.raises(StorageError, match="a piece of f was damaged") as caught:
        check_piece("f", b"y", google_crc32c.value(b"x"))
    assert caught.value.retryable
