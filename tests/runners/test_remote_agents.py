"""How many agents a runner starts, and who gets them, see `asynctune.runners.remote`."""

from __future__ import annotations

import asyncio

import pytest

from asynctune import FailureConfig, ResultGrid, RunConfig, TuneConfig, Tuner, session
from asynctune.errors import ConfigError, TrialFailedError
from asynctune.protocols import CONTINUE, TrialTask
from asynctune.runners.remote import RemoteRunner
from tests.runners.local_engine import LocalEngine


def reports_once(_config):
    session.report({"loss": 1.0})


class Starts(LocalEngine):
    """An engine whose first starts do not come, or fail."""

    def __init__(self, *outcomes):
        super().__init__()
        self.outcomes = list(outcomes)
        self.asked = 0

    async def launch(self, order):
        self.asked += 1
        outcome = self.outcomes.pop(0) if self.outcomes else None
        if outcome == "never":
            await asyncio.Event().wait()
        elif outcome is not None:
            raise outcome
        return await super().launch(order)


def task_of(directory, trial_id="t1", **config):
    directory.mkdir(exist_ok=True)
    return TrialTask(trial_id=trial_id, trial_name=trial_id, trial_dir=str(directory), config=config)


async def ignore(_report):
    return CONTINUE


async def test_short_trials_use_all_agents_and_no_more(tmp_path):
    engine = LocalEngine()
    tuner = Tuner(
        reports_once,
        tune_config=TuneConfig(num_samples=20),
        run_config=RunConfig(name="exp", local_dir=tmp_path, verbose=0),
        runner=RemoteRunner(engine),
    )
    results = await tuner.fit()
    assert results.num_terminated == 20
    assert len(engine.placements) == 2


async def test_a_trial_uses_the_agent_that_another_leaves_while_its_own_does_not_come(tmp_path):
    engine = Starts(None, "never")
    runner = RemoteRunner(engine)
    await runner.start(reports_once, {})
    first = asyncio.create_task(runner.run_trial(task_of(tmp_path / "t1"), ignore))
    second = asyncio.create_task(runner.run_trial(task_of(tmp_path / "t2", "t2"), ignore))
    await asyncio.gather(first, second)
    assert engine.asked == 2
    await runner.run_trial(task_of(tmp_path / "t3", "t3"), ignore)
    assert engine.asked == 2
    await runner.aclose()
    assert len(engine.placements) == 1


async def test_a_start_that_fails_fails_a_trial_that_waits(tmp_path):
    engine = Starts(TrialFailedError("the engine has no more machines"))
    runner = RemoteRunner(engine)
    await runner.start(reports_once, {})
    with pytest.raises(TrialFailedError, match="trial t1 could not start: the engine has no more machines"):
        await runner.run_trial(task_of(tmp_path / "t1"), ignore)
    await runner.run_trial(task_of(tmp_path / "t2", "t2"), ignore)
    await runner.aclose()


async def test_a_start_that_fails_is_no_trials_fault_while_another_comes(tmp_path, caplog):
    failing = asyncio.Event()

    class Engine(Starts):
        async def launch(self, order):
            if self.asked == 1:
                self.asked += 1
                await failing.wait()
                raise TrialFailedError("too late")
            return await super().launch(order)

    engine = Engine()
    runner = RemoteRunner(engine)
    await runner.start(reports_once, {})
    tasks = [task_of(tmp_path / f"t{number}", f"t{number}") for number in (1, 2)]
    await asyncio.gather(*(runner.run_trial(task, ignore) for task in tasks))
    failing.set()
    await asyncio.sleep(0.05)
    assert "too late" in caplog.text
    await runner.run_trial(task_of(tmp_path / "t3", "t3"), ignore)
    assert len(engine.placements) == 1
    await runner.aclose()


async def test_a_wrong_setting_is_told_at_once_although_another_agent_comes(tmp_path):
    engine = Starts(ConfigError("no machine has such a disk"), "never")
    runner = RemoteRunner(engine)
    await runner.start(reports_once, {})
    tasks = [task_of(tmp_path / f"t{number}", f"t{number}") for number in (1, 2)]
    running = [asyncio.create_task(runner.run_trial(task, ignore)) for task in tasks]
    with pytest.raises(ConfigError, match="no machine has such a disk"):
        await running[0]
    await runner.aclose()
    with pytest.raises(ConfigError, match="the runner was closed"):
        await running[1]


async def test_a_directory_that_cannot_be_made_on_the_nodes_ends_the_experiment(tmp_path):
    """No trial has failed, and no retry was spent."""
    (tmp_path / "file").touch()
    engine = LocalEngine()
    tuner = Tuner(
        reports_once,
        tune_config=TuneConfig(num_samples=4),
        run_config=RunConfig(
            name="exp", local_dir=tmp_path, failure_config=FailureConfig(max_failures=3), verbose=0
        ),
        runner=RemoteRunner(engine, worker_dir=tmp_path / "file"),
    )
    with pytest.raises(ConfigError, match=r"on node-a \(.+\): cannot make .*give worker_dir") as refused:
        await tuner.fit()
    assert str(tmp_path / "file") in str(refused.value)
    results = await ResultGrid.load(tmp_path / "exp")
    assert results.num_errors == 0
    assert all(result.error is None for result in results)
    assert len(engine.placements) <= 2

    tuner = await Tuner.restore(tmp_path / "exp", reports_once, runner=RemoteRunner(LocalEngine()))
    results = await tuner.fit()
    assert (len(results), results.num_terminated) == (4, 4)


async def test_a_trial_that_waits_is_told_that_the_runner_was_closed(tmp_path):
    runner = RemoteRunner(Starts("never"))
    await runner.start(reports_once, {})
    waiting = asyncio.create_task(runner.run_trial(task_of(tmp_path / "t1"), ignore))
    await asyncio.sleep(0.05)
    await runner.aclose()
    with pytest.raises(ConfigError, match="the runner was closed"):
        await waiting


async def test_who_is_cancelled_while_it_waits_leaves_the_agent_to_the_next(tmp_path):
    engine = Starts()
    runner = RemoteRunner(engine)
    await runner.start(reports_once, {})
    waiting = asyncio.create_task(runner.run_trial(task_of(tmp_path / "t1"), ignore))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await runner.run_trial(task_of(tmp_path / "t2", "t2"), ignore)
    assert engine.asked == 1
    await runner.aclose()
