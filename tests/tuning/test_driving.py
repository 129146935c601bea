"""How trials live and end in a Tuner, where that is not seen in its results alone."""

from __future__ import annotations

import asyncio
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from asynctune import (
    CheckpointConfig,
    CheckpointNotFoundError,
    ConfigError,
    ExperimentStore,
    FailureConfig,
    InlineRunner,
    RunConfig,
    TrialFailedError,
    TrialStatus,
    TuneConfig,
    Tuner,
    UserCodeError,
    grid_search,
    session,
)
from asynctune.trial import MANIFEST_FILE
from asynctune.tuning import driving
from asynctune.tuning.waiting import DECIDED
from tests.tuning import trainables
from tests.tuning.test_deciding import Searcher


class Hears:
    """Notes each event."""

    def __init__(self):
        self.events = []

    def on_trial_start(self, trial):
        self.events.append("start")

    def on_trial_result(self, trial, result):
        self.events.append(result["training_iteration"])

    def on_trial_complete(self, trial):
        self.events.append("complete")

    def on_experiment_end(self, trials):
        self.events.append(len(trials))


async def stopped(tmp_path, *, at, checkpoint):
    """A trial that was told to stop at an iteration, has a checkpoint of another one, and a driver that was killed."""
    made = Tuner(
        trainables.coroutine,
        param_space={"x": 1},
        run_config=RunConfig(name="exp", local_dir=tmp_path, verbose=0),
    )
    await made.fit()
    async with ExperimentStore.open(tmp_path / "exp", mode="resume") as store:
        source = store.trials[0].trial_id
        trial_id = store.add_trial({"x": 2}).trial_id
        store.set_status(trial_id, "RUNNING")
        for iteration in range(1, at + 1):
            store.report(trial_id, {"loss": 1.0, "training_iteration": iteration})
            if iteration == checkpoint:
                await store.clone_checkpoint(source, checkpoint, to_trial=trial_id)
        store.update_trial(trial_id, metadata={DECIDED: ["STOP", at]})
        store.set_metadata("asynctune.progress", {"finished": False})
    return tmp_path / "exp"


@pytest.mark.parametrize(
    ("checkpoint", "rerun"), [(6, []), (4, [5, 6]), (2, [3, 4, 5, 6])], ids=["at", "near", "far"]
)
async def test_a_trial_that_was_told_to_stop_stops_there_after_a_crash(tmp_path, checkpoint, rerun):
    path = await stopped(tmp_path, at=6, checkpoint=checkpoint)
    hears = Hears()
    results = await (await Tuner.restore(path, run_config=RunConfig(verbose=0, callbacks=[hears]))).fit()
    assert results[1].status == "TERMINATED"
    assert results[1].metrics["training_iteration"] == 6
    assert hears.events == ["start", *rerun, "complete", 2]


async def test_the_decision_to_stop_is_in_the_commit_of_its_row(tmp_path):
    tuner = Tuner(
        trainables.coroutine,
        param_space={"x": 1},
        run_config=RunConfig(name="exp", local_dir=tmp_path, verbose=0, stop={"training_iteration": 3}),
    )
    results = await tuner.fit()
    assert results[0].metrics["training_iteration"] == 3
    async with ExperimentStore.open(tmp_path / "exp", mode="read") as store:
        assert store.trials[0].metadata == {DECIDED: ["STOP", 3]}


class FailsAtEnds(Searcher):
    """Proposes without end, and fails when it is told of one."""

    def suggest(self, trial_id):
        self.told.append(trial_id)
        return {"x": 1, "pause": 0.02 * len(self.told)}

    def on_trial_complete(self, trial_id, result=None, error=False):
        raise KeyError("end")


