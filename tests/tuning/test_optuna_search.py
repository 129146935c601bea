"""A search with Optuna goes on after a crash exactly as it would have gone on without one."""

from __future__ import annotations

import asyncio
import contextlib
import math
from typing import Any

import cloudpickle
import optuna
import pytest
import scipy.stats

from asynctune import (
    Checkpoint,
    ConfigError,
    CorruptStateError,
    ExperimentStore,
    FailureConfig,
    OptunaSearcher,
    RunConfig,
    StorageError,
    TuneConfig,
    Tuner,
    choice,
    loguniform,
    qrandint,
    quniform,
    randint,
    randn,
    sample_from,
    session,
    uniform,
)
from tests.tuning.trials import trial

SPACE = {
    "x": uniform(-2, 2),
    "model": {"layers": [randint(1, 5), qrandint(4, 12, 4)], "lr": loguniform(1e-4, 1e-1)},
    "drop": quniform(0.1, 0.5, 0.1),
    "kind": choice(["a", "b", None]),
    "shape": choice([[1, 2], [3], {"deep": True}]),
    "twice": sample_from(lambda spec: spec.x * 2),
    "fixed": 7,
}


async def trainable(config):
    """Five iterations of something that depends on the config alone; goes on from its checkpoint."""
    start = 0
    if (checkpoint := session.get_checkpoint()) is not None:
        start = (await asyncio.to_thread(checkpoint.to_dict))["iteration"]
    for iteration in range(start + 1, 6):
        loss = config["x"] ** 2 + abs(math.log(config["model"]["lr"]) + 5) / iteration + config["drop"]
        if config["x"] > config.get("fails_above", 10) and iteration == 3:
            raise ValueError("too large")
        await session.areport(
            {"loss": loss, "training_iteration": iteration}, Checkpoint.from_dict({"iteration": iteration})
        )


SAMPLERS = {
    "tpe": lambda: optuna.samplers.TPESampler(seed=3, n_startup_trials=4),
    "multivariate": lambda: optuna.samplers.TPESampler(
        seed=3, n_startup_trials=4, multivariate=True, group=True, constant_liar=True
    ),
    "unseeded": lambda: optuna.samplers.TPESampler(n_startup_trials=4),
    "random": lambda: optuna.samplers.RandomSampler(seed=1),
    "nsga": lambda: optuna.samplers.NSGAIISampler(seed=1, population_size=4),
    "brute": lambda: optuna.samplers.BruteForceSampler(seed=1),
    "qmc": lambda: optuna.samplers.QMCSampler(seed=1, scramble=True, warn_independent_sampling=False),
}
PRUNERS: dict[str, Any] = {
    "none": None,
    "median": lambda: optuna.pruners.MedianPruner(n_startup_trials=2),
    "auto": lambda: optuna.pruners.HyperbandPruner(min_resource=1, reduction_factor=2),
    "hyperband": lambda: optuna.pruners.HyperbandPruner(min_resource=1, max_resource=5, reduction_factor=2),
    "halving": optuna.pruners.SuccessiveHalvingPruner,
}


COUNTABLE = {"x": quniform(-2, 2, 1), "model": {"lr": choice([1e-3, 1e-2])}, "drop": choice([0.1, 0.2])}


def settings(tmp_path, sampler, pruner, *, space=None, name="exp", samples=12, stop=None):
    space = space or (COUNTABLE if sampler == "brute" else SPACE)
    searcher = OptunaSearcher(
        sampler=SAMPLERS[sampler]() if isinstance(sampler, str) else sampler,
        pruner=PRUNERS[pruner] and PRUNERS[pruner](),
    )
    return {
        "param_space": space,
        "tune_config": TuneConfig(
            metric="loss",
            mode="min",
            num_samples=samples,
            max_concurrent_trials=1,
            search_alg=searcher,
            scheduler=searcher.scheduler() if PRUNERS[pruner] else None,
        ),
        "run_config": RunConfig(name=name, local_dir=tmp_path, verbose=0, stop=stop),
    }


