"""Trials in agents elsewhere: what every runner promises, and what happens when agents, workers and networks end."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path

import pytest

from asynctune import Checkpoint, ConfigError, SyncConfig, TrialFailedError, TrialTask, session
from asynctune.checkpoints.staging import StagedCheckpoint
from asynctune.runners import agents
from asynctune.runners.agent import Order
from asynctune.runners.meeting import Listener
from asynctune.runners.node_directory import NodeDirectory
from asynctune.runners.remote import RemoteRunner
from asynctune.testing import TrialRunnerTests
from tests.runners import trials
from tests.runners.local_engine import LocalEngine
from tests.runners.world import Reports, ends, lives, task, until
from tests.tuning import trainables


class TestTogether(TrialRunnerTests):
    """Agents that see the driver's directory."""

    @pytest.fixture
    def make_runner(self):
        return lambda count: RemoteRunner(LocalEngine(apart=False), max_concurrent=count)


class TestApart(TrialRunnerTests):
    """Agents that see nothing of it."""

    @pytest.fixture
    def make_runner(self):
        return lambda count: RemoteRunner(LocalEngine(), max_concurrent=count)

    async def test_a_trial_knows_who_it_is(self, make_runner, trainable, tmp_path):
        """It has a directory of its own there, with its name."""
        runner, reports = make_runner(1), Reports()
        await runner.start(trainable, {})
        try:
            here = TrialTask(
                trial_id="t1", trial_name="name-t1", trial_dir=str(tmp_path / "t1"), config={"reports": 1}
            )
            await runner.run_trial(here, reports)
        finally:
            await runner.aclose()
        [metrics] = reports.metrics
        assert [metrics[name] for name in ("id", "name", "from")] == ["t1", "name-t1", None]
        assert Path(metrics["dir"]).name == "name-t1"
        assert Path(metrics["dir"]).parent != tmp_path


@pytest.fixture
async def begin(monkeypatch, tmp_path):
    """Starts a `RemoteRunner` for a trainable; its engine is `runner.engine`."""
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    monkeypatch.setattr(agents, "_REASON_S", 0.5)
    runners: list[tuple[RemoteRunner, LocalEngine]] = []

    async def make(trainable, *, engine=None, stop_grace_s=60.0, options=None, **more):
        engine = LocalEngine() if engine is None else engine
        node = str(tmp_path / "node")
        runner = RemoteRunner(engine, stop_grace_s=stop_grace_s, worker_dir=node, **more)
        runner.engine = engine  # type: ignore[attr-defined]
        runners.append((runner, engine))
        await runner.start(trainable, options or {})
        return runner

    yield make
    for runner, engine in runners:
        await runner.aclose()
        for placement in engine.placements:
            assert placement.process.returncode is not None
    assert await asyncio.to_thread(left_on_nodes, tmp_path) == []


def left_on_nodes(tmp_path, *, sweep=True):
    """What nobody sweeps: that of an agent that was killed, the next one does."""
    if sweep and (tmp_path / "node").is_dir():
        sweeper = NodeDirectory(str(tmp_path / "node"), "sweeper")
        sweeper.make()
        sweeper.remove()
    return [str(path) for path in (tmp_path / "node").glob("asynctune-*/*")]


def left_staged(tmp_path):
    return [path.name for path in (tmp_path / "t1").iterdir() if path.name.startswith(".staged-")]


apart_or_together = pytest.mark.parametrize("apart", [True, False], ids=["apart", "together"])


# -- checkpoints and files ---------------------------------------------------------------------------------------


@apart_or_together
async def test_checkpoints_are_beside_the_trial_when_they_are_reported(begin, tmp_path, apart):
    runner = await begin(trainables.with_directory, engine=LocalEngine(apart=apart))
    seen = []

    class Look(Reports):
        async def __call__(self, report):
            staged = StagedCheckpoint.from_value(report.checkpoint)
            assert Path(staged.path).parent == tmp_path / "t1"
            seen.append(await asyncio.to_thread(Path(staged.path, "state.json").read_text, "ascii"))
            return await super().__call__(report)

    await runner.run_trial(task(tmp_path, iterations=2), Look())
    assert seen == ['{"iteration": 1}', '{"iteration": 2}']
    assert len(left_staged(tmp_path)) == 2  # the driver's; no marker