async def test_a_searcher_that_fails_ends_all_and_starts_nothing_more(tmp_path):
    searcher = FailsAtEnds()
    hears = Hears()
    tuner = Tuner(
        trainables.coroutine,
        tune_config=TuneConfig(search_alg=searcher, num_samples=-1, max_concurrent_trials=3),
        run_config=RunConfig(name="exp", local_dir=tmp_path, verbose=0, callbacks=[hears]),
    )
    with pytest.raises(UserCodeError, match=r"FailsAtEnds\.on_trial_complete"):
        await tuner.fit()
    assert [result.status for result in tuner.get_results()] == ["TERMINATED", "PENDING", "PENDING"]
    assert sum(isinstance(each, str) for each in searcher.told) == 3
    assert hears.events[-1] == 3, "callbacks hear of the end"


async def failing_at_ends(config):
    """One fails at once, the others take their time."""
    if config["x"] == 0:
        raise ValueError("at once")
    for _ in range(1000):
        await asyncio.sleep(0.01)
        await session.areport({"loss": 1})


@pytest.mark.parametrize("fail_fast", [True, "raise"], ids=["fast", "raise"])
async def test_the_first_failure_ends_all(tmp_path, fail_fast):
    hears = Hears()
    tuner = Tuner(
        failing_at_ends,
        param_space={"x": grid_search([1, 0, 2])},
        run_config=RunConfig(
            name="exp",
            local_dir=tmp_path,
            verbose=0,
            callbacks=[hears],
            failure_config=FailureConfig(fail_fast=fail_fast),
        ),
    )
    if fail_fast == "raise":
        with pytest.raises(TrialFailedError, match="at once"):
            await tuner.fit()
    else:
        await tuner.fit()
    assert [result.status for result in tuner.get_results()] == ["PENDING", "ERROR", "PENDING"]
    assert hears.events[-1] == 3


async def test_without_a_limit_a_trial_is_tried_until_it_succeeds(tmp_path):
    lives = []

    async def stubborn(config):
        lives.append(1)
        if len(lives) < 6:
            raise ValueError(f"life {len(lives)}")
        await session.areport({"loss": 1})

    tuner = Tuner(
        stubborn,
        param_space={},
        run_config=RunConfig(
            name="exp", local_dir=tmp_path, verbose=0, failure_config=FailureConfig(max_failures=-1)
        ),
    )
    results = await tuner.fit()
    assert results[0].status == "TERMINATED"
    async with ExperimentStore.open(tmp_path / "exp", mode="read") as store:
        trial = store.trials[0]
        assert trial.num_failures == 5
        assert "life 5" in str(trial.error)


class Slow(Hears):
    """Takes its time with each failure and end."""

    def __init__(self, ended=None):
        super().__init__()
        self.ended = ended

    async def on_trial_error(self, trial):
        self.events.append("error")
        await asyncio.sleep(0.05)
        self.events.append("told")

    async def on_trial_complete(self, trial):
        self.events.append("complete")
        if self.ended is not None:
            self.ended.set()
        await asyncio.sleep(0.05)
        self.events.append("told")


async def test_a_retry_waits_until_the_failure_was_told(tmp_path):
    lives = []

    async def twice(config):
        lives.append(1)
        await session.areport({"loss": len(lives)})
        if len(lives) == 1:
            raise ValueError("once")

    slow = Slow()
    run = RunConfig(
        name="exp",
        local_dir=tmp_path,
        verbose=0,
        callbacks=[slow],
        failure_config=FailureConfig(max_failures=1),
    )
    results = await Tuner(twice, param_space={}, run_config=run).fit()
    assert results[0].status == "TERMINATED"
    assert slow.events == ["start", 1, "error", "told", "start", 1, "complete", "told", 1]


