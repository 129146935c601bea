"""A Tuner runs experiments to their end, and goes on with them."""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
from typing import Any

import pytest

from asynctune import (
    BasicSearcher,
    CheckpointConfig,
    ConfigError,
    ExperimentExistsError,
    FailureConfig,
    InlineRunner,
    ResultGrid,
    RunConfig,
    StorageError,
    TrialFailedError,
    TrialStatus,
    TuneConfig,
    Tuner,
    UserCodeError,
    grid_search,
    session,
    uniform,
)
from tests.tuning import trainables


def tuner(tmp_path, trainable=trainables.coroutine, space=None, *, name="exp", tune=None, **run):
    if space is None and (tune is None or tune.search_alg is None):
        space = {"x": grid_search([0, 1, 2, 3])}
    return Tuner(
        trainable,
        param_space=space,
        tune_config=tune or TuneConfig(metric="loss", mode="min"),
        run_config=RunConfig(name=name, local_dir=tmp_path, verbose=0, **run),
    )


def iterations(result):
    path = result.path / "result.json"
    return [json.loads(line)["training_iteration"] for line in path.read_text("utf-8").splitlines()]


async def test_coroutines_run_to_their_end(tmp_path):
    results = await tuner(tmp_path).fit()
    assert (len(results), results.num_terminated, results.num_errors) == (4, 4, 0)
    assert [result.metrics["training_iteration"] for result in results] == [10] * 4
    assert results.get_best_result().config == {"x": 0}
    assert all(iterations(result) == list(range(1, 11)) for result in results)
    assert results[0].checkpoint.step == 10
    assert results[0].path.name == f"coroutine_{results[0].trial_id}"
    assert len(await ResultGrid.load(tmp_path / "exp")) == 4


async def test_nothing_is_ever_overwritten(tmp_path):
    await tuner(tmp_path).fit()
    before = sorted(path for path in tmp_path.rglob("*"))
    with pytest.raises(ExperimentExistsError, match=r"Tuner\.restore\(.*another name"):
        await tuner(tmp_path).fit()
    assert sorted(path for path in tmp_path.rglob("*")) == before


async def test_a_tuner_runs_once(tmp_path):
    made = tuner(tmp_path)
    with pytest.raises(ConfigError, match="no results yet"):
        made.get_results()
    assert made.stats() is None
    results = await made.fit()
    stats = made.stats()
    assert stats is not None
    assert stats.trials == 4
    assert stats.committed_seq > 0
    with pytest.raises(ConfigError, match=r"go on with its experiment: Tuner\.restore"):
        await made.fit()
    assert made.get_results() is results


async def test_what_cannot_work_leaves_no_experiment(tmp_path):
    lock = threading.Lock()

    def locked(config):
        with lock:
            return {"loss": 1}

    with pytest.raises(ConfigError, match="cannot be sent to a worker process"):
        await tuner(tmp_path, locked).fit()
    with pytest.raises(ConfigError, match="none of the methods"):
        await tuner(tmp_path, callbacks=[object()]).fit()
    with pytest.raises(ConfigError, match="what the Tuner was given"):
        await tuner(tmp_path, space={"x": object()}).fit()
    assert not list(tmp_path.iterdir())


async def test_a_directory_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot make the directory"):
        await tuner(tmp_path / "file" / "below").fit()


async def test_a_finished_experiment_is_looked_at_without_the_code_that_ran(tmp_path):
    async def closure(config):
        await session.areport({"loss": config["x"]})

    await tuner(tmp_path, closure).fit()
    restored = await Tuner.restore(tmp_path / "exp")
    assert (await restored.fit()).get_best_result().config == {"x": 0}
    with pytest.raises(ConfigError, match=r"give them again.*the trainable closure"):
        await Tuner.restore(tmp_path / "exp", tune_config=TuneConfig(num_samples=2))


async def test_a_finished_experiment_runs_nothing(tmp_path):
    await tuner(tmp_path).fit()
    restored = await Tuner.restore(tmp_path / "exp")
    results = await restored.fit()
    assert results.num_terminated == 4
    assert all(iterations(result) == list(range(1, 11)) for result in results)