@apart_or_together
async def test_a_checkpoint_that_nobody_takes_is_removed(begin, tmp_path, apart):
    runner = await begin(trainables.with_directory, engine=LocalEngine(apart=apart))
    with pytest.raises(TrialFailedError, match="not like this"):
        await runner.run_trial(task(tmp_path, iterations=2), Reports({1: ConfigError("not like this")}))
    assert left_staged(tmp_path) == []


@apart_or_together
async def test_what_a_trial_prints_is_at_home(begin, tmp_path, apart):
    runner = await begin(trials.prints, engine=LocalEngine(apart=apart), options={"log_to_file": True})
    await runner.run_trial(task(tmp_path, lines=3), Reports())
    await runner.run_trial(task(tmp_path, lines=1), Reports())
    printed = Path(tmp_path, "t1", "stdout").read_text("ascii")
    assert printed.count("x" * 99 + "\n") == 4
    assert Path(tmp_path, "t1", "stderr").read_text("ascii").count("err\n") == 2


async def test_what_was_printed_before_the_end_is_at_home(begin, tmp_path):
    runner = await begin(trials.prints, options={"log_to_file": True})
    with pytest.raises(TrialFailedError, match="SIGKILL"):
        await runner.run_trial(task(tmp_path, lines=3, kill=True), Reports())
    assert Path(tmp_path, "t1", "stdout").read_text("ascii").count("x" * 99 + "\n") == 3


# -- workers -----------------------------------------------------------------------------------------------------


async def test_an_agent_is_used_for_one_trial_after_the_other(begin, tmp_path):
    runner = await begin(trainables.function)
    reports = Reports()
    await runner.run_trial(task(tmp_path, x=1), reports)
    await runner.run_trial(task(tmp_path, x=2), reports)
    assert [each["loss"] for each in reports.metrics] == [2, 3, 1, 3, 4, 2]
    assert len({each["pid"] for each in reports.metrics}) == 1
    assert len(runner.engine.placements) == 1


async def test_a_killed_worker_fails_its_trial_and_names_the_node(begin, tmp_path):
    runner = await begin(trainables.with_directory)
    with pytest.raises(TrialFailedError, match=r"on node-a .*SIGKILL"):
        await runner.run_trial(task(tmp_path, iterations=3, die_at=2, signal="SIGKILL"), Reports())
    reports = Reports()
    await runner.run_trial(task(tmp_path, iterations=1), reports)  # another worker, the same agent
    assert len(reports.got) == len(runner.engine.placements) == 1


async def test_a_hung_worker_is_killed(begin, tmp_path):
    runner = await begin(trainables.with_directory, hung_after_s=1.0)
    with pytest.raises(TrialFailedError, match=r"on node-a .*no sign of life"):
        await runner.run_trial(task(tmp_path, iterations=3, die_at=2, signal="SIGSTOP"), Reports())


async def test_a_trial_that_goes_on_for_good_is_killed_and_has_not_failed(begin, tmp_path, caplog):
    runner = await begin(trials.ignores, stop_grace_s=0.3)
    reports = Reports({1: "STOP"})
    await runner.run_trial(task(tmp_path), reports)
    assert len(reports.got) == 1
    await ends(reports.metrics[0]["pid"])
    assert "trial t1 was told to STOP and did not end for 0.3 s" in caplog.text
    await runner.run_trial(task(tmp_path), Reports({1: "STOP"}))
    assert len(runner.engine.placements) == 1, "the agent obeyed, and is used again"


def does_not_load():
    raise ImportError("no such thing here")


class Unloadable:
    def __call__(self, config):
        """It runs nowhere."""

    def __reduce__(self):
        return does_not_load, ()


async def test_a_trainable_that_cannot_be_loaded_fails_its_trials(begin, tmp_path):
    runner = await begin(Unloadable())
    for _ in range(2):
        with pytest.raises(TrialFailedError, match=r"on node-a .*\n?.*could not load the trainable"):
            await runner.run_trial(task(tmp_path), Reports())