async def test_the_end_of_the_experiment_waits_until_ends_were_told(tmp_path):
    ended = asyncio.Event()

    async def one_fails(config):
        await session.areport({"loss": 1})
        if config["x"]:
            await ended.wait()
            raise ValueError("while the end of the other one is told")

    slow = Slow(ended)
    run = RunConfig(
        name="exp",
        local_dir=tmp_path,
        verbose=0,
        callbacks=[slow],
        failure_config=FailureConfig(fail_fast=True),
    )
    await Tuner(one_fails, param_space={"x": grid_search([0, 1])}, run_config=run).fit()
    assert slow.events[-1] == 2
    assert [slow.events.count(each) for each in ("complete", "error", "told")] == [1, 1, 2]


class StopAll:
    """Ends everything as soon as any trial has come to its third iteration."""

    seen = 0

    def __call__(self, trial_id, result):
        self.seen = max(self.seen, result["training_iteration"])
        return False

    def stop_all(self):
        return self.seen >= 3


async def test_the_end_of_all_trials_is_an_ordinary_end_for_each(tmp_path):
    hears = Hears()
    run = RunConfig(
        name="exp",
        local_dir=tmp_path,
        verbose=0,
        stop=StopAll(),
        callbacks=[hears],
        checkpoint_config=CheckpointConfig(checkpoint_at_end=True),
    )
    results = await Tuner(
        trainables.Counting, param_space={"until": grid_search([100, 101])}, run_config=run
    ).fit()
    assert [result.status for result in results] == ["TERMINATED"] * 2
    for result in results:
        assert result.best_checkpoints[-1][0].step == result.metrics["training_iteration"]
    assert hears.events.count("complete") == 2


async def test_a_trial_that_reports_no_more_is_ended_after_a_while(tmp_path, monkeypatch):
    monkeypatch.setattr(driving, "_STOP_ALL_GRACE_S", 0.1)
    cleaned = []

    async def silent(config):
        try:
            await session.areport({"loss": 1, "training_iteration": 3})
            await asyncio.sleep(config["pause"])
        finally:
            cleaned.append(1)

    hears = Hears()
    run = RunConfig(name="exp", local_dir=tmp_path, verbose=0, callbacks=[hears])
    tune = TuneConfig(time_budget_s=0.2, num_samples=2)
    results = await Tuner(silent, param_space={"pause": 1000}, tune_config=tune, run_config=run).fit()
    assert [result.status for result in results] == ["TERMINATED"] * 2
    assert hears.events.count("complete") == 2
    assert len(cleaned) == 2


@pytest.mark.parametrize("raises", [True, False], ids=["raises", "returns"])
async def test_a_trial_that_makes_something_else_of_its_cancellation_goes_on_later(tmp_path, raises):
    async def stubborn(config):
        await session.areport({"loss": 1})
        if config["x"] == 1:
            raise ValueError("ends all")
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            if raises:
                raise KeyError("in my cleanup") from None

    run = RunConfig(name="exp", local_dir=tmp_path, verbose=0, failure_config=FailureConfig(fail_fast=True))
    results = await Tuner(stubborn, param_space={"x": grid_search([0, 1])}, run_config=run).fit()
    assert [result.status for result in results] == ["PENDING", "ERROR"]


async def test_a_trial_that_awaits_nothing_else_leaves_the_loop_to_others(tmp_path):
    turns = 0

    async def counting():
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    async def busy(config):
        before = turns
        for _ in range(100):
            await session.areport({"loss": 1})
        await session.areport({"turns": turns - before})

    other = asyncio.create_task(counting())
    run = RunConfig(name="exp", local_dir=tmp_path, verbose=0)
    results = await Tuner(busy, param_space={}, run_config=run).fit()
    other.cancel()
    assert results[0].metrics["turns"] >= 100


class Hesitates(Searcher):
    """Proposes nothing while the first trial runs, and something when that has ended."""

    asked, ended = 0, False

    def suggest(self, trial_id):
        self.asked += 1
        return {"x": 1} if self.asked == 1 or self.ended else None

    def on_trial_complete(self, trial_id, result=None, error=False):
        self.ended = True


