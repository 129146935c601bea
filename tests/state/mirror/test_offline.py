"""The claim of an opening that runs already."""

from __future__ import annotations

from dataclasses import replace

import pytest

from asynctune.errors import FencedError
from asynctune.state.mirror.claiming import claim_mirror
from asynctune.state.mirror.current import CURRENT_KEY, encode_current, same_owner
from asynctune.state.mirror.named import read_named
from asynctune.state.mirror.offline import Identity, claim_later
from asynctune.storage.memory import MemoryStorage
from asynctune.testing import FaultyStorage
from tests.state.examples import claim_of
from tests.state.mirror.world import NODE_IP, QuickClock


def identity(epoch: int, *history: tuple[int, bytes, int], experiment_id: str = "e1") -> Identity:
    """An opening that went on from commit 9 of this history."""
    claim = claim_of(epoch)
    return Identity(experiment_id, claim, [*history, (epoch, claim.nonce, 9 if history else 0)], NODE_IP)


async def later(storage, who: Identity, seq: int = 0, crc: int | None = None):
    async def crc_of(_seq: int) -> int | None:
        return crc

    return await claim_later(
        storage, who, seq, crc_of, clock=QuickClock(), quiet_s=0.0, is_dead=lambda _: False
    )


async def before(storage, *, seq: int = 0, crc: int = 0):
    """A mirror that another opening, of epoch 1, has left."""
    claimed = await claim_mirror(
        storage,
        None,
        clock=QuickClock(),
        node_ip=NODE_IP,
        experiment_id="e1",
        quiet_s=0.0,
        is_dead=lambda _: False,
    )
    current = claimed.named.current
    if seq:
        current = replace(current, seq=seq, crc=crc, tail=b"t", tail_first_seq=1)
        await storage.put(CURRENT_KEY, encode_current(current))
    return current


async def test_where_nothing_is():
    storage = MemoryStorage()
    who = identity(4)
    named, register = await later(storage, who)
    assert register.fenced
    assert same_owner(named.current.claim, who.claim)
    assert named.current.seq == 0


async def test_where_the_own_line_is():
    storage = MemoryStorage()
    left = await before(storage, seq=5, crc=77)
    who = identity(4, (1, left.claim.nonce, 0))
    named, _ = await later(storage, who, seq=9, crc=77)
    assert (named.current.seq, named.current.crc) == (5, 77)
    assert named.current.history == [*left.history, (4, who.claim.nonce, 5)]


async def test_a_second_call_finds_the_claim_of_the_first():
    storage = FaultyStorage(MemoryStorage())
    who = identity(4)
    first, _ = await later(storage, who)
    puts = storage.count("put")
    second, _ = await later(storage, who)
    assert second.current == first.current
    assert storage.count("put") - puts == 5  # the probes alone


@pytest.mark.parametrize(
    "why", ["another crc", "another line", "beyond ours", "no lower epoch", "another experiment"]
)
async def test_where_another_went_on(why):
    storage = MemoryStorage()
    left = await before(storage, seq=5, crc=77)
    line = (1, left.claim.nonce, 0)
    who, seq, crc = {
        "another crc": (identity(4, line), 9, 78),
        "another line": (identity(4, (1, b"x" * 16, 0)), 9, 77),
        "beyond ours": (replace(identity(4, line), history=[line, (4, claim_of(4).nonce, 4)]), 4, None),
        "no lower epoch": (replace(identity(4, line), claim=claim_of(1)), 9, 77),
        "another experiment": (identity(4, line, experiment_id="e2"), 9, 77),
    }[why]
    with pytest.raises(
        FencedError, match="holds experiment e1" if why == "another experiment" else "went on"
    ):
        await later(storage, who, seq=seq, crc=crc)
    named = await read_named(storage)
    assert named is not None
    assert named.current.seq == 5
    assert same_owner(named.current.claim, left.claim)


async def test_a_journal_that_does_not_reach_back_is_believed():
    storage = MemoryStorage()
    left = await before(storage, seq=5, crc=77)
    named, _ = await later(storage, identity(4, (1, left.claim.nonce, 0)), seq=900)
    assert named.current.claim.epoch == 4