async def test_a_config_that_cannot_be_packed_fails_its_trial(begin, tmp_path):
    runner = await begin(trainables.function)
    with pytest.raises(TrialFailedError, match=r"cannot be stored|not storable|object"):
        await runner.run_trial(task(tmp_path, x=object()), Reports())
    reports = Reports()
    await runner.run_trial(task(tmp_path, x=1), reports)
    assert len(reports.got) == 3
    assert len(runner.engine.placements) == 1


async def test_forks_and_threads(begin, tmp_path):
    runner = await begin(trials.reports_in_a_thread)
    reports = Reports({1: "STOP"})
    await runner.run_trial(task(tmp_path), reports)
    assert len(reports.got) == 1
    runner = await begin(trials.forks)
    reports = Reports()
    with pytest.raises(TrialFailedError, match="SIGKILL"):
        await runner.run_trial(task(tmp_path, die=True), reports)
    [metrics] = reports.metrics
    await ends(metrics["child"])


# -- agents ------------------------------------------------------------------------------------------------------


def waits(config):
    session.report({"pid": os.getpid(), "agent": os.getppid()})
    time.sleep(600)


class Begun:
    """Takes the report of `waits`: which processes run it."""

    def __init__(self):
        self.pids = []
        self.event = asyncio.Event()

    async def __call__(self, report):
        self.pids += [report.metrics["pid"], report.metrics["agent"]]
        self.event.set()
        return "CONTINUE"


@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM"])
async def test_a_dead_agent_fails_its_trial_and_the_next_gets_another(begin, tmp_path, name):
    runner = await begin(waits)
    pids = []

    async def kill(report):
        pids.append(report.metrics["pid"])
        os.kill(report.metrics["agent"], getattr(signal, name))
        return "CONTINUE"

    for _ in range(2):
        with pytest.raises(
            TrialFailedError, match=r"trial t1 was lost with its node: the agent on node-a .*ended"
        ):
            await runner.run_trial(task(tmp_path), kill)
        await ends(pids[-1])
    assert left_staged(tmp_path) == []
    assert len(runner.engine.placements) == 2


async def test_a_suspended_agent_is_lost(begin, tmp_path):
    runner = await begin(waits, lost_after_s=1.5)

    async def stop(report):
        os.kill(report.metrics["agent"], signal.SIGSTOP)
        return "CONTINUE"

    with pytest.raises(TrialFailedError, match=r"the agent on node-a .* has given no sign of life for 1"):
        await runner.run_trial(task(tmp_path), stop)
    assert [each.process.returncode for each in runner.engine.placements] == [-signal.SIGKILL]


async def test_an_idle_agent_that_died_is_not_used_again(begin, tmp_path):
    runner = await begin(trainables.function)
    await runner.run_trial(task(tmp_path, x=1), Reports())
    runner.engine.placements[0].process.kill()
    await runner.engine.placements[0].process.wait()
    await until(lambda: runner._idle[0].peer.why_closed is not None)
    reports = Reports()
    await runner.run_trial(task(tmp_path, x=1), reports)
    assert len(reports.got) == 3


async def test_a_node_where_no_trial_can_write_ends_the_experiment(begin, tmp_path):
    (tmp_path / "node").write_text("a file", "ascii")
    runner = await begin(trainables.function)
    with pytest.raises(ConfigError, match=r"on node-a .*: cannot make a directory in .*; give worker_dir"):
        await runner.run_trial(task(tmp_path, x=1), Reports())
    (tmp_path / "node").unlink()


DRIVER = """\
import asyncio, sys
from tests.runners.local_engine import LocalEngine
from tests.runners.test_remote import waits
from tests.runners.world import task
from asynctune.runners.remote import RemoteRunner
from pathlib import Path

async def report(report):
    print(report.metrics["pid"], report.metrics["agent"], flush=True)
    return "CONTINUE"

async def main():
    runner = RemoteRunner(LocalEngine(), lost_after_s=2.0, worker_dir=sys.argv[1] + "/node")
    await runner.start(waits, {})
    await runner.run_trial(task(Path(sys.argv[1])), report)

asyncio.run(main())
"""