def looked_at(results):
    return [
        (result.config, result.status, result.metrics["training_iteration"], result.metrics["loss"])
        for result in results
    ]


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize(
    ("sampler", "pruner"),
    [
        ("tpe", "none"),
        ("tpe", "median"),
        ("tpe", "hyperband"),
        ("tpe", "auto"),
        ("brute", "none"),
        ("tpe", "halving"),
        ("multivariate", "median"),
        ("unseeded", "none"),
        ("random", "halving"),
        ("nsga", "none"),
        ("qmc", "none"),
    ],
)
async def test_interrupted_and_restored_it_proposes_the_same(tmp_path, monkeypatch, rng, sampler, pruner):
    if sampler == "qmc":
        await asyncio.to_thread(scipy.stats.qmc.Sobol, 2)  # reads its tables from a file, once
    made = settings(tmp_path, sampler, pruner, name="whole")
    first = SAMPLERS[sampler]() if sampler != "unseeded" else made["tune_config"].search_alg._sampler
    if sampler == "unseeded":  # the uninterrupted one begins with the seed that this one draws
        made["tune_config"].search_alg.get_state()
        first = cloudpickle.loads(cloudpickle.dumps(first))
    whole = looked_at(await Tuner(trainable, **made).fit())
    if PRUNERS[pruner]:
        assert len({iteration for _, _, iteration, _ in whole}) > 1, "nothing was pruned"

    given = settings(tmp_path, first, pruner, space=COUNTABLE if sampler == "brute" else None)
    tuner = Tuner(trainable, **given)
    for _ in range(5):
        await interrupted(tuner, monkeypatch, after=rng.randrange(1, 14), killed=rng.random() < 0.5)
        given = settings(tmp_path, sampler, pruner)
        given["run_config"] = RunConfig(verbose=0)
        tuner = await Tuner.restore(tmp_path / "exp", trainable, **given)
    assert looked_at(await tuner.fit()) == whole


async def interrupted(tuner, monkeypatch, *, after, killed):
    """Run it until so many rows were reported; `killed`: what is not committed then is lost."""
    left = after
    report = ExperimentStore.report

    def reporting(store, *args):
        nonlocal left
        left -= 1
        if left == 0:
            running.cancel()
        return report(store, *args)

    with monkeypatch.context() as patch:
        patch.setattr(ExperimentStore, "report", reporting)
        if killed:
            patch.setattr(ExperimentStore, "aclose", closed_at_once)
        running = asyncio.create_task(tuner.fit())
        with contextlib.suppress(asyncio.CancelledError):
            await running


async def closed_at_once(store, drain_timeout_s=None):
    """As a killed process leaves it: what is not committed is lost."""
    if store._closing is None:
        store._closing = asyncio.ensure_future(store._engine._abandon())
    await asyncio.shield(store._closing)


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize("kind", ["grid", "brute"])
async def test_a_sampler_that_comes_to_its_end_ends_the_search(tmp_path, kind):
    space = {"x": choice([-1.0, 0.0, 1.0]), "model": {"lr": choice([1e-3, 1e-2])}, "drop": 0.1}
    sampler: optuna.samplers.BaseSampler
    if kind == "grid":
        sampler = optuna.samplers.GridSampler({"x": [-1.0, 0.0, 1.0], "model/lr": [1e-3, 1e-2]}, seed=1)
    else:
        sampler = optuna.samplers.BruteForceSampler(seed=1)
    given = settings(tmp_path, sampler, "none", space=space, samples=20)
    results = await Tuner(trainable, **given).fit()
    assert (
        len({(result.config["x"], result.config["model"]["lr"]) for result in results}) == len(results) == 6
    )
    given = settings(tmp_path, sampler, "none", space=space, samples=20)
    given["run_config"] = RunConfig(verbose=0)
    assert len(await (await Tuner.restore(tmp_path / "exp", trainable, **given)).fit()) == 6


async def test_values_are_what_the_space_says(tmp_path):
    results = await Tuner(trainable, **settings(tmp_path, "tpe", "none", samples=20)).fit()
    for result in results:
        config = result.config
        assert config["twice"] == config["x"] * 2
        assert config["fixed"] == 7
        assert config["model"]["layers"][0] in range(1, 5)
        assert config["model"]["layers"][1] in {4, 8, 12}
        assert round(config["drop"], 9) in {0.1, 0.2, 0.3, 0.4, 0.5}
        assert config["shape"] in ([1, 2], [3], {"deep": True})
        assert config["kind"] in {"a", "b", None}
    assert {result.config["kind"] for result in results} == {"a", "b", None}


