"""The process on a node, inside of this one: what it answers, what it never blocks, and what it leaves."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from types import SimpleNamespace

import pytest

from asynctune import ConfigError, MissingExtraError, SyncConfig, TrialFailedError
from asynctune.checkpoints.staging import STAGED_PREFIX
from asynctune.runners.agent import Order, _Agent
from asynctune.runners.bringing import Settings
from asynctune.runners.bucket_bringing import NodeBucket
from asynctune.runners.meeting import Listener, new_secret
from asynctune.runners.node_directory import NodeDirectory
from asynctune.runners.orders import hello_for, packed_task
from asynctune.runners.peer import Peer, PeerLostError
from asynctune.runners.remote import RemoteRunner
from tests.runners import trials
from tests.runners.inner_engine import InnerEngine
from tests.runners.world import Reports, ends, lives, task
from tests.tuning import trainables


@pytest.fixture
async def begin(monkeypatch, tmp_path):
    """Starts a runner whose agents are in this process, where blocking calls are found."""
    runners = []

    async def make(trainable, *, together=False, options=None, **more):
        engine = InnerEngine(monkeypatch, together=together)
        runner = RemoteRunner(engine, worker_dir=str(tmp_path / "node"), **more)
        runners.append((runner, engine))
        await runner.start(trainable, options or {})
        return runner, engine

    before = asyncio.all_tasks()
    yield make
    for runner, _ in runners:
        await runner.aclose()
    await asyncio.sleep(0.01)
    assert asyncio.all_tasks() - before <= {asyncio.current_task()}
    assert not list((tmp_path / "node").glob("asynctune-*/*"))


@pytest.mark.parametrize("together", [True, False], ids=["together", "apart"])
async def test_nothing_blocks_the_loop(begin, tmp_path, together):
    runner, engine = await begin(trainables.with_directory, together=together, options={"log_to_file": True})
    reports = Reports()
    await runner.run_trial(task(tmp_path, iterations=3), reports)
    await runner.run_trial(task(tmp_path, iterations=2), reports)
    assert len(reports.got) == 5
    assert len(engine.placements) == 1


async def test_cancelled_at_each_of_its_first_moments(begin, tmp_path, sampled):
    runner, _ = await begin(trainables.with_directory)
    await runner.run_trial(task(tmp_path, iterations=1), Reports())
    for turns in sampled(range(120), 25):
        running = asyncio.create_task(runner.run_trial(task(tmp_path, iterations=3), Reports()))
        for _ in range(turns):
            await asyncio.sleep(0)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    reports = Reports()
    await runner.run_trial(task(tmp_path, iterations=1), reports)
    assert len(reports.got) == 1
    assert not [each for each in (tmp_path / "t1").iterdir() if "marker" in each.name]


async def test_a_killed_agent_takes_its_worker_with_it(begin, tmp_path):
    runner, engine = await begin(trials.blocks)
    pids = []

    async def kill(report):
        pids.append(report.metrics["pid"])
        engine.placements[0].task.cancel()
        return "CONTINUE"

    with pytest.raises(TrialFailedError, match=r"lost with its node: the agent on inside .* was killed"):
        await runner.run_trial(task(tmp_path, how="sleep"), kill)
    await ends(pids[0])


async def test_an_agent_that_failed_itself_says_why(begin, tmp_path, monkeypatch):
    runner, _ = await begin(trainables.function)

    def broken(self):
        raise RuntimeError("no disk here")

    monkeypatch.setattr(NodeDirectory, "make", broken)
    with pytest.raises(TrialFailedError, match=r"could not start: .*no disk here"):
        await runner.run_trial(task(tmp_path, x=1), Reports())


@pytest.mark.parametrize("kind", [ConfigError, TrialFailedError])
async def test_a_node_where_nothing_can_be_written_is_named(begin, tmp_path, monkeypatch, kind):
    """What is wrong for good stays an error of the settings, which no retry mends; what may pass is the trial's."""
    runner, engine = await begin(trainables.function)
    make = NodeDirectory.make

    def broken(self):
        raise kind("nothing can be written to /scratch")

    monkeypatch.setattr(NodeDirectory, "make", broken)
    with pytest.raises(kind, match=r"on inside \(.+\): nothing can be written to /scratch") as failed:
        await runner.run_trial(task(tmp_path, x=1), Reports())
    assert type(failed.value) is kind
    monkeypatch.setattr(NodeDirectory, "make", make)
    await runner.run_trial(task(tmp_path, x=1), Reports())
    assert len(engine.placements) == 2


async def test_a_node_without_the_buckets_client_is_named(begin, tmp_path, monkeypatch):
    async def missing(*args):
        raise MissingExtraError("s3", "aiobotocore", "s3://")

    runner, _ = await begin(trainables.function, options={"sync_config": SyncConfig(upload_dir="s3://b/x")})
    monkeypatch.setattr(NodeBucket, "open", missing)
    copied = replace(task(tmp_path, x=1), copy="s3://b/x/exp")
    with pytest.raises(ConfigError, match=r"on inside .*: .*asynctune\[s3\]"):
        await runner.run_trial(copied, Reports())