async def test_stop_by_metric_and_by_function(tmp_path):
    results = await tuner(tmp_path, stop={"training_iteration": 3}).fit()
    assert [result.metrics["training_iteration"] for result in results] == [3] * 4
    results = await tuner(tmp_path, name="other", stop=lambda _id, row: row["loss"] <= 0.5).fit()
    assert [result.metrics["training_iteration"] for result in results] == [1, 2, 4, 6]


async def test_a_failed_trial_is_among_the_results(tmp_path):
    results = await tuner(tmp_path, trainables.failing).fit()
    assert (results.num_errors, results.num_terminated) == (2, 2)
    assert "ValueError: no 1" in results[1].error
    assert "inline.py" not in results[1].error, "the runner's own frames say nothing to the user"
    assert results[0].error is None


async def test_a_failed_trial_is_tried_again_from_its_checkpoint(tmp_path):
    results = await tuner(
        tmp_path, trainables.failing_once, {}, failure_config=FailureConfig(max_failures=1)
    ).fit()
    assert results[0].status is TrialStatus.TERMINATED, results[0].error
    assert iterations(results[0]) == [1, 2, 3, 4, 5, 6, 7]
    assert (
        json.loads((results[0].path / "result.cut-1.json").read_text().splitlines()[0])["training_iteration"]
        == 4
    )


async def test_fail_fast_leaves_the_rest_resumable(tmp_path):
    results = await tuner(
        tmp_path,
        trainables.failing,
        tune=TuneConfig(max_concurrent_trials=1),
        failure_config=FailureConfig(fail_fast=True),
    ).fit()
    assert [result.status for result in results] == [TrialStatus.TERMINATED, TrialStatus.ERROR]
    restored = await Tuner.restore(tmp_path / "exp", resume_errored=False)
    results = await restored.fit()
    assert results.num_errors == 2, "the other one that fails had not run"


async def test_fail_fast_raise(tmp_path):
    with pytest.raises(TrialFailedError, match="no 1"):
        await tuner(tmp_path, trainables.failing, failure_config=FailureConfig(fail_fast="raise")).fit()


class Paused:
    """Pauses each trial at its second iteration, and resumes it when no other is left."""

    def __init__(self):
        self.seen = {}

    def on_trial_result(self, trial_id, result):
        self.seen[trial_id] = result["training_iteration"]
        return "PAUSE" if result["training_iteration"] == 2 else "CONTINUE"

    def choose_trial_to_run(self, trial_ids):
        return min(trial_ids, key=lambda each: self.seen.get(each, 0), default=None)

    def get_state(self):
        return {"seen": dict(self.seen)}

    def set_state(self, state):
        self.seen = state["seen"]


async def test_a_scheduler_pauses_and_resumes(tmp_path):
    config = TuneConfig(scheduler=Paused(), max_concurrent_trials=2)
    results = await tuner(tmp_path, tune=config).fit()
    assert results.num_terminated == 4
    assert all(iterations(result) == list(range(1, 11)) for result in results)


class Reluctant(Paused):
    """Starts no trial but the first three."""

    def choose_trial_to_run(self, trial_ids):
        if len(self.seen) >= 3:
            return None
        return next((each for each in trial_ids if each not in self.seen), None)

    def on_trial_result(self, trial_id, result):
        self.seen[trial_id] = result["training_iteration"]
        return "CONTINUE"


@pytest.mark.parametrize("samples", [6, -1], ids=["six", "endless"])
async def test_a_scheduler_that_starts_nothing_more_ends_the_run_and_not_the_experiment(
    tmp_path, caplog, samples
):
    config = TuneConfig(scheduler=Reluctant(), num_samples=samples, max_concurrent_trials=1)
    results = await tuner(tmp_path, space={"x": uniform(0, 1)}, tune=config).fit()
    assert [result.status for result in results] == ["TERMINATED"] * 3 + ["PENDING"]
    assert "1 trials are paused or pending, and the scheduler starts none of them" in caplog.text

    class Willing(Reluctant):
        __qualname__ = "Reluctant"

        def choose_trial_to_run(self, trial_ids):
            return trial_ids[0] if trial_ids else None

    config = TuneConfig(scheduler=Willing(), num_samples=6)
    restored = await Tuner.restore(tmp_path / "exp", tune_config=config, run_config=RunConfig(verbose=0))
    results = await restored.fit()
    assert [result.status for result in results] == ["TERMINATED"] * 6


