"""Whole experiments on agents: what survives a node, where checkpoints go, and what an experiment says of them."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import shutil
import signal
import socket
import time
from collections import Counter
from pathlib import Path

import pytest

from asynctune import (
    Checkpoint,
    CheckpointConfig,
    ConfigError,
    ExperimentStore,
    FailureConfig,
    RunConfig,
    SyncConfig,
    TrialStatus,
    TuneConfig,
    Tuner,
    session,
)
from asynctune.checkpoints import homecoming, lending
from asynctune.runners.agents import AgentHandle
from asynctune.runners.remote import RemoteRunner
from tests.runners.local_engine import LocalEngine
from tests.storage.moto import make_bucket, moto_server
from tests.tuning import trainables

NODES = ("node-a", "node-b")


@pytest.fixture
def experiment(tmp_path):
    """Makes a Tuner with two agents on machines of their own."""
    (tmp_path / "exp").mkdir()

    def make(trainable, *, samples=1, engine=None, run=None, failures=0, tune=None, space=None):
        engine = LocalEngine(nodes=NODES) if engine is None else engine
        runner = RemoteRunner(engine, lost_after_s=20, worker_dir=str(tmp_path / "node"))
        return Tuner(
            trainable,
            param_space={"iterations": 4, **(space or {})},
            tune_config=TuneConfig(num_samples=samples, max_concurrent_trials=2, **(tune or {})),
            run_config=RunConfig(
                name="e",
                local_dir=str(tmp_path / "exp"),
                failure_config=FailureConfig(max_failures=failures),
                verbose=0,
                **(run or {}),
            ),
            runner=runner,
        )

    return make


@pytest.fixture
def calls(monkeypatch):
    """How often each operation of a checkpoint that comes home was asked for."""
    seen: Counter[str] = Counter()
    real = homecoming.TreeReceiver.handle

    async def handle(self, op, arguments):
        seen[op] += 1
        return await real(self, op, arguments)

    monkeypatch.setattr(homecoming.TreeReceiver, "handle", handle)
    return seen


@pytest.fixture
def lent(monkeypatch):
    """How often each operation of a checkpoint that a trial goes on from was asked of the driver."""
    seen: Counter[str] = Counter()
    real = lending.TreeSource.handle

    async def handle(self, op, arguments):
        seen[op] += self._look is None
        return await real(self, op, arguments)

    async def restore(self, *arguments, **settings):
        seen["restore"] += 1
        return await restored(self, *arguments, **settings)

    restored = ExperimentStore.restore_checkpoint
    monkeypatch.setattr(lending.TreeSource, "handle", handle)
    monkeypatch.setattr(ExperimentStore, "restore_checkpoint", restore)
    return seen


def rows(path):
    return [json.loads(line) for line in Path(path, "result.json").read_text("utf-8").splitlines()]


def checkpoints_in(path):
    return sorted(each.name for each in Path(path).glob("checkpoint_*"))


@pytest.mark.parametrize("apart", [True, False], ids=["apart", "together"])
async def test_all_is_at_home_at_the_end(experiment, apart, calls):
    results = await experiment(
        trainables.with_directory, samples=3, engine=LocalEngine(apart=apart, nodes=NODES)
    ).fit()
    assert results.num_errors == 0
    for result in results:
        assert [row["training_iteration"] for row in rows(result.path)] == [1, 2, 3, 4]
        state = json.loads(await asyncio.to_thread(Path(result.checkpoint, "state.json").read_text, "ascii"))
        assert state == {"iteration": 4}
        assert not list(Path(result.path).glob(".staged-*"))
    assert (calls["home.chunks"] > 0) is apart


class KillAgents(LocalEngine):
    """Its first agents are killed when their trial has two checkpoints."""

    def __init__(self, exp, **options):
        super().__init__(nodes=NODES, **options)
        self.exp = exp
        self.killing: asyncio.Task | None = None

    async def launch(self, order):
        placement = await super().launch(order)
        if self.killing is None:
            self.killing = asyncio.create_task(self._kill(placement))
        return placement

    async def _kill(self, placement):
        while not await asyncio.to_thread(lambda: list(self.exp.glob("e/*/checkpoint_000002"))):  # noqa: ASYNC110 - no event
            await asyncio.sleep(0.01)
        placement.process.kill()

    async def aclose(self):
        if self.killing is not None:
            await self.killing
        await super().aclose()


async def test_rows_say_where_a_trial_ran(experiment):
    [result] = await experiment(trainables.with_directory).fit()
    where = {(row["hostname"], row["node_ip"], row["pid"]) for row in rows(result.path)}
    [(hostname, node_ip, pid)] = where
    assert (hostname, node_ip) == (socket.gethostname(), "127.0.0.1")
    assert pid != os.getpid()


async def test_a_trial_goes_on_elsewhere_from_its_last_checkpoint(experiment, tmp_path):
    """Nothing twice, nothing left out; the failure names the node."""
    engine = KillAgents(tmp_path / "exp")
    errors = []

    class Listen:
        def on_trial_error(self, trial):
            errors.append(trial.error)

    results = await experiment(
        trainables.with_directory,
        engine=engine,
        failures=3,
        run={"callbacks": [Listen()]},
        space={"iterations": 8, "pause": 0.1},
    ).fit()
    [result] = results
    assert [row["training_iteration"] for row in rows(result.path)] == list(range(1, 9))
    assert len(errors) == 1
    assert "lost with its node: the agent on node-a" in errors[0]
    assert [each.node for each in engine.placements] == ["node-a", "node-b"]
    assert not list(Path(result.path).glob(".staged-*"))


class PauseOnce:
    """Pauses each trial at its second result, and lets each go on where it may."""

    def __init__(self):
        self.paused = set()

    def on_trial_result(self, trial_id, result):
        if result["training_iteration"] == 2 and trial_id not in self.paused:
            self.paused.add(trial_id)
            return "PAUSE"
        return "CONTINUE"

    def choose_trial_to_run(self, trial_ids):
        return trial_ids[0]

    def get_state(self):
        return sorted(self.paused)

    def set_state(self, state):
        self.paused = set(state)


async def test_a_paused_trial_goes_on_from_its_checkpoint(experiment):
    results = await experiment(trainables.with_directory, samples=3, tune={"scheduler": PauseOnce()}).fit()
    assert results.num_errors == 0
    for result in results:
        assert [row["training_iteration"] for row in rows(result.path)] == [1, 2, 3, 4]


async def test_what_is_not_shared_ends_the_experiment_in_order(experiment, tmp_path):
    tuner = experiment(trainables.with_directory, samples=2, run={"sync_config": SyncConfig(syncer=None)})
    with pytest.raises(ConfigError, match=r"node-[ab] .* does not see .*mount the same.*leave syncer out"):
        await tuner.fit()
    async with ExperimentStore.open(tmp_path / "exp" / "e", "read") as store:
        assert {trial.status for trial in store.trials} == {TrialStatus.PENDING}
    restored = await Tuner.restore(
        tmp_path / "exp" / "e",
        trainables.with_directory,
        runner=RemoteRunner(LocalEngine(apart=False), worker_dir=str(tmp_path / "node")),
        run_config=RunConfig(verbose=0),
    )
    results = await restored.fit()
    assert [len(rows(each.path)) for each in results] == [4, 4]


@pytest.mark.parametrize("shared", [True, False], ids=["declared", "seen"])
async def test_what_all_machines_share_is_read_by_the_node(experiment, lent, shared):
    """Where `syncer=None` says that they do; else the driver makes a copy there, for any node."""
    results = await experiment(
        trainables.with_directory,
        engine=LocalEngine(apart=False, nodes=NODES),
        failures=1,
        run={"sync_config": SyncConfig(syncer=None if shared else "auto")},
        space={"die_at": 3, "signal": "SIGKILL"},
    ).fit()
    assert [len(rows(each.path)) for each in results] == [4]
    assert lent["restore"] == (0 if shared else 1)
    assert not lent["away.read"]


async def test_a_damaged_one_on_what_is_shared_gives_way_to_the_one_before(
    experiment, lent, caplog, monkeypatch
):
    async def run_damaged(self, task, *arguments, **settings):
        if task.place is not None:
            await asyncio.to_thread(Path(task.place.path, "state.json").write_text, "{}", "ascii")
        await run(self, task, *arguments, **settings)

    run = AgentHandle.run
    monkeypatch.setattr(AgentHandle, "run", run_damaged)
    [result] = await experiment(
        trainables.with_directory,
        engine=LocalEngine(apart=False, nodes=NODES),
        failures=1,
        run={"sync_config": SyncConfig(syncer=None)},
        space={"die_at": 3, "signal": "SIGKILL"},
    ).fit()
    assert re.search(r"by way of this machine: node-a .* cannot read .* state.json", caplog.text)
    assert re.search(r"goes on from its older checkpoint [12]\b", caplog.text)
    assert lent["restore"] == 1
    assert [row["training_iteration"] for row in rows(result.path)] == [1, 2, 3, 4]


@pytest.mark.parametrize("keep", [None, 1, 2], ids=["all", "one", "two"])
async def test_late_checkpoints_come_in_rounds_and_at_the_end(experiment, keep, calls):
    """Those that retention would drop at once are not sent."""
    results = await experiment(
        trainables.with_directory,
        run={
            "sync_config": SyncConfig(sync_on_checkpoint=False, sync_period=0.9),
            "checkpoint_config": CheckpointConfig(num_to_keep=keep),
        },
        space={"iterations": 12, "pause": 0.15},
    ).fit()
    [result] = results
    assert result.error is None
    assert [row["training_iteration"] for row in rows(result.path)] == list(range(1, 13))
    there = checkpoints_in(result.path)
    assert there[-1] == "checkpoint_000012"
    assert len(there) == (keep or 12)
    if keep is not None:
        assert keep < calls["home.finish"] < 10


@pytest.fixture(scope="module")
def endpoint():
    pytest.importorskip("moto")
    pytest.importorskip("aiobotocore")
    with moto_server() as url:
        make_bucket(url, "tunes")
        yield url


SECRET = "so-very-secret-a-key"


@pytest.mark.parametrize("sync_on_checkpoint", [True, False], ids=["at-once", "late"])
async def test_checkpoints_go_straight_to_the_bucket(
    experiment, endpoint, tmp_path, calls, lent, monkeypatch, caplog, sync_on_checkpoint
):
    """And a trial that starts again elsewhere has its checkpoint; an empty machine restores all of it."""
    caplog.set_level(logging.DEBUG)
    monkeypatch.setattr("asynctune.store.reconcile.QUIET_S", 0.05)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    options = {"endpoint_url": endpoint, "key": "its-key", "secret": SECRET, "region": "us-east-1"}
    prefix = f"s3://tunes/{tmp_path.name}"
    sync = SyncConfig(
        upload_dir=prefix,
        storage_options=options,
        sync_on_checkpoint=sync_on_checkpoint,
        sync_period=300 if sync_on_checkpoint else 0.6,
    )
    engine = LocalEngine(nodes=NODES)
    tuner = experiment(
        trainables.with_directory,
        engine=engine,
        failures=1,
        run={"sync_config": sync},
        space={"die_at": 3, "signal": "SIGKILL", "pause": 0.1},
    )
    running = asyncio.create_task(tuner.fit())
    seen = []
    while not running.done():
        await asyncio.sleep(0.1)
        seen += await asyncio.to_thread(_of_processes, engine)
    results = await running
    [result] = results
    assert result.error is None
    assert [row["training_iteration"] for row in rows(result.path)] == [1, 2, 3, 4]
    steps = [each.step for each, _ in result.best_checkpoints]
    assert steps[-1] == 4
    assert calls == {}
    assert not any(lent.values())
    assert checkpoints_in(result.path) == []
    assert seen
    assert SECRET not in "".join(seen)
    assert SECRET not in caplog.text
    assert SECRET not in repr(tuner)
    await asyncio.to_thread(_not_in_files, tmp_path, SECRET)

    restored = await Tuner.restore(
        f"{prefix}/e",
        trainables.with_directory,
        local_dir=tmp_path / "elsewhere",
        storage_options=options,
        run_config=RunConfig(verbose=0),
    )
    [result] = await restored.fit()
    assert [each.step for each, _ in result.best_checkpoints] == steps
    async with ExperimentStore.open(f"{prefix}/e", "read", storage_options=options) as store:
        [trial] = store.trials
        path = await store.fetch(store.checkpoints(trial.trial_id)[-1], to=tmp_path / "fetched")
    assert json.loads(await asyncio.to_thread(Path(path, "state.json").read_text, "ascii")) == {
        "iteration": 4
    }


def _of_processes(engine):
    """Environments and command lines of agents and their workers; an agent's own is made by the test's engine."""
    texts = []
    for placement in engine.placements:
        pid = placement.process.pid
        try:
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii").split()
            for each in (str(pid), *children):
                texts.append(Path(f"/proc/{each}/environ").read_bytes().decode("utf-8", "replace"))
                texts.append(Path(f"/proc/{each}/cmdline").read_bytes().decode("utf-8", "replace"))
        except OSError:
            continue  # it has ended
    return texts


def _not_in_files(root, text):
    for path, _, names in os.walk(root):
        for name in names:
            assert text.encode() not in Path(path, name).read_bytes(), Path(path, name)


def keeps_a_diary(config):
    directory = Path(session.get_trial_dir())
    (directory / "deep").mkdir(exist_ok=True)
    checkpoint = session.get_checkpoint()
    start = 0 if checkpoint is None else checkpoint.to_dict()["step"]
    for step in range(start + 1, 7):
        with (directory / "deep" / "diary.txt").open("a", encoding="ascii") as diary:
            diary.write(f"{step}\n")
        print(step, flush=True)
        session.report({"step": step}, Checkpoint.from_dict({"step": step}))
        if step == 3 and start == 0:
            raise RuntimeError("once")


@pytest.mark.parametrize("apart", [True, False], ids=["apart", "together"])
async def test_what_a_trial_writes_itself_is_gone_on_with_elsewhere(experiment, apart):
    engine = LocalEngine(apart=apart, nodes=NODES)
    [result] = await experiment(keeps_a_diary, engine=engine, failures=1, run={"log_to_file": True}).fit()
    assert result.error is None
    lines = [f"{step}\n" for step in range(1, 7)]
    assert await asyncio.to_thread(Path(result.path, "deep/diary.txt").read_text) == "".join(lines)
    assert await asyncio.to_thread(Path(result.path, "stdout").read_text) == "".join(lines)


def moves_twice(config):
    """Each time, its agent is killed."""
    directory = Path(session.get_trial_dir())
    checkpoint = session.get_checkpoint()
    start = 0 if checkpoint is None else checkpoint.to_dict()["step"]
    place = directory / "place"
    match start:
        case 0:
            place.write_text("a file", "ascii")
        case 2:
            place.unlink()
            place.mkdir()
            for name in ("Name", "name"):
                (place / name).write_text(name, "ascii")
        case 4:
            assert sorted(each.name for each in place.iterdir()) == ["Name", "name"]
            shutil.rmtree(place)
            place.write_text("a file again", "ascii")
    for step in range(start + 1, 7):
        with (directory / "diary.txt").open("a", encoding="ascii") as diary:
            diary.write(f"{step}\n")
        session.report({"step": step}, Checkpoint.from_dict({"step": step}))
        if step in {2, 4}:
            time.sleep(1.4)  # a round
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(60)


class KeepsRecords:
    """Writes to the trial's directory, on the driver's side."""

    def __init__(self, directory):
        self.directory = directory

    async def on_trial_result(self, trial, result):
        await asyncio.to_thread(self._write, trial, result)

    def _write(self, trial, result):
        with Path(self.directory, trial.trial_name, "records.csv").open("a", encoding="ascii") as records:
            records.write(f"{result['step']}\n")


async def test_a_third_node_has_what_the_two_before_made_of_it(experiment, tmp_path):
    """And no node undoes what the driver's side does meanwhile."""
    engine = LocalEngine(nodes=("node-a", "node-b", "node-c"))
    [result] = await experiment(
        moves_twice,
        engine=engine,
        failures=2,
        run={"sync_config": SyncConfig(sync_period=1.0), "callbacks": [KeepsRecords(tmp_path / "exp" / "e")]},
    ).fit()
    assert result.error is None
    assert [each.node for each in engine.placements] == list(engine.nodes)
    lines = "".join(f"{step}\n" for step in range(1, 7))
    for name in ("diary.txt", "records.csv"):
        assert await asyncio.to_thread(Path(result.path, name).read_text, "ascii") == lines
    assert await asyncio.to_thread(Path(result.path, "place").read_text, "ascii") == "a file again"


class DiesUntold(LocalEngine):
    """Its agent is killed when its second checkpoint has come, before the driver is told of it."""

    async def launch(self, order):
        placement = await super().launch(order)
        if len(self.placements) == 1:
            self.first = placement
        return placement


async def test_what_came_and_was_not_told_is_removed(experiment, monkeypatch, tmp_path):
    engine = DiesUntold(nodes=NODES)
    real, finished = homecoming.TreeReceiver.handle, []

    async def handle(self, op, arguments):
        answer = await real(self, op, arguments)
        if op == "home.finish":
            finished.append(answer["path"])
            if len(finished) == 2:
                engine.first.process.kill()
        return answer

    monkeypatch.setattr(homecoming.TreeReceiver, "handle", handle)
    [result] = await experiment(trainables.with_directory, engine=engine, failures=1).fit()
    assert result.error is None
    assert len(finished) >= 5
    assert not [each.name for each in Path(result.path).iterdir() if each.name.startswith(".staged-")]