@pytest.mark.parametrize(
    "flags", [{"resume_errored": True}, {"restart_errored": True}], ids=["resume", "restart"]
)
async def test_failed_trials_that_run_again_are_learnt_from(tmp_path, flags):
    space = {**SPACE, "fails_above": 0}
    made = settings(tmp_path, "tpe", "none", space=space)
    results = await Tuner(trainable, **made).fit()
    assert 1 < results.num_errors < 12
    states = [trial.state.name for trial in made["tune_config"].search_alg._study.trials]
    assert states.count("FAIL") == results.num_errors
    for _ in range(2):
        made = settings(tmp_path, "tpe", "none", samples=14)
        made["run_config"] = RunConfig(verbose=0)
        made["param_space"] = {**SPACE, "fails_above": 10}
        tuner = await Tuner.restore(tmp_path / "exp", trainable, **flags, **made)
        results = await tuner.fit()
    # the trials that failed keep their config, and fail again
    study = made["tune_config"].search_alg._study
    assert len(results) == 14
    errors = results.num_errors
    assert len(study.trials) == 14 + 2 * errors
    again = OptunaSearcher(sampler=SAMPLERS["tpe"]())
    async with ExperimentStore.open(tmp_path / "exp", mode="read") as store:
        saved = store.saved_state("searcher")
        assert saved is not None
        record = saved[1]["state"]
        again.set_search_properties("loss", "min", SPACE)
        again.set_state(record)
        async for trial in store.iterate(with_replaced=True):
            failed = trial.status == "ERROR"
            again.add_past_trial(trial, await store.history(trial.trial_id), ended=True, failed=failed)
    again._place_repeated()
    assert [(trial.state, trial.params, trial.values) for trial in again._study.trials] == [
        (trial.state, trial.params, trial.values) for trial in study.trials
    ]


async def test_what_was_cut_off_is_no_value_for_the_pruner(tmp_path):
    lives = []

    async def failing_late(config):
        lives.append(1)
        for iteration in range(1, 5 if len(lives) == 1 else 3):
            await session.areport({"loss": iteration, "training_iteration": iteration})
        if len(lives) == 1:
            raise ValueError("late")

    made = settings(tmp_path, "tpe", "median", samples=1)
    made["run_config"] = RunConfig(
        name="exp", local_dir=tmp_path, verbose=0, failure_config=FailureConfig(max_failures=1)
    )
    await Tuner(failing_late, **made).fit()
    [trial] = made["tune_config"].search_alg._study.trials
    assert trial.intermediate_values == {1: 1.0, 2: 2.0}


async def test_a_retry_replaces_what_was_reported_before(tmp_path):
    lives = []

    async def failing_once(config):
        lives.append(1)
        for iteration in range(1, 4):
            await session.areport({"loss": iteration + 10 * len(lives), "training_iteration": iteration})
            if iteration == 2 and len(lives) == 1:
                raise ValueError("half way")

    made = settings(tmp_path, "tpe", "median", samples=1)
    made["run_config"] = RunConfig(
        name="exp", local_dir=tmp_path, verbose=0, failure_config=FailureConfig(max_failures=1)
    )
    await Tuner(failing_once, **made).fit()
    [trial] = made["tune_config"].search_alg._study.trials
    assert trial.intermediate_values == {1: 21.0, 2: 22.0, 3: 23.0}
    assert trial.value == 23.0


@pytest.mark.parametrize(
    ("space", "text"),
    [
        ({"x": randn()}, "x: Optuna has no normal domain"),
        ({"x": choice([uniform(0, 1), 3])}, "x: a choice between search spaces"),
        ({"a/b": uniform(0, 1), "a": {"b": uniform(0, 1)}}, "two values of the name 'a/b'"),
    ],
    ids=["normal", "nested", "names"],
)
def test_what_optuna_cannot_sample_is_refused(space, text):
    with pytest.raises(ConfigError, match=text):
        OptunaSearcher(space)


async def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(ConfigError, match="metric"):
        await Tuner(
            trainable,
            param_space=SPACE,
            tune_config=TuneConfig(search_alg=OptunaSearcher()),
            run_config=RunConfig(name="exp", local_dir=tmp_path, verbose=0),
        ).fit()
    with pytest.raises(ConfigError, match="search space"):
        OptunaSearcher().set_search_properties("loss", "min", None)
    with pytest.raises(ConfigError, match="both"):
        OptunaSearcher(SPACE).set_search_properties("loss", "min", SPACE)
    with pytest.raises(ConfigError, match="seed"):
        OptunaSearcher(sampler=optuna.samplers.RandomSampler(), seed=1)


def test_a_scheduler_whose_searcher_searches_nothing_is_told_of():
    with pytest.raises(ConfigError, match="not this Tuner's search_alg"):
        OptunaSearcher().scheduler().on_trial_result("t", {"loss": 1})