async def test_a_time_budget_ends_the_experiment(tmp_path):
    config = TuneConfig(num_samples=-1, max_concurrent_trials=2, time_budget_s=0.5)
    results = await tuner(tmp_path, space={"x": uniform(0, 1), "pause": 0.02}, tune=config).fit()
    assert len(results) > 1
    assert {result.status for result in results} <= {"TERMINATED", "PENDING"}
    restored = await Tuner.restore(tmp_path / "exp")
    again = await restored.fit()
    assert [result.metrics for result in again] == [result.metrics for result in results], "it is finished"


async def test_tensorboard_on_request(tmp_path):
    await tuner(tmp_path, space={"x": 1}, tensorboard=True).fit()
    assert list((tmp_path / "exp").glob("*/events.out.tfevents.*"))


class Bad:
    """A searcher that answers as it is told."""

    def __init__(self, answer):
        self.answer = answer

    def suggest(self, trial_id):
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def on_trial_result(self, trial_id, result):
        pass

    def on_trial_complete(self, trial_id, result=None, error=False):
        pass

    def get_state(self):
        return None

    def set_state(self, state):
        pass


@pytest.mark.parametrize(
    ("answer", "text"),
    [(RuntimeError("no idea"), "no idea"), (3, "no config"), ({"x": object()}, "cannot be stored")],
    ids=["raises", "number", "unpackable"],
)
async def test_a_bad_searcher_is_told_of(tmp_path, answer, text):
    with pytest.raises(UserCodeError, match=text):
        await tuner(tmp_path, tune=TuneConfig(search_alg=Bad(answer))).fit()


async def test_a_searcher_with_nothing_to_try_ends_the_experiment(tmp_path):
    results = await tuner(tmp_path, tune=TuneConfig(search_alg=Bad(None))).fit()
    assert len(results) == 0


def test_a_space_that_nobody_would_use_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="Bad has a search space of its own"):
        tuner(tmp_path, space={"x": 1}, tune=TuneConfig(search_alg=Bad(None)))


async def test_num_samples_limits_any_searcher(tmp_path):
    results = await tuner(tmp_path, tune=TuneConfig(search_alg=Bad({"x": 1}), num_samples=3)).fit()
    assert len(results) == 3


class Listening:
    """Keeps what it is told."""

    def __init__(self):
        self.heard = []

    async def on_trial_start(self, trial):
        self.heard.append(("start", trial.status))

    def on_trial_result(self, trial, result):
        self.heard.append(("result", result["training_iteration"]))
        raise RuntimeError("a mistake of the user's")

    def on_checkpoint(self, trial, checkpoint):
        self.heard.append(("checkpoint", checkpoint.step))

    async def on_trial_complete(self, trial):
        await asyncio.sleep(0)
        self.heard.append(("complete", trial.status))

    def on_experiment_end(self, trials):
        self.heard.append(("end", len(trials)))


async def test_callbacks_hear_everything_and_harm_nothing(tmp_path, caplog):
    listening = Listening()
    results = await tuner(
        tmp_path, space={"x": 1}, callbacks=[listening], stop={"training_iteration": 2}
    ).fit()
    assert results.num_terminated == 1
    assert listening.heard == [
        ("start", TrialStatus.RUNNING),
        ("result", 1),
        ("checkpoint", 2),
        ("result", 2),
        ("complete", TrialStatus.TERMINATED),
        ("end", 1),
    ]
    assert "Listening.on_trial_result failed" in caplog.text