async def test_a_searcher_that_proposes_nothing_for_now_is_asked_again(tmp_path):
    tune = TuneConfig(search_alg=Hesitates(), num_samples=3, max_concurrent_trials=2)
    run = RunConfig(name="exp", local_dir=tmp_path, verbose=0)
    results = await Tuner(trainables.coroutine, tune_config=tune, run_config=run).fit()
    assert len(results) == 3


async def test_an_end_that_is_told_is_not_cut_off_by_the_end_of_everything(tmp_path):
    ended = asyncio.Event()

    async def second_waits(config):
        if config["x"]:
            await ended.wait()
        await session.areport({"loss": config["x"]})

    def stop(trial_id, result):
        if result["loss"]:
            raise KeyError("a mistake")
        return False

    slow = Slow(ended)
    run = RunConfig(name="exp", local_dir=tmp_path, verbose=0, callbacks=[slow], stop=stop)
    with pytest.raises(UserCodeError, match="a mistake"):
        await Tuner(second_waits, param_space={"x": grid_search([0, 1])}, run_config=run).fit()
    assert slow.events[-3:] == ["complete", "told", 2]


async def test_a_mistake_in_a_report_fails_its_trial_alone(tmp_path):
    async def backwards(config):
        await session.areport({"loss": 1, "training_iteration": 5})
        await session.areport({"loss": 1, "training_iteration": config["next"]})

    run = RunConfig(name="exp", local_dir=tmp_path, verbose=0)
    results = await Tuner(backwards, param_space={"next": grid_search([4, 6])}, run_config=run).fit()
    assert [result.status for result in results] == ["ERROR", "TERMINATED"]
    assert "iteration 4" in results.errors[0]


async def test_until_its_stop_a_trial_that_runs_again_is_not_stopped_for_another_reason(tmp_path):
    path = await stopped(tmp_path, at=6, checkpoint=2)
    results = await (
        await Tuner.restore(path, run_config=RunConfig(verbose=0, stop={"training_iteration": 4}))
    ).fit()
    assert results[1].metrics["training_iteration"] == 6


async def test_what_is_left_to_be_done_is_not_finished(tmp_path):
    run = RunConfig(name="exp", local_dir=tmp_path, verbose=0)
    await Tuner(trainables.coroutine, param_space={"x": 1}, run_config=run).fit()

    def fails(trial_id, result):
        raise KeyError("a mistake")

    restored = await Tuner.restore(
        tmp_path / "exp", tune_config=TuneConfig(num_samples=2), run_config=RunConfig(stop=fails)
    )
    with pytest.raises(UserCodeError):
        await restored.fit()
    async with ExperimentStore.open(tmp_path / "exp", mode="read") as store:
        assert store.metadata["asynctune.progress"] == {"finished": False}


async def test_a_signal_before_the_first_trial_is_obeyed(tmp_path):
    class Signalled(InlineRunner):
        async def start(self, trainable, options):
            await super().start(trainable, options)
            signal.raise_signal(signal.SIGINT)
            await asyncio.sleep(0.05)

    run = RunConfig(name="exp", local_dir=tmp_path, verbose=0)
    tuner = Tuner(trainables.coroutine, param_space={"x": 1}, run_config=run, runner=Signalled())
    with pytest.raises(KeyboardInterrupt, match="nothing was begun"):
        await tuner.fit()
    assert not await asyncio.to_thread((tmp_path / "exp").exists)


async def test_what_ends_the_experiment_leaves_its_trials_to_go_on(tmp_path):
    """A runner that cannot run here has not failed its trials."""

    class Refuses(InlineRunner):
        async def run_trial(self, task, report):
            if task.config["x"]:
                raise ConfigError("not on this machine")
            await asyncio.Event().wait()

    run = RunConfig(name="exp", local_dir=tmp_path, verbose=0)
    tuner = Tuner(
        trainables.coroutine, param_space={"x": grid_search([0, 1])}, run_config=run, runner=Refuses(2)
    )
    with pytest.raises(ConfigError, match="not on this machine"):
        await tuner.fit()
    async with ExperimentStore.open(tmp_path / "exp", mode="read") as store:
        assert [(each.status, each.num_failures) for each in store.trials] == [(TrialStatus.PENDING, 0)] * 2


