"""An agent as its driver sees it, with an agent that does what the test says: what ends a trial, and what an agent."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from asynctune import ConfigError, TrialFailedError
from asynctune.checkpoints.disk import DiskThreads
from asynctune.runners import agents
from asynctune.runners.agents import AgentHandle
from asynctune.runners.bringing import Settings
from asynctune.runners.peer import Peer, PeerLostError
from asynctune.storage.budget import ByteBudget
from tests.runners.wires import ends_of_a_wire
from tests.runners.world import Reports, task

SETTINGS = Settings(storage_options={"secret": "hunter2"}).to_value()


class Placement:
    """Says how its agent has ended when the test does."""

    def __init__(self):
        self.why: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.killed = 0

    async def ended(self):
        return await asyncio.shield(self.why)

    async def kill(self):
        self.killed += 1
        if not self.why.done():
            self.why.set_result("was killed")


@pytest.fixture
async def here(monkeypatch):
    """`handle`, and `agent`: a peer that answers what `answers` says: a value, an exception or a coroutine function."""
    monkeypatch.setattr(agents, "_ABORT_S", 0.2)
    monkeypatch.setattr(agents, "_GOODBYE_S", 0.2)
    monkeypatch.setattr(agents, "_REASON_S", 0.1)
    made = SimpleNamespace(asked=[], answers={})

    async def handle(op, arguments):
        made.asked.append(op)
        if op == "open":
            made.opened = arguments
        answer = made.answers.get(op)
        if isinstance(answer, Exception):
            raise answer
        return await answer(arguments) if callable(answer) else answer

    async def abort(arguments):
        made.over.set()

    made.over = asyncio.Event()
    made.answers |= {
        "open": {"node": "n1", "host": "h1", "pid": 5},
        "run": {"kind": "ended"},
        "abort": abort,
    }
    made.placement = Placement()
    threads = DiskThreads(2)
    made.handle = AgentHandle(
        "a1", made.placement, stop_grace_s=0.2, lost_after_s=10, budget=ByteBudget(1 << 20), threads=threads
    )
    made.agent = Peer(handle, name="the driver", lost_after_s=10)
    (near, far) = await ends_of_a_wire()
    made.handle.peer.attach(*near)
    made.agent.attach(*far)
    serving = [asyncio.create_task(made.handle.serve()), asyncio.create_task(made.agent.run())]
    await made.handle.open(b"hello", SETTINGS)
    yield made
    await made.handle.aclose(politely=False)
    made.agent.close("ends")
    await asyncio.gather(*serving)
    threads.close()


def left(tmp_path):
    return [path.name for path in (tmp_path / "t1").iterdir()]


async def until_aborted(here):
    await here.over.wait()
    return {"kind": "aborted"}


@pytest.mark.parametrize("copy", [None, "s3://bucket/e"], ids=["home", "bucket"])
async def test_credentials_go_to_who_needs_them(here, tmp_path, copy):
    """A node that sends home needs none."""
    told = []

    async def run(arguments):
        told.append(arguments["storage_options"])
        return {"kind": "ended"}

    here.answers["run"] = run
    await here.handle.run(replace(task(tmp_path), copy=copy), Reports(), SETTINGS)
    assert here.opened["settings"]["storage_options"] is None
    assert told == [None if copy is None else {"secret": "hunter2"}]


async def test_credentials_that_cannot_travel_are_not_shown(here, tmp_path):
    class Key:
        def __repr__(self):
            return "hunter2"

    with pytest.raises(TrialFailedError) as failed:
        await here.handle.run(
            replace(task(tmp_path), copy="s3://b/e"),
            Reports(),
            {**SETTINGS, "storage_options": {"key": Key()}},
        )
    assert "hunter2" not in str(failed.value)


async def test_it_is_named_after_its_node(here):
    assert here.handle.node == "n1 h1"
    assert here.handle.peer.name == "the agent on n1 h1 (process 5)"
    assert here.handle.has_connected


async def test_a_trial_that_ends(here, tmp_path):
    seen = []

    async def run(arguments):
        seen.append(await asyncio.to_thread(os.path.exists, arguments["marker"]))
        await here.agent.call("placed", {"run": arguments["run"], "shared": True})
        seen.append(await asyncio.to_thread(os.path.exists, arguments["marker"]))
        told = {"run": arguments["run"], "metrics": {"n": 1}, "checkpoint": None}
        seen.append(await here.agent.call("report", told))
        return {"kind": "ended"}

    here.answers["run"] = run
    reports = Reports({1: "STOP"})
    await here.handle.run(task(tmp_path), reports, SETTINGS)
    assert seen == [True, False, {"decision": "STOP"}]
    assert reports.metrics == [{"n": 1}]
    assert left(tmp_path) == []
    assert here.handle.is_usable


@pytest.mark.parametrize(
    ("answer", "error", "text"),
    [
        ({"kind": "failed", "error": "ValueError: no"}, TrialFailedError, "^on n1 h1: ValueError: no$"),
        ({"kind": "not shared"}, ConfigError, "n1 h1 does not see .*t1"),
        ({"kind": "from the future"}, TrialFailedError, "said 'from the future' of trial t1"),
        ({}, TrialFailedError, "said None of trial t1"),
        (ConfigError("a trial runs here already"), TrialFailedError, "runs here already"),
        (RuntimeError("odd"), TrialFailedError, "RuntimeError: odd"),
        ({"kind": "aborted"}, TrialFailedError, "which nobody asked for"),
    ],
    ids=["failed", "not-shared", "unknown", "empty", "config", "other", "given-up"],
)
async def test_how_a_start_may_end(here, tmp_path, answer, error, text):
    here.answers["run"] = answer
    with pytest.raises(error, match=text):
        await here.handle.run(task(tmp_path), Reports(), SETTINGS)
    assert here.handle.is_usable
    assert "abort" not in here.asked
    assert left(tmp_path) == []
    here.answers["run"] = {"kind": "ended"}
    await here.handle.run(task(tmp_path), Reports(), SETTINGS)


async def test_reports_of_another_start_are_refused(here, tmp_path):
    """Or of another opening of the experiment, whose epoch is in whatever is said."""
    told: dict[str, Any] = {"run": "7.a1.1", "metrics": {}, "checkpoint": None}
    with pytest.raises(ConfigError, match="has ended, and takes no more reports"):
        await here.agent.call("report", told)

    async def run(arguments):
        assert arguments["run"] == "7.a1.1"
        for other in ("6.a1.1", "7.a2.1", "7.a1.2", 7, None):
            with pytest.raises(ConfigError, match="has ended, and takes no more reports"):
                await here.agent.call("report", {**told, "run": other})
        with pytest.raises(ConfigError, match="no driver knows 'odd' now"):
            await here.agent.call("odd", {"run": arguments["run"]})
        return {"kind": "ended"}

    here.answers["run"] = run
    await here.handle.run(replace(task(tmp_path), epoch=7), Reports(), SETTINGS)


async def test_a_checkpoint_is_looked_for_beside_its_trial(here, tmp_path):
    """Whatever the node calls that directory, and whatever it says."""

    async def run(arguments):
        for path in ("/mnt/elsewhere/t1/.staged-abc", "../../.staged-abc"):
            told = {"path": path, "manifest": b""}
            await here.agent.call("report", {"run": arguments["run"], "metrics": {}, "checkpoint": told})
        return {"kind": "ended"}

    here.answers["run"] = run
    reports = Reports()
    await here.handle.run(task(tmp_path), reports, SETTINGS)
    there = str(Path(tmp_path).resolve() / "t1" / ".staged-abc")
    assert [each.checkpoint["path"] for each in reports.got] == [there, there]


async def test_what_a_report_raises_ends_what_runs_there(here, tmp_path):
    """Otherwise the next trial would find it running."""

    async def run(arguments):
        told = {"run": arguments["run"], "metrics": {}, "checkpoint": None}
        with pytest.raises(TrialFailedError, match="CancelledError"):
            await here.agent.call("report", told)
        return await until_aborted(here)

    async def lost(report):
        raise TrialFailedError("its checkpoint was lost")

    here.answers["run"] = run
    with pytest.raises(TrialFailedError, match="its checkpoint was lost"):
        await here.handle.run(task(tmp_path), lost, SETTINGS)
    assert here.asked == ["open", "run", "abort"]
    assert here.handle.is_usable


async def test_an_agent_that_cannot_end_its_trial_is_killed(here, tmp_path, caplog):
    """A trial that was told to stop, on an agent that does not obey either."""

    async def run(arguments):
        told = {"run": arguments["run"], "metrics": {}, "checkpoint": None}
        await here.agent.call("report", told)
        await asyncio.Event().wait()

    async def never(arguments):
        await asyncio.Event().wait()

    here.answers |= {"run": run, "abort": never}
    async with asyncio.timeout(5):
        await here.handle.run(task(tmp_path), Reports({1: "STOP"}), SETTINGS)
    assert here.placement.killed == 1
    assert not here.handle.is_usable
    assert "was told to STOP and did not end for 0.2 s" in caplog.text
    assert left(tmp_path) == []


async def test_an_agent_that_is_lost_while_it_ends_its_trial_has_ended_it(here, tmp_path):
    """The trial was told to stop: that its agent has gone with it is no failure of the trial."""

    async def run(arguments):
        told = {"run": arguments["run"], "metrics": {}, "checkpoint": None}
        await here.agent.call("report", told)
        await asyncio.Event().wait()

    async def gone(arguments):
        here.placement.why.set_result("was killed")
        await asyncio.Event().wait()

    here.answers |= {"run": run, "abort": gone}
    async with asyncio.timeout(5):
        await here.handle.run(task(tmp_path), Reports({1: "PAUSE"}), SETTINGS)
    assert not here.handle.is_usable
    assert left(tmp_path) == []


@pytest.mark.parametrize("decision", ["STOP", "PAUSE"])
async def test_an_agent_that_goes_away_by_itself_has_not_stopped_its_trial(here, tmp_path, decision):
    """What the trial does at its end, such as a last checkpoint, may be missing."""

    async def run(arguments):
        told = {"run": arguments["run"], "metrics": {}, "checkpoint": None}
        await here.agent.call("report", told)
        return {"kind": "aborted"}

    here.answers["run"] = run
    with pytest.raises(TrialFailedError, match="which nobody asked for"):
        await here.handle.run(task(tmp_path), Reports({1: decision}), SETTINGS)


@pytest.mark.parametrize("path", ["checkpoint_000001", "result.json", "", "..", "/"])
async def test_what_was_not_staged_is_neither_taken_nor_removed(here, tmp_path, path):
    """Whatever a node says: the driver removes what it does not take."""
    committed = tmp_path / "t1" / "checkpoint_000001"
    committed.mkdir(parents=True)
    (committed / "model").touch()

    async def run(arguments):
        told = {"run": arguments["run"], "metrics": {}, "checkpoint": {"path": path, "manifest": b""}}
        with pytest.raises(ConfigError, match="no staged checkpoint"):
            await here.agent.call("report", told)
        return {"kind": "ended"}

    async def refuses(report):
        raise ConfigError("it is a committed checkpoint")

    here.answers["run"] = run
    await here.handle.run(task(tmp_path), refuses, SETTINGS)
    assert left(tmp_path) == ["checkpoint_000001"]
    assert (committed / "model").exists()


async def test_cancelling_ends_what_runs_there(here, tmp_path):
    here.answers["run"] = lambda _: until_aborted(here)
    running = asyncio.create_task(here.handle.run(task(tmp_path), Reports(), SETTINGS))
    while "run" not in here.asked:  # noqa: ASYNC110 - no event
        await asyncio.sleep(0.005)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert here.asked[-1] == "abort"
    assert here.handle.is_usable
    assert left(tmp_path) == []


async def test_the_engine_knows_first_that_an_agent_is_gone(here, tmp_path):
    here.answers["run"] = lambda _: until_aborted(here)
    running = asyncio.create_task(here.handle.run(task(tmp_path), Reports(), SETTINGS))
    await asyncio.sleep(0.02)
    here.placement.why.set_result("was killed: its node has died")
    with pytest.raises(
        TrialFailedError,
        match=r"trial t1 was lost with its node: the agent on n1 h1 .* was killed: its node has died",
    ):
        await running
    assert not here.handle.is_usable
    assert left(tmp_path) == []


async def test_an_engine_that_fails_has_lost_its_agent(here, tmp_path, caplog):
    here.placement.why.set_exception(RuntimeError("the engine broke"))
    await asyncio.sleep(0.02)
    assert here.handle.peer.why_closed == "is out of sight of its engine: the engine broke"
    assert "cannot say what became of it" in caplog.text
    here.placement.why = asyncio.get_running_loop().create_future()
    with pytest.raises(TrialFailedError, match="out of sight"):
        await here.handle.run(task(tmp_path), Reports(), SETTINGS)


async def test_where_the_driver_cannot_write(here, tmp_path):
    gone = task(tmp_path)
    (tmp_path / "t1").rmdir()
    with pytest.raises(TrialFailedError, match=r"cannot write to .*t1"):
        await here.handle.run(gone, Reports(), SETTINGS)
    assert here.asked == ["open"]
    assert here.handle.is_usable


async def test_a_polite_end_has_its_limits(here):
    async def never(arguments):
        await asyncio.Event().wait()

    here.answers["bye"] = never
    async with asyncio.timeout(3):
        await here.handle.aclose(politely=True)
        await here.handle.aclose(politely=True)
    assert here.asked == ["open", "bye"]
    assert here.placement.killed == 2


async def test_an_engine_that_says_once_that_there_can_be_none_is_believed(here):
    """It may take long before it says so again."""
    here.handle.placement.why.set_exception(ConfigError("the group was removed"))
    await here.handle.peer.detached()  # it was closed
    assert here.handle.peer.why_closed == "the group was removed"
    here.handle.placement.why = asyncio.get_running_loop().create_future()
    with pytest.raises(ConfigError, match=r"^the group was removed$"):
        await here.handle.why(PeerLostError("it is gone"))