async def test_retention_is_the_stores(tmp_path):
    results = await tuner(tmp_path, space={"x": 1}, checkpoint_config=CheckpointConfig(num_to_keep=2)).fit()
    assert [checkpoint.step for checkpoint, _ in results[0].best_checkpoints] == [8, 10]


async def test_options_of_classes_are_refused_for_functions(tmp_path):
    with pytest.raises(ConfigError, match="classes"):
        tuner(tmp_path, checkpoint_config=CheckpointConfig(checkpoint_frequency=1))


PRINT = print  # Ray puts something else in its place


@pytest.mark.parametrize(
    "trainable", [3, "text", PRINT, dict, lambda: 1], ids=["int", "str", "ok", "dict", "none"]
)
def test_what_is_no_trainable(tmp_path, trainable):
    if trainable is PRINT:
        tuner(tmp_path, trainable)
        return
    with pytest.raises(ConfigError, match="trainable"):
        tuner(tmp_path, trainable)


async def test_a_resumed_search_proposes_what_an_uninterrupted_one_would_have(tmp_path):
    space = {"x": uniform(0, 1)}
    config = TuneConfig(num_samples=6, max_concurrent_trials=1)

    class Stops:
        def __init__(self, after):
            self.after = after

        def on_trial_complete(self, trial):
            self.after -= 1
            if self.after == 0:
                task.cancel()

    first = tuner(tmp_path, space=space, tune=config, callbacks=[Stops(3)])
    task = asyncio.create_task(first.fit())
    with pytest.raises(asyncio.CancelledError):
        await task
    before = await ResultGrid.load(tmp_path / "exp")
    assert 3 <= len(before) < 6
    restored = await Tuner.restore(tmp_path / "exp", run_config=RunConfig(verbose=0, callbacks=[Listening()]))
    results = await restored.fit()
    assert results.num_terminated == 6
    assert [result.config for result in results][: len(before)] == [result.config for result in before]
    assert len({result.config["x"] for result in results}) == 6


@pytest.mark.parametrize("after", [1, 4])
async def test_an_interrupted_search_and_its_restore_propose_what_the_seed_says(tmp_path, after):
    space = {"x": uniform(0, 1)}

    def config():
        return TuneConfig(search_alg=BasicSearcher(space, 8, seed=5), num_samples=8, max_concurrent_trials=1)

    class Stops:
        left = after

        def on_trial_complete(self, trial):
            self.left -= 1
            if self.left == 0:
                task.cancel()

    task = asyncio.create_task(tuner(tmp_path, tune=config(), callbacks=[Stops()]).fit())
    with pytest.raises(asyncio.CancelledError):
        await task
    run = RunConfig(verbose=0, callbacks=[Listening()])
    results = await (await Tuner.restore(tmp_path / "exp", tune_config=config(), run_config=run)).fit()
    whole = BasicSearcher(space, 8, seed=5)
    assert [result.config for result in results] == [whole.suggest("") for _ in range(8)]


async def test_a_staging_directory_for_what_is_no_copy_is_refused(tmp_path):
    await tuner(tmp_path, space={"x": 1}).fit()
    with pytest.raises(ConfigError, match="local_dir"):
        await (await Tuner.restore(tmp_path / "exp", trainables.coroutine, local_dir=tmp_path)).fit()


async def test_what_is_given_has_to_be_of_its_kind(tmp_path):
    mistakes: list[tuple[dict[str, Any], str]] = [
        ({"tune_config": {"metric": "loss"}}, "tune_config must be a TuneConfig, not dict"),
        ({"run_config": {}}, "run_config must be a RunConfig, not dict"),
        ({"runner": 5}, "int has no start, run_trial, aclose, capacity"),
        ({"runner": InlineRunner}, r"use InlineRunner\(\)"),
    ]
    for wrong, text in mistakes:
        with pytest.raises(ConfigError, match=text):
            Tuner(trainables.coroutine, **wrong)
        with pytest.raises(ConfigError, match=text):
            await Tuner.restore(tmp_path, **wrong)


async def test_a_tuner_in_a_running_loop_is_awaited(tmp_path):
    with pytest.raises(ConfigError, match=r"await tuner\.fit\(\)"):
        tuner(tmp_path).run()


