"""Checkpoints that wait on a node: when each is asked for, which are not, and what the end of their run waits for."""

from __future__ import annotations

import asyncio
import gc
from pathlib import Path

import pytest

from asynctune.checkpoints.arriving import ArrivalPlace, InBucket
from asynctune.checkpoints.manifest import Manifest
from asynctune.checkpoints.staging import StagedCheckpoint, stage_for_adoption
from asynctune.errors import ConfigError, StorageError, TrialFailedError
from asynctune.runners import arrivals as arrivals_module
from asynctune.runners.arrivals import Arrivals
from asynctune.runners.peer import PeerLostError


class Node:
    """A peer of the test: what it is asked, and what it answers."""

    name = "the agent on n1"
    why_closed: str | None = None

    def __init__(self):
        self.asked = []
        self.answers = {}
        self.may_go = asyncio.Event()
        self.may_go.set()

    async def call(self, op, arguments):
        self.asked.append((op, arguments["waits"]))
        await self.may_go.wait()
        answer = self.answers.get(op)
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def node():
    return Node()


@pytest.fixture
async def staged(tmp_path):
    """A staged checkpoint as a value."""
    (tmp_path / "made").mkdir()
    (tmp_path / "t1").mkdir()
    Path(tmp_path, "made", "file").write_text("x", "ascii")
    made = await stage_for_adoption(tmp_path / "made", tmp_path / "t1")
    return await asyncio.to_thread(made.to_value)


@pytest.fixture
def told(node, staged):
    """What a node tells of one that waits; it brings that home."""
    node.answers["bring"] = staged
    return lambda number, *, bucket=False: {
        "waits": number,
        "bucket": bucket,
        "manifest": staged["manifest"],
    }


def place(step=1):
    return ArrivalPlace(
        trial_id="t1", step=step, epoch=3, attempt=2, directory=f"t1/checkpoint_{step:06}-3.2"
    )


async def test_one_that_comes_home(node, told, staged):
    arrivals = Arrivals(node, "t1")
    arriving = await arrivals.promised(told(7))
    assert not arriving.late
    assert not arriving.files, "nothing of it is ever in a bucket"
    came = await arriving.bring(place())
    assert isinstance(came, StagedCheckpoint)
    assert came.path == staged["path"]
    assert node.asked == [("bring", 7)]
    await arrivals.settled()


async def test_one_that_goes_to_the_bucket_is_named_after_its_place(node, told):
    arrivals = Arrivals(node, "t1")
    arriving = await arrivals.promised(told(1, bucket=True))
    assert list(arriving.files) == ["file"]
    came = await arriving.bring(place(5))
    assert isinstance(came, InBucket)
    manifest = Manifest.decode(came.manifest)
    assert (manifest.trial_id, manifest.step, manifest.epoch, manifest.attempt) == ("t1", 5, 3, 2)
    assert node.asked == [("upload", 1)]


@pytest.mark.parametrize(
    "value",
    [{}, {"waits": "1", "manifest": b""}, {"waits": 1, "manifest": "x"}, {"waits": 1, "manifest": b"x"}],
    ids=["empty", "text", "no-bytes", "no-manifest"],
)
async def test_what_makes_no_sense_is_refused(node, value):
    with pytest.raises(ConfigError, match="the node told of a checkpoint"):
        await Arrivals(node, "t1").promised(value)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (PeerLostError("the agent was killed"), "was lost with its node: the agent was killed"),
        (
            StorageError("the bucket is away"),
            "could not be brought, as the agent on n1 says: the bucket is away",
        ),
        (ConfigError("no checkpoint 1 waits"), "could not be brought"),
    ],
    ids=["lost", "storage", "config"],
)
async def test_what_cannot_be_brought_fails_its_trial(node, told, error, text):
    """And not the experiment."""
    arrivals = Arrivals(node, "t1")
    arriving = await arrivals.promised(told(1))
    node.answers["bring"] = error
    with pytest.raises(TrialFailedError, match=f"checkpoint 4 of trial t1 .*{text}"):
        await arriving.bring(place(4))


