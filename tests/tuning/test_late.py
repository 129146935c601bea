"""Checkpoints that come while their trials go on: what a trial waits for, and what its end waits for."""

from __future__ import annotations

import asyncio
import errno
import signal
from pathlib import Path
from typing import Any

import pytest

from asynctune import (
    CheckpointConfig,
    ConfigError,
    ExperimentStore,
    FailureConfig,
    ResultGrid,
    RunConfig,
    StorageError,
    SyncConfig,
    TrialFailedError,
    TrialReport,
    Tuner,
)
from asynctune.checkpoints.arriving import ArrivingCheckpoint
from asynctune.storage.memory import MemoryStorage
from asynctune.storage.uri import open_storage
from asynctune.tuning.late import LateCheckpoints, is_late
from tests.checkpoints.bringing import Worker
from tests.checkpoints.fakes import read_tree, where


async def trainable(config):
    """Is never called: the runner of these tests runs nothing."""


@pytest.fixture
async def store(tmp_path):
    async with ExperimentStore.open(tmp_path / "exp") as opened:
        yield opened


class Remote:
    """A runner whose trials are what the test says: `life(remote, task, report)`, for each start."""

    capacity = 4

    def __init__(self, path, *lives, storage=None):
        self.path = path
        self.storage = storage
        self._lives = list(lives)
        self.workers: list[Worker] = []
        self.tasks = []
        self.goes_on = asyncio.Event()
        self.report: Any = None

    async def start(self, trainable, options):
        """Nothing to get ready."""

    async def run_trial(self, task, report):
        self.tasks.append(task)
        await self._lives[min(len(self.tasks), len(self._lives)) - 1](self, task, report)

    async def aclose(self):
        """Nothing runs."""

    def made(self, task, *, late=True, held=True, **content) -> ArrivingCheckpoint:
        """A checkpoint of a trial, on its node; one that is held comes when it may."""
        files = {name: data.encode() for name, data in (content or {"model": str(len(self.workers))}).items()}
        node = self.path / f"node-{len(self.workers)}"
        home = Path(task.trial_dir).parent
        worker = Worker(node, files, storage=self.storage, experiment=home, late=late)
        if held:
            worker.may_go.clear()
        self.workers.append(worker)
        return worker.checkpoint


class Hears:
    """Notes what it is told."""

    def __init__(self):
        self.events = []
        self.committed = asyncio.Event()

    def on_trial_result(self, trial, result):
        self.events.append(result["training_iteration"])

    def on_checkpoint(self, trial, checkpoint):
        self.events.append(f"checkpoint {checkpoint.step}: {checkpoint.metrics['x']}")
        self.committed.set()

    def on_trial_complete(self, trial):
        self.events.append("complete")


def tuner(tmp_path, runner, *callbacks, **run):
    config = RunConfig(name="exp", local_dir=tmp_path, verbose=0, callbacks=list(callbacks), **run)
    return Tuner(trainable, param_space={"x": 1}, run_config=config, runner=runner)


def row(x, checkpoint=None):
    return TrialReport(metrics={"x": x}, checkpoint=checkpoint)


async def states(path):
    """Status and steps of the one trial."""
    async with ExperimentStore.open(path, "read") as store:
        (trial,) = store.trials
        return trial.status.value, [each.step for each in trial.checkpoints]


async def quiet():
    for _ in range(20):
        await asyncio.sleep(0.002)


def test_only_one_that_says_so_is_late():
    async def bring(place):
        return None

    assert is_late(row(1, ArrivingCheckpoint(bring=bring, late=True)))
    assert not is_late(row(1, ArrivingCheckpoint(bring=bring)))
    assert not is_late(row(1))