async def test_after_a_start_that_came_to_nothing_it_may_be_tried_again(tmp_path):
    (tmp_path / "there").write_text("")
    made = tuner(tmp_path / "there")
    with pytest.raises(StorageError):
        await made.fit()
    (tmp_path / "there").unlink()
    assert len(await made.fit()) == 4


def test_tuners_without_a_name_do_not_meet(tmp_path):
    names = {
        Tuner(trainables.coroutine, run_config=RunConfig(local_dir=tmp_path)).location.name for _ in range(10)
    }
    assert len(names) == 10


async def test_odd_names_of_trainables_are_made_directories(tmp_path):
    async def odd(config):
        await session.areport({"loss": 1})

    odd.__name__ = f"<näme of {'x' * 300}/..>"
    [result] = await tuner(tmp_path, odd, {}).fit()
    assert result.path.parent == tmp_path / "exp"
    assert result.path.name.startswith("näme_of_xxx")
    [result] = await tuner(tmp_path, lambda config: trainables.coroutine({"x": 1}), {}, name="lambda").fit()
    assert result.path.name.startswith("lambda_")


class Vandal(Bad):
    """A searcher and scheduler that does what it likes with results."""

    def suggest(self, trial_id):
        return {"x": 1}

    def on_trial_result(self, trial_id, result):
        result["training_iteration"] = 1000
        result["nested"]["loss"] = -1
        del result["loss"]
        return "CONTINUE"

    def choose_trial_to_run(self, trial_ids):
        return trial_ids[0]


async def test_what_one_does_to_a_result_is_nobody_elses_business(tmp_path):
    async def nested(config):
        for _ in range(5):
            await session.areport({"loss": 1, "nested": {"loss": 2}})

    vandal = Vandal(None)
    heard = Listening()
    config = TuneConfig(search_alg=vandal, scheduler=vandal, num_samples=1, metric="loss", mode="min")
    made = tuner(tmp_path, nested, tune=config, stop={"training_iteration": 3}, callbacks=[heard])
    [result] = await made.fit()
    assert result.metrics["training_iteration"] == 3
    assert result.metrics["nested"] == {"loss": 2}


@pytest.mark.parametrize("trainable", ["coroutine", "function"])
async def test_a_callback_that_exits_ends_the_run_and_nothing_is_lost(tmp_path, trainable):
    class Exits:
        def on_trial_result(self, trial, result):
            raise SystemExit(7)

    space = {"x": grid_search([1, 2])}
    made = tuner(tmp_path, getattr(trainables, trainable), space, callbacks=[Exits()])
    with pytest.raises(SystemExit) as left:
        await made.fit()
    assert left.value.code == 7
    assert {result.status for result in made.get_results()} == {TrialStatus.PENDING}
    assert (await ResultGrid.load(tmp_path / "exp"))[0].error is None


async def test_failures_at_once_are_tried_again_ever_later(tmp_path, monkeypatch):
    lives = []

    async def hopeless(config):
        lives.append(asyncio.get_running_loop().time())
        raise ValueError("at once")

    made = tuner(tmp_path, hopeless, {}, failure_config=FailureConfig(max_failures=5))
    results = await made.fit()
    assert results.num_errors == 1
    rests = [later - earlier for earlier, later in itertools.pairwise(lives)]
    assert all(rest > 0.05 * 2**number for number, rest in enumerate(rests[1:]))


async def test_a_trial_that_swallows_its_cancellation_reports_no_more(tmp_path):
    swallowed = asyncio.Event()

    async def stubborn(config):
        while True:
            try:
                await session.areport({"loss": 1})
                await asyncio.sleep(0.01)
            except asyncio.CancelledError:
                if swallowed.is_set():
                    raise
                swallowed.set()

    task = asyncio.create_task((made := tuner(tmp_path, stubborn, {})).fit())
    await asyncio.sleep(0.3)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert swallowed.is_set()
    assert made.get_results()[0].status is TrialStatus.PENDING