@pytest.mark.parametrize("restored", [False, True], ids=["searched", "restored"])
async def test_a_searcher_is_for_one_tuner(tmp_path, restored):
    made = settings(tmp_path, "random", "none", samples=1)
    await Tuner(trainable, **made).fit()
    used = made["tune_config"]
    if restored:
        used = settings(tmp_path, "random", "none", samples=1)["tune_config"]
        given = {"param_space": SPACE, "tune_config": used, "run_config": RunConfig(verbose=0)}
        await (await Tuner.restore(tmp_path / "exp", trainable, **given)).fit()
    second = {**settings(tmp_path, "random", "none", name="second"), "tune_config": used}
    with pytest.raises(ConfigError, match="has searched for another Tuner; make a new one"):
        await Tuner(trainable, **second).fit()


async def test_a_tuner_that_could_not_begin_leaves_its_searcher_free(tmp_path):
    (tmp_path / "file").touch()
    made = settings(tmp_path / "file", "random", "median", samples=2)
    with pytest.raises(StorageError):
        await Tuner(trainable, **made).fit()
    made["run_config"] = RunConfig(name="exp", local_dir=tmp_path, verbose=0)
    made["param_space"] = {**SPACE, "fixed": 8}
    assert [each.config["fixed"] for each in await Tuner(trainable, **made).fit()] == [8, 8]


def past(trial_id, rows, *, status="TERMINATED"):
    """What `add_past_trial` is told of an ended trial."""
    return {
        "trial": trial(trial_id, status, rows[-1], config={"x": 0.5}),
        "rows": rows,
        "ended": status == "TERMINATED",
        "failed": False,
    }


def rows_of(*losses):
    return [{"training_iteration": number, "loss": loss} for number, loss in enumerate(losses, 1)]


class Hopeless(optuna.pruners.BasePruner):
    """Gives up at the second value."""

    def prune(self, study, trial):
        return len(trial.intermediate_values) > 1


@pytest.mark.parametrize(
    ("losses", "prunes", "state", "value"),
    [
        ([1.0, math.nan], False, "FAIL", None),
        ([1.0, 2.0], False, "COMPLETE", 2.0),
        ([1.0, math.nan], True, "PRUNED", None),
        ([1.0, 2.0], True, "PRUNED", 2.0),
    ],
    ids=["nan", "number", "pruned-nan", "pruned"],
)
def test_how_a_trial_ended_is_the_same_to_the_study_afterwards(losses, prunes, state, value):
    def make():
        searcher = OptunaSearcher({"x": uniform(0, 1)}, metric="loss", mode="min", pruner=Hopeless())
        if prunes:
            searcher.scheduler()
        return searcher

    first = make()
    first.suggest("t")
    for row in rows_of(*losses):
        first.on_trial_result("t", row)
    given_up = first.get_state()
    first.on_trial_complete("t", rows_of(*losses)[-1])
    afterwards = make()
    afterwards.set_state(first.get_state())
    afterwards.add_past_trial(**past("t", rows_of(*losses)))
    before_its_end = make()
    before_its_end.set_state(given_up)
    before_its_end.add_past_trial(**past("t", rows_of(*losses), status="RUNNING"))
    assert before_its_end.gave_up("t") is prunes
    before_its_end.on_trial_complete("t", rows_of(*losses)[-1])
    for searcher in (first, afterwards, before_its_end):
        [told] = searcher._study.trials
        assert (told.state.name, told.value) == (state, value)
        assert repr(told.intermediate_values) == repr(dict(enumerate(losses, 1)))


def test_a_state_that_cannot_be_read_is_told_of():
    searcher = OptunaSearcher(SPACE, metric="loss", mode="min")
    state = searcher.get_state()
    for broken in (None, {**state, "form": 2}, {**state, "sampler": b"no pickle"}):
        with pytest.raises(CorruptStateError, match="Optuna version"):
            OptunaSearcher(SPACE, metric="loss", mode="min").set_state(broken)


async def test_a_missing_metric_counts_as_failed_and_is_said(tmp_path, caplog):
    async def silent(config):
        await session.areport({"other": 1})

    made = settings(tmp_path, "tpe", "none", samples=2)
    await Tuner(silent, **made).fit()
    assert [trial.state.name for trial in made["tune_config"].search_alg._study.trials] == ["FAIL"] * 2
    assert caplog.text.count("without the metric 'loss'") == 1
