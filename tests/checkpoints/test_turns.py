from __future__ import annotations

import asyncio

import pytest

from asynctune.checkpoints.turns import Leases, Turns
from asynctune.errors import CheckpointExistsError


class Recorded(dict[str, list[int]]):
    def __call__(self, trial_id: str) -> list[int]:
        return self.get(trial_id, [])


async def test_turns_are_taken_in_the_order_of_the_calls():
    recorded, order = Recorded(), []
    turns = Turns(recorded)

    async def one(name: str, step: int | None) -> None:
        async with turns.take("t", step) as turn:
            order.append((name, turn))
            await asyncio.sleep(0)
            recorded.setdefault("t", []).append(turn)

    async with asyncio.TaskGroup() as group:
        group.create_task(one("a", None))
        group.create_task(one("b", 7))
        group.create_task(one("c", None))
    assert order == [("a", 1), ("b", 7), ("c", 8)]
    assert not turns._lines


async def test_trials_do_not_wait_for_each_other():
    turns = Turns(Recorded())
    async with turns.take("a", None), turns.take("b", None):
        pass


async def test_a_step_must_be_above_recorded_and_promised_ones():
    turns = Turns(Recorded(t=[3, 5]))
    for step in (0, 3, 4, 5):
        with pytest.raises(CheckpointExistsError, match="checkpoint 5, which is recorded"):
            async with turns.take("t", step):
                pass
    async with turns.take("t", 9) as turn:
        assert turn == 9
        with pytest.raises(CheckpointExistsError, match="checkpoint 9, which is being saved"):
            async with turns.take("t", 9):
                pass
    async with turns.take("t", None) as turn:  # 9 failed: it was never recorded
        assert turn == 6
    assert not turns._lines


async def test_a_lower_bound_for_a_step_that_was_not_asked_for():
    turns = Turns(Recorded(t=[3]))
    async with turns.take("t", None, at_least=10) as turn:
        assert turn == 10
    async with turns.take("t", None, at_least=2) as turn:
        assert turn == 4
    async with turns.take("u", None) as turn:
        assert turn == 1
    async with turns.take("u", 0) as turn:
        assert turn == 0


async def test_whoever_is_cancelled_while_waiting_leaves_the_line():
    turns = Turns(Recorded())
    async with turns.take("t", None):

        async def wait() -> None:
            async with turns.take("t", None):
                pass

        waiting = asyncio.create_task(wait())
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert turns._lines["t"].promised == [1]
    assert not turns._lines


def test_leases_count():
    released: list[str] = []
    leases = Leases(released.append)
    with leases.hold("t", 1):
        with leases.hold("t", 1), leases.hold("t", 2):
            assert leases.steps("t") == {1, 2}
        assert leases.steps("t") == {1}
        assert released == ["t"]
    assert leases.steps("t") == frozenset()
    assert released == ["t", "t"]
    assert not leases._held


def test_a_lease_ends_with_its_block_whatever_happens():
    leases = Leases(lambda _: None)
    with pytest.raises(ZeroDivisionError), leases.hold("t", 1):
        _ = 1 // 0
    assert not leases.steps("t")