class Fetches(InlineRunner):
    """One whose machines read checkpoints where they are; what `reads` says of each."""

    def __init__(self, reads=lambda place: True):
        super().__init__()
        self.reads = reads
        self.tasks = []

    def can_fetch(self, place, copy):
        assert copy is None
        return True

    async def run_trial(self, task, report):
        self.tasks.append(task)
        if task.place is not None:
            assert task.checkpoint is None
            if not await asyncio.to_thread(self.reads, task.place):
                raise CheckpointNotFoundError("node-a cannot read it")
            private = Path(task.place.path).parent / "private"
            await asyncio.to_thread(shutil.copytree, task.place.path, private)
            task = replace(task, checkpoint=replace(task.place.checkpoint, path=private), place=None)
        await super().run_trial(task, report)


def failing_once_on(tmp_path, runner):
    return Tuner(
        trainables.failing_once,
        run_config=RunConfig(
            name="exp", local_dir=tmp_path, verbose=0, failure_config=FailureConfig(max_failures=1)
        ),
        runner=runner,
    )


async def iterations_of(result):
    return [row["training_iteration"] for row in await result.history()]


async def test_a_runner_that_can_is_told_where_the_checkpoint_is(tmp_path, monkeypatch):
    async def refuse(*_arguments):
        raise AssertionError("this machine carries nothing")

    monkeypatch.setattr(ExperimentStore, "restore_checkpoint", refuse)
    runner = Fetches()
    [result] = await failing_once_on(tmp_path, runner).fit()
    assert await iterations_of(result) == [1, 2, 3, 4, 5, 6, 7]
    first, second = runner.tasks
    assert (first.place, first.checkpoint) == (None, None)
    assert second.iteration == 3
    place = second.place
    assert (place.checkpoint.step, place.checkpoint.path) == (3, None)
    assert place.directory == f"{result.path.name}/checkpoint_000003"
    assert place.path == str(result.path / "checkpoint_000003")
    assert not place.is_in_copy


async def test_what_it_cannot_read_is_brought_here(tmp_path, caplog):
    runner = Fetches(lambda place: False)
    [result] = await failing_once_on(tmp_path, runner).fit()
    assert await iterations_of(result) == [1, 2, 3, 4, 5, 6, 7]
    assert [(task.place is None, task.checkpoint is None) for task in runner.tasks] == [
        (True, True),
        (False, True),
        (True, False),
    ]
    assert "by way of this machine: node-a cannot read it" in caplog.text
    async with ExperimentStore.open(tmp_path / "exp", mode="read") as store:
        assert [each.num_failures for each in store.trials] == [1], "that alone is no failure"


async def test_what_is_damaged_where_it_is_gives_way_to_what_was_before(tmp_path):
    """And the rows after it are cut, as ever."""

    def damage(place):
        Path(place.path, MANIFEST_FILE).unlink()
        return False

    [result] = await failing_once_on(tmp_path, Fetches(damage)).fit()
    assert result.status == "ERROR", "it fails at its fifth iteration whenever it starts over"
    assert await iterations_of(result) == [1, 2, 3, 4]


async def test_an_error_of_that_kind_later_on_ends_the_experiment(tmp_path):
    class Loses(Fetches):
        async def run_trial(self, task, report):
            await super().run_trial(task, report)
            raise CheckpointNotFoundError("whatever that is")

    with pytest.raises(CheckpointNotFoundError, match="whatever that is"):
        await Tuner(
            trainables.coroutine,
            param_space={"x": 1},
            run_config=RunConfig(name="exp", local_dir=tmp_path, verbose=0),
            runner=Loses(),
        ).fit()