# -- what it answers -----------------------------------------------------------------------------------------------


@pytest.fixture
async def driver(tmp_path):
    """A bare driver: `peer`, what it was asked, and the agent that runs `trainables.function`."""
    here = SimpleNamespace(asked=[], answers={})

    async def handle(op, arguments):
        here.asked.append((op, arguments))
        answer = here.answers.get(op)
        if isinstance(answer, Exception):
            raise answer
        return {"decision": "CONTINUE"} if op == "report" and answer is None else answer

    listener = Listener(new_secret())
    await listener.start("127.0.0.1")
    here.peer = Peer(handle, name="the agent", lost_after_s=5, waits_first=True)
    listener.expect("a1", here.peer)
    serving = asyncio.create_task(here.peer.run())
    order = Order(
        host="127.0.0.1",
        port=listener.port,
        agent_id="a1",
        secret=listener._secret,
        hung_after_s=30,
        lost_after_s=2,
        worker_dir=str(tmp_path / "node"),
    )
    here.agent = _Agent(Order.unpack(order.pack()), "inside")
    here.running = asyncio.create_task(here.agent.run())
    hello = await hello_for(trainables.function, {}, hung_after_s=30)
    about = await here.peer.call("open", {"hello": hello, "settings": Settings().to_value()})
    assert about["node"] == "inside"

    async def run(**config):
        marker = tmp_path / "t1" / f"{STAGED_PREFIX}marker-x"
        here.task = packed_task(task(tmp_path, **config))
        marker.touch()
        told = {"run": "r1", "task": here.task, "marker": str(marker), "copy": None}
        return await here.peer.call("run", told)

    here.run = run
    here.listener = listener
    yield here
    here.peer.close("ends")
    await serving
    await listener.aclose()
    here.running.cancel()
    await asyncio.wait([here.running])
    assert not list((tmp_path / "node").glob("asynctune-*/*"))


async def test_it_tells_where_it_is_and_what_is_reported(driver):
    assert await driver.run(x=1) == {"kind": "ended"}
    assert [op for op, _ in driver.asked] == ["placed", "report", "report", "report"]
    assert driver.asked[0][1] == {"run": "r1", "shared": True}
    assert {told["run"] for _, told in driver.asked} == {"r1"}


@pytest.mark.parametrize("op", ["bring", "upload", "drop", "nothing"])
async def test_what_it_cannot_do(driver, op):
    with pytest.raises(ConfigError, match=f"no agent knows '{op}' now"):
        await driver.peer.call(op, {"waits": 1})


async def test_abort_is_nothing_where_nothing_runs(driver):
    assert await driver.peer.call("abort") is None
    assert await driver.run(x=1) == {"kind": "ended"}
    assert await driver.peer.call("abort") is None


async def test_one_trial_at_a_time(driver):
    driver.answers["placed"] = TrialFailedError("wait")
    both = await asyncio.gather(driver.run(x=1), driver.run(x=1), return_exceptions=True)
    assert {type(each) for each in both} == {ConfigError, TrialFailedError}


async def test_an_error_of_the_driver_fails_the_start_and_not_the_agent(driver):
    driver.answers["report"] = RuntimeError("odd")
    assert await driver.run(x=1) == {"kind": "failed", "error": "RuntimeError: odd"}
    del driver.answers["report"]
    assert await driver.run(x=1) == {"kind": "ended"}


async def test_it_ends_when_it_is_told_to(driver, tmp_path):
    await driver.run(x=1)
    pid = driver.agent._worker._process.pid
    assert await driver.peer.call("bye") is None
    assert await driver.running == "the driver said good-bye"
    assert not lives(pid)


async def test_it_ends_when_nobody_wants_it(driver):
    driver.listener.forget("a1")
    await driver.run(x=1)
    pid = driver.agent._worker._process.pid
    driver.agent._peer._connection.writer.transport.abort()
    assert "does not want this agent" in await driver.running
    assert not lives(pid)


async def test_it_ends_when_the_driver_is_gone(driver):
    await driver.listener.aclose()
    driver.agent._peer._connection.writer.transport.abort()
    async with asyncio.timeout(10):
        assert "did not come back" in await driver.running
    driver.peer.close("is gone")
    with pytest.raises(PeerLostError, match="is gone"):
        await driver.peer.call("x")


def test_what_an_engine_is_given_is_bytes():
    order = Order(
        host="h", port=1, agent_id="a", secret=b"s" * 32, hung_after_s=1.0, lost_after_s=2.0, worker_dir=None
    )
    assert isinstance(order.pack(), bytes)
    assert Order.unpack(order.pack()) == order
    assert "ssss" not in repr(order)