async def test_agents_end_soon_after_their_driver_was_killed(tmp_path):
    driver = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        DRIVER,
        str(tmp_path),
        stdout=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    assert driver.stdout is not None
    pids = [int(each) for each in (await driver.stdout.readline()).split()]
    assert all(lives(each) for each in pids)
    driver.kill()
    await driver.wait()
    async with asyncio.timeout(20):
        for pid in pids:
            await ends(pid)
        await until(lambda: not left_on_nodes(tmp_path, sweep=False))


# -- networks ----------------------------------------------------------------------------------------------------


class Network:
    """What lies between the agents and the driver: can be cut, and healed."""

    def __init__(self):
        self.port = 0
        self.whole = asyncio.Event()
        self.whole.set()
        self.bytes_up = 0
        self.cut_after: int | None = None
        self.broken = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def start(self, target):
        self._target = target
        self._server = await asyncio.start_server(self._carry_both, "127.0.0.1", 0)
        return self._server.sockets[0].getsockname()[1]

    async def _carry_both(self, reader, writer):
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        far = None
        try:
            if self.broken:
                return
            far_reader, far = await asyncio.open_connection("127.0.0.1", self._target)
            both = [
                asyncio.create_task(self._carry(reader, far, up=True)),
                asyncio.create_task(self._carry(far_reader, writer, up=False)),
            ]
            try:
                await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for each in both:
                    each.cancel()
        finally:
            self._tasks.discard(task)
            writer.transport.abort()
            if far is not None:
                far.transport.abort()

    async def _carry(self, reader, writer, *, up):
        while not self.broken and (data := await reader.read(65536)):
            if self.cut_after is not None and up and self.bytes_up > self.cut_after:
                self.cut_after = None
                self.whole.clear()
            await self.whole.wait()
            if up:
                self.bytes_up += len(data)
            writer.write(data)
            await writer.drain()

    async def aclose(self):
        if self._server is not None:
            self._server.close()
        for each in list(self._tasks):
            each.cancel()
        if self._tasks:
            await asyncio.wait(list(self._tasks))


@pytest.fixture
async def network(monkeypatch):
    """All agents call through it."""
    made = Network()
    real = Order

    def order(**values):
        values["port"] = made.port
        return real(**values)

    monkeypatch.setattr("asynctune.runners.remote.Order", order)
    start = Listener.start

    async def starts(self, host, port=0):
        await start(self, host, port)
        made.port = await made.start(self.port)

    monkeypatch.setattr(Listener, "start", starts)
    yield made
    await made.aclose()


def large(config):
    # not in the trial's own, or it is an artifact, too
    directory = Path(tempfile.mkdtemp(dir=Path(session.get_trial_dir()).parent))
    for n in range(config["files"]):
        Path(directory, f"f{n}").write_bytes(os.urandom(1 << 20))
    session.report({"n": 1}, Checkpoint.from_directory(directory))
    return {"n": 2}


@pytest.mark.parametrize("how", ["silent", "broken"])
async def test_a_cut_while_a_checkpoint_comes_is_healed(network, begin, tmp_path, how):
    """It goes on where it was: what was acknowledged is not sent twice."""
    runner = await begin(large, lost_after_s=20)
    network.cut_after = 20 << 20
    reports = Reports()
    running = asyncio.create_task(runner.run_trial(task(tmp_path, files=64), reports))
    await until(lambda: not network.whole.is_set())
    if how == "broken":
        network.broken = True
        network.whole.set()
        await asyncio.sleep(1.2)
        network.broken = False
    else:
        await asyncio.sleep(1.2)
        network.whole.set()
    await running
    staged = StagedCheckpoint.from_value(reports.got[0].checkpoint)
    assert sum(each.stat().st_size for each in Path(staged.path).glob("f*")) == 64 << 20
    assert (64 << 20) < network.bytes_up < (64 + 20) << 20
    assert [each["n"] for each in reports.metrics] == [1, 2]
    assert len(runner.engine.placements) == 1


async def test_a_cut_for_good_loses_the_agent(network, begin, tmp_path):
    runner = await begin(waits, lost_after_s=1.5)
    begun = Begun()
    running = asyncio.create_task(runner.run_trial(task(tmp_path), begun))
    await begun.event.wait()
    network.whole.clear()
    with pytest.raises(TrialFailedError, match="lost with its node"):
        await running
    for pid in begun.pids:
        await ends(pid)