async def test_a_trial_whose_commit_failed_is_not_at_its_end(store):
    failed: list[BaseException] = []

    async def committed(trial_id, checkpoint):
        raise AssertionError

    async def bring(place):
        raise ConfigError("no such thing")

    late = LateCheckpoints(store, committed, failed.append)
    trial_id = store.add_trial({}).trial_id
    assert await late.over(trial_id), "there are none"
    async with asyncio.TaskGroup() as tasks:
        late.begin(tasks, trial_id, row(1, ArrivingCheckpoint(bring=bring, late=True)))
        assert not await late.over(trial_id)
    assert [str(error) for error in failed] == ["no such thing"]
    assert await late.over(trial_id), "the next start of it begins anew"


async def test_a_trial_goes_on_meanwhile_and_its_end_waits(tmp_path):
    hears = Hears()

    async def life(remote, task, report):
        for x in (1, 2):
            assert await report(row(x, remote.made(task))) == "CONTINUE"
        # another one for the same row
        assert await report(TrialReport(metrics=None, checkpoint=remote.made(task))) == "CONTINUE"
        assert await report(row(3)) == "CONTINUE"
        remote.goes_on.set()

    remote = Remote(tmp_path, life)
    running = asyncio.ensure_future(tuner(tmp_path, remote, hears).fit())
    await remote.goes_on.wait()
    await quiet()
    assert hears.events == [1, 2, 3]
    assert not running.done()
    assert len(remote.workers[0].places) == 1
    assert not remote.workers[1].places, "in order"
    for worker in reversed(remote.workers):
        assert not running.done()
        worker.may_go.set()
    [result] = await running
    assert hears.events == [
        1,
        2,
        3,
        "checkpoint 1: 1",
        "checkpoint 2: 2",
        "checkpoint 3: 2",
        "complete",
    ]
    assert result.status == "TERMINATED"
    assert [each.metrics["x"] for each, _ in result.best_checkpoints] == [1, 2, 2]
    assert read_tree(where(result.checkpoint)) == {"model": b"2"}


async def test_one_that_is_not_late_is_waited_for(tmp_path):
    async def life(remote, task, report):
        reporting = asyncio.ensure_future(report(row(1, remote.made(task, late=False))))
        await remote.workers[0].asked.wait()
        await quiet()
        assert not reporting.done()
        remote.workers[0].may_go.set()
        await reporting
        assert await states(tmp_path / "exp") == ("RUNNING", [1])

    [result] = await tuner(tmp_path, Remote(tmp_path, life)).fit()
    assert result.status == "TERMINATED"


@pytest.mark.parametrize("late", [True, False], ids=["late", "waited-for"])
async def test_one_that_is_given_up_is_left_out(tmp_path, late):
    hears = Hears()

    async def life(remote, task, report):
        given_up = remote.made(task, held=False, late=late)
        remote.workers[0].answer = None
        await report(row(1, given_up))
        await report(row(2, remote.made(task, held=False, late=late)))

    [result] = await tuner(tmp_path, Remote(tmp_path, life), hears).fit()
    assert [each.step for each, _ in result.best_checkpoints] == [2]
    assert [event for event in hears.events if "checkpoint" in str(event)] == ["checkpoint 2: 2"]


@pytest.mark.parametrize(
    "error", [ConnectionResetError("no answer"), TrialFailedError("node b died")], ids=["gone", "died"]
)
async def test_one_whose_node_is_gone_is_no_end_of_the_experiment(tmp_path, caplog, error):
    async def dies(remote, task, report):
        await report(row(1, remote.made(task, held=False)))
        await hears.committed.wait()
        await report(row(2, remote.made(task)))
        remote.workers[1].error = error
        remote.workers[1].may_go.set()
        raise TrialFailedError("node b died")

    async def lives(remote, task, report):
        assert task.iteration == 1
        assert await asyncio.to_thread(read_tree, task.checkpoint.path) == {"model": b"0"}
        await report(row(2, remote.made(task, held=False)))

    remote = Remote(tmp_path, dies, lives)
    hears = Hears()
    [result] = await tuner(tmp_path, remote, hears, failure_config=FailureConfig(max_failures=1)).fit()
    assert result.status == "TERMINATED"
    assert [each.step for each, _ in result.best_checkpoints] == [1, 2]
    assert "did not come, and is left out: " in caplog.text
    assert hears.events == [1, "checkpoint 1: 1", 2, 2, "checkpoint 2: 2", "complete"]