async def test_one_whose_commit_was_cancelled_is_taken_back(node, told):
    arrivals = Arrivals(node, "t1")
    arriving = await arrivals.promised(told(1))
    node.may_go.clear()
    bringing = asyncio.ensure_future(arriving.bring(place()))
    await asyncio.sleep(0.01)
    node.may_go.set()
    bringing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await bringing
    assert node.asked == [("bring", 1), ("drop", 1)]
    await arrivals.settled()


# -- late ----------------------------------------------------------------------------------------------------------


async def test_late_ones_go_together_when_their_round_comes(node, told):
    """Each with the first round after it was promised, though they are asked for one after the other."""
    arrivals = Arrivals(node, "t1", period_s=0.15)
    made = [await arrivals.promised(told(number)) for number in (1, 2, 3)]
    assert all(each.late for each in made)
    loop = asyncio.get_running_loop()
    begun = loop.time()
    await asyncio.gather(made[0].bring(place(1)))
    assert 0.1 < loop.time() - begun < 0.3
    await made[1].bring(place(2))
    await made[2].bring(place(3))
    assert loop.time() - begun < 0.3, "the others wait no further round"


async def test_they_go_at_once_when_the_run_has_ended(node, told):
    arrivals = Arrivals(node, "t1", period_s=1000)
    made = [await arrivals.promised(told(number)) for number in (1, 2)]
    first = asyncio.ensure_future(made[0].bring(place(1)))
    await asyncio.sleep(0.01)
    assert node.asked == []
    settling = asyncio.create_task(arrivals.settled())
    await first
    assert not settling.done()
    await made[1].bring(place(2))
    async with asyncio.timeout(5):
        await settling
    assert node.asked == [("bring", 1), ("bring", 2)]


async def test_those_that_would_be_dropped_at_once_are_not_brought(node, told):
    arrivals = Arrivals(node, "t1", period_s=0.05, keep=2)
    made = [await arrivals.promised(told(number)) for number in (1, 2, 3, 4)]
    came = [await each.bring(place(step)) for step, each in enumerate(made, 1)]
    assert [each is not None for each in came] == [False, False, True, True]
    assert node.asked == [("drop", 1), ("drop", 2), ("bring", 3), ("bring", 4)]


# -- the end of the run ----------------------------------------------------------------------------------------------


async def test_nobody_waits_for_one_whose_commit_is_gone(node, told, monkeypatch):
    monkeypatch.setattr(arrivals_module, "_LOOK_S", 0.02)
    arrivals = Arrivals(node, "t1", period_s=1)
    arriving = await arrivals.promised(told(1))
    settling = asyncio.create_task(arrivals.settled())
    await asyncio.sleep(0.1)
    assert not settling.done()
    del arriving
    gc.collect()
    async with asyncio.timeout(5):
        await settling


async def test_one_whose_report_was_answered_is_not_asked_for(node, told):
    arrivals = Arrivals(node, "t1")
    arriving = await arrivals.promised(told(1))
    arrivals.answered(told(1))
    async with asyncio.timeout(1):
        await arrivals.settled()
    assert not arriving.late


async def test_nobody_is_waited_for_for_ever(node, told, monkeypatch):
    monkeypatch.setattr(arrivals_module, "_LOOK_S", 0.02)
    arrivals = Arrivals(node, "t1", period_s=1, unasked_s=0.1)
    arriving = await arrivals.promised(told(1))
    async with asyncio.timeout(5):
        await arrivals.settled()
    arrivals.close()
    with pytest.raises(TrialFailedError, match="its node had left the trial"):
        await arriving.bring(place())
    assert node.asked == []


async def test_nobody_is_waited_for_on_a_node_that_is_lost(node, told, monkeypatch):
    monkeypatch.setattr(arrivals_module, "_LOOK_S", 0.02)
    arrivals = Arrivals(node, "t1", period_s=1)
    arriving = await arrivals.promised(told(1))
    node.why_closed = "was killed"
    async with asyncio.timeout(5):
        await arrivals.settled()
    assert arriving.late
