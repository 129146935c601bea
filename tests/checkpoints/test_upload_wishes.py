from __future__ import annotations

import asyncio

import pytest

from asynctune.checkpoints.upload_wishes import Wishes
from asynctune.errors import StoreClosedError

A, B = ("t", 1), ("t", 2)


async def test_a_wish_is_granted_when_each_has_ended():
    wishes = Wishes()
    with wishes.make([A, B]) as wish:
        waiting = asyncio.create_task(wish.granted())
        wishes.settle(("other", 1), None)
        wishes.settle(A, None)
        await asyncio.sleep(0)
        assert not waiting.done()
        wishes.settle(B, "no")
        assert await waiting == {B: "no"}
        wishes.settle(A, "too late")
        assert await wish.granted() == {B: "no"}


async def test_nothing_to_wait_for():
    with Wishes().make([]) as wish:
        assert await wish.granted() == {}


async def test_the_end_is_told_to_all_who_wait():
    wishes = Wishes()
    with wishes.make([A]) as wish, wishes.make([A, B]) as also:
        wishes.settle(A, None)
        wishes.end()
        assert await wish.granted() == {}
        with pytest.raises(StoreClosedError, match="open the experiment again"):
            await also.granted()