async def test_a_worker_that_dies_while_it_is_waited_for_fails_its_trial(tmp_path):
    async def dies(remote, task, report):
        checkpoint = remote.made(task, held=False, late=False)
        remote.workers[0].error = TrialFailedError("killed on node b")
        await report(row(1, checkpoint))

    async def lives(remote, task, report):
        await report(row(1))

    remote = Remote(tmp_path, dies, lives)
    [result] = await tuner(tmp_path, remote, failure_config=FailureConfig(max_failures=1)).fit()
    assert result.status == "TERMINATED"
    assert len(remote.tasks) == 2


async def test_the_next_start_waits_for_what_comes(tmp_path):
    """A retry goes on from the newest, which is late."""

    async def fails(remote, task, report):
        await report(row(1, remote.made(task)))
        asyncio.get_running_loop().call_later(0.05, remote.workers[0].may_go.set)
        raise TrialFailedError("its own fault")

    async def lives(remote, task, report):
        assert task.iteration == 1
        assert task.checkpoint.step == 1

    remote = Remote(tmp_path, fails, lives)
    [result] = await tuner(tmp_path, remote, failure_config=FailureConfig(max_failures=1)).fit()
    assert result.status == "TERMINATED"


@pytest.mark.parametrize("is_over", [True, False], ids=["over", "running"])
async def test_a_disk_that_fails_ends_the_experiment(tmp_path, monkeypatch, is_over):
    async def fails(store, *args, **how):
        await asyncio.sleep(0.05)
        raise StorageError("cannot adopt", operation="write") from OSError(errno.EIO, "broken")

    async def life(remote, task, report):
        monkeypatch.setattr(ExperimentStore, "adopt_checkpoint", fails)
        await report(row(1, remote.made(task)))
        if not is_over:
            await asyncio.Event().wait()

    with pytest.raises(StorageError, match="cannot adopt"):
        await tuner(tmp_path, Remote(tmp_path, life)).fit()
    assert await states(tmp_path / "exp") == ("PENDING", [])


async def test_a_mistake_of_a_runner_is_raised(tmp_path):
    async def life(remote, task, report):
        checkpoint = remote.made(task, held=False)
        remote.workers[0].error = KeyError("oops")
        await report(row(1, checkpoint))
        await asyncio.Event().wait()

    with pytest.raises(ExceptionGroup) as caught:
        await tuner(tmp_path, Remote(tmp_path, life)).fit()
    assert caught.value.subgroup(KeyError) is not None
    assert await states(tmp_path / "exp") == ("PENDING", [])


async def test_what_is_no_checkpoint_ends_the_experiment(tmp_path):
    async def life(remote, task, report):
        checkpoint = remote.made(task, held=False)
        remote.workers[0].error = ConfigError("node b does not see the driver's directory")
        await report(row(1, checkpoint))
        await asyncio.Event().wait()

    with pytest.raises(ConfigError, match="node b does not see"):
        await tuner(tmp_path, Remote(tmp_path, life)).fit()


async def test_who_is_asked_to_stop_waits_for_nothing(tmp_path):
    async def life(remote, task, report):
        await report(row(1, remote.made(task, held=False)))
        await hears.committed.wait()
        await report(row(2, remote.made(task)))
        remote.goes_on.set()

    hears = Hears()
    remote = Remote(tmp_path, life)
    running = asyncio.ensure_future(tuner(tmp_path, remote, hears).fit())
    await remote.goes_on.wait()
    await remote.workers[1].asked.wait()
    await quiet()
    running.cancel()
    async with asyncio.timeout(20):
        await asyncio.wait([running])
    assert running.cancelled()
    assert isinstance(remote.workers[1].ended, asyncio.CancelledError)
    assert await states(tmp_path / "exp") == ("PENDING", [1])