# -- the runner itself ---------------------------------------------------------------------------------------------


async def test_two_runners_at_the_same_time(begin, tmp_path):
    one, two = await begin(trainables.function), await begin(trainables.generator)
    reports = Reports(), Reports()
    await asyncio.gather(
        one.run_trial(task(tmp_path, x=1), reports[0]), two.run_trial(task(tmp_path, "t2"), reports[1])
    )
    assert [len(each.got) for each in reports] == [3, 3]


async def test_it_can_be_used_again(begin, tmp_path):
    runner = await begin(trainables.function)
    with pytest.raises(ConfigError, match="in use"):
        await runner.start(trainables.function, {})
    await runner.run_trial(task(tmp_path, x=1), Reports())
    await runner.aclose()
    await runner.aclose()
    with pytest.raises(ConfigError, match="not started"):
        await runner.run_trial(task(tmp_path, x=1), Reports())
    reports = Reports()
    await runner.start(trainables.generator, {})
    await runner.run_trial(task(tmp_path), reports)
    assert len(reports.got) == 3


async def test_a_start_that_fails_leaves_nothing(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        engine = LocalEngine()
        runner = RemoteRunner(engine, listen_port=taken.getsockname()[1])
        with pytest.raises(ConfigError, match="cannot listen"):
            await runner.start(trainables.function, {})
        assert not engine.is_open
        with pytest.raises(ConfigError, match="not started"):
            await runner.run_trial(task(tmp_path, x=1), Reports())
    await runner.start(trainables.function, {})
    await runner.aclose()


async def test_closing_while_trials_run(begin, tmp_path):
    runner = await begin(waits)
    begun = Begun()
    running = asyncio.create_task(runner.run_trial(task(tmp_path), begun))
    await begun.event.wait()
    await runner.aclose()
    with pytest.raises(TrialFailedError, match="lost with its node"):
        await running
    for pid in begun.pids:
        await ends(pid)


async def test_closing_while_an_agent_starts(begin, tmp_path):
    runner = await begin(trainables.function)
    running = asyncio.create_task(runner.run_trial(task(tmp_path, x=1), Reports()))
    await asyncio.sleep(0.05)
    await runner.aclose()
    with pytest.raises((TrialFailedError, ConfigError)):
        await running


async def test_cancelled_at_any_time_of_a_trial(begin, tmp_path, rng):
    """While it starts, works, sends and ends: nothing is left, and the runner is fit for the next trial."""
    runner = await begin(trainables.with_directory)
    for _ in range(8):
        running = asyncio.create_task(runner.run_trial(task(tmp_path, iterations=5), Reports()))
        await asyncio.sleep(rng.uniform(0, 0.6))
        running.cancel()
        await asyncio.wait([running])
        assert not [name for name in left_staged(tmp_path) if "marker" in name]
    reports = Reports()
    await runner.run_trial(task(tmp_path, iterations=1), reports)
    assert len(reports.got) == 1


async def test_not_shared_is_refused_where_it_has_to_be(begin, tmp_path, monkeypatch):
    runner = await begin(trainables.function, options={"sync_config": SyncConfig(syncer=None)})
    with pytest.raises(ConfigError, match=r"node-a .* does not see .*t1.*mount.*leave syncer out"):
        await runner.run_trial(task(tmp_path, x=1), Reports())
    assert left_staged(tmp_path) == []
    runner = await begin(
        trainables.function, engine=LocalEngine(apart=False), options={"sync_config": SyncConfig(syncer=None)}
    )
    reports = Reports()
    await runner.run_trial(task(tmp_path, x=1), reports)
    assert len(reports.got) == 3


@pytest.mark.parametrize(
    "options",
    [
        {"max_concurrent": 0},
        {"max_concurrent": True},
        {"listen_port": -1},
        {"listen_port": 70_000},
        {"listen_port": "x"},
        {"lost_after_s": 0},
        {"hung_after_s": "x"},
        {"stop_grace_s": True},
    ],
    ids=["none", "bool", "port-below", "port-above", "port-text", "zero", "text", "true"],
)
def test_numbers_that_make_no_sense(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        RemoteRunner(LocalEngine(), **options)