async def test_a_signal_does_not_wait_for_what_hangs(tmp_path):
    async def life(remote, task, report):
        await report(row(1, remote.made(task)))
        asyncio.get_running_loop().call_later(0.05, signal.raise_signal, signal.SIGINT)

    remote = Remote(tmp_path, life)
    async with asyncio.timeout(20):
        with pytest.raises(KeyboardInterrupt):
            await tuner(tmp_path, remote).fit()
    assert isinstance(remote.workers[0].ended, asyncio.CancelledError)
    assert await states(tmp_path / "exp") == ("PENDING", [])


async def test_the_driver_waits_for_late_ones_of_a_trial_that_it_cancels(tmp_path):
    """The runner has ended it, and what it still brings is the trial's newest checkpoint."""

    async def life(remote, task, report):
        await report(row(1, remote.made(task)))
        asyncio.get_running_loop().call_later(0.05, signal.raise_signal, signal.SIGINT)
        try:
            await asyncio.Event().wait()
        finally:
            asyncio.get_running_loop().call_later(0.05, remote.workers[0].may_go.set)

    with pytest.raises(KeyboardInterrupt):
        await tuner(tmp_path, Remote(tmp_path, life)).fit()
    assert await states(tmp_path / "exp") == ("PENDING", [1])


async def test_a_trial_that_is_over_reports_no_more(tmp_path):
    async def life(remote, task, report):
        remote.report = report
        await report(row(1, remote.made(task)))
        remote.goes_on.set()

    remote = Remote(tmp_path, life)
    running = asyncio.ensure_future(tuner(tmp_path, remote).fit())
    await remote.goes_on.wait()
    await quiet()
    with pytest.raises(ConfigError, match="has ended, and takes no more reports"):
        await remote.report(row(2))
    remote.workers[0].may_go.set()
    [result] = await running
    assert result.metrics["x"] == 1


async def test_with_a_bucket_they_never_are_on_the_drivers_disk(tmp_path):
    upload_dir = f"memory://{tmp_path.name}/prefix"

    async def fails(remote, task, report):
        for x in (1, 2):
            await report(row(x, remote.made(task, held=False)))
        raise TrialFailedError("its own fault")

    async def lives(remote, task, report):
        assert task.iteration == 2
        assert await asyncio.to_thread(read_tree, task.checkpoint.path) == {"model": b"1"}
        await report(row(3, remote.made(task, held=False, late=False)))

    storage = await open_storage(f"{upload_dir}/exp")
    remote = Remote(tmp_path, fails, lives, storage=storage)
    hears = Hears()
    [result] = await tuner(
        tmp_path,
        remote,
        hears,
        failure_config=FailureConfig(max_failures=1),
        sync_config=SyncConfig(upload_dir=upload_dir),
        checkpoint_config=CheckpointConfig(num_to_keep=2),
    ).fit()
    assert result.status == "TERMINATED"
    assert [event for event in hears.events if "checkpoint" in str(event)] == [
        "checkpoint 1: 1",
        "checkpoint 2: 2",
        "checkpoint 3: 3",
    ]
    assert not list(Path(result.path).glob("checkpoint_*"))
    assert [each.step for each, _ in result.best_checkpoints] == [2, 3]
    results = await ResultGrid.load(f"{upload_dir}/exp")
    assert results[0].checkpoint is not None
    assert results[0].checkpoint.step == 3
    again = await Tuner.restore(tmp_path / "exp", trainable, run_config=RunConfig(verbose=0), runner=remote)
    assert [each.status for each in await again.fit()] == ["TERMINATED"]
    await storage.aclose()
    MemoryStorage.forget(tmp_path.name)
