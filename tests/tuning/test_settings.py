"""What a Tuner stores of itself, and what it has to be given again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from asynctune import (
    BasicSearcher,
    CheckpointConfig,
    ConfigError,
    CorruptStateError,
    FailureConfig,
    RunConfig,
    TuneConfig,
    UnsupportedFormatError,
    choice,
    grid_search,
    sample_from,
    uniform,
)
from asynctune.packing import pack, unpack
from asynctune.tuning.settings import Plan, given_again, settings_of, with_checkpoint_config
from asynctune.tuning.variants import Space
from tests.tuning import trainables


class Scheduler:
    """Lets everything run."""

    def on_trial_result(self, trial_id, result):
        return "CONTINUE"

    def choose_trial_to_run(self, trial_ids):
        return trial_ids[0]

    def get_state(self):
        return None

    def set_state(self, state):
        pass


class Other(Scheduler):
    """Another one."""


class OtherSearcher(BasicSearcher):
    """Another one."""


class Listener:
    """Hears nothing."""

    def on_trial_start(self, trial):
        pass


class Runner:
    """Runs nothing."""


def never(trial_id, result):
    return False


def a_plan(trainable: Any = trainables.coroutine, *, space=None, tune=None, run=None, runner=None):
    return Plan(
        trainable=trainable,
        space=Space({"x": uniform(0, 1)} if space is None else space),
        tune=tune or TuneConfig(),
        run=run or RunConfig(),
        runner=runner,
    )


def kept(plan):
    """Its settings as they are read back."""
    return unpack(pack(settings_of(plan)))


def again(settings, **given):
    return given_again(
        settings,
        **{
            "trainable": None,
            "param_space": None,
            "tune_config": None,
            "run_config": None,
            "runner": None,
            "import_trainable": {"tests.tuning.trainables:coroutine": trainables.coroutine}.__getitem__,
            **given,
        },
    )


def test_values_need_not_be_given_again():
    plan = a_plan(
        space={"x": uniform(0, 1), "y": [choice(["a"]), {"z": grid_search([1, (2, 3)])}], "fixed": 3},
        tune=TuneConfig(
            metric="eval/loss", mode="min", num_samples=7, max_concurrent_trials=3, time_budget_s=9
        ),
        run=RunConfig(
            stop={"training_iteration": 5},
            failure_config=FailureConfig(max_failures=-1),
            verbose=2,
            log_to_file=True,
        ),
    )
    made = again(kept(plan))
    assert made.trainable is trainables.coroutine
    assert (made.tune, made.run, made.runner) == (plan.tune, plan.run, None)
    assert made.space.tree == plan.space.tree


def everything():
    def local(config):
        pass

    return a_plan(
        local,
        space={"a": sample_from(lambda: 1), "b": {"c": [sample_from(lambda: 2)]}},
        tune=TuneConfig(search_alg=BasicSearcher({}), scheduler=Scheduler()),
        run=RunConfig(stop=never, callbacks=[Listener(), Listener()]),
        runner=Runner(),
    )


def test_all_that_is_code_is_named_at_once():
    with pytest.raises(ConfigError) as failed:
        again(kept(everything()))
    told = str(failed.value)
    for part in (
        "the trainable local (it cannot be imported by name)",
        "BasicSearcher, as tune_config=TuneConfig(search_alg=...)",
        "Scheduler, as tune_config=TuneConfig(scheduler=...)",
        "never, as run_config=RunConfig(stop=...)",
        "Listener, Listener, as run_config=RunConfig(callbacks=...)",
        "Runner, as runner=...",
        "param_space=..., for the functions of a, b/c/0",
    ):
        assert part in told


def test_what_is_given_again_is_taken():
    plan = everything()
    given = {
        "trainable": plan.trainable,
        "tune_config": plan.tune,
        "run_config": plan.run,
        "runner": plan.runner,
        "param_space": {"a": 1},
    }
    made = again(kept(plan), **given)
    assert (made.trainable, made.tune, made.run, made.runner) == (
        plan.trainable,
        plan.tune,
        plan.run,
        plan.runner,
    )
    assert made.space.tree == {"a": 1}
    for left_out in given:
        with pytest.raises(ConfigError, match="give them again"):
            again(kept(plan), **{name: value for name, value in given.items() if name != left_out})


def test_nothing_is_missing_where_nothing_is_to_be_run():
    assert again(kept(everything()), trainable=everything().trainable, complete=False).tune == TuneConfig()


def test_nothing_of_it_is_code():
    """Not even by name where the name leads to code that would be called."""
    settings = kept(everything())
    assert settings["import"] is None
    assert settings["space"] is None
    assert all(not callable(value) for value in settings.values())


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"trainable": trainables.failing}, r"coroutine.*failing"),
        ({"trainable": trainables.Counting}, r"coroutine.*Counting"),
        ({"tune_config": TuneConfig(search_alg=OtherSearcher({}))}, "BasicSearcher, and OtherSearcher"),
        (
            {"tune_config": TuneConfig(search_alg=BasicSearcher({}), scheduler=Other())},
            "scheduler Scheduler, and Other was",
        ),
    ],
    ids=["function", "class", "searcher", "scheduler"],
)
def test_another_one_is_refused(given, text):
    settings = kept(a_plan(tune=TuneConfig(search_alg=BasicSearcher({}), scheduler=Scheduler())))
    with pytest.raises(ConfigError, match=text):
        again(settings, **given)


def test_a_newer_form_is_refused():
    settings = kept(a_plan())
    with pytest.raises(UnsupportedFormatError, match=r"form 99.*upgrade"):
        again({**settings, "form": 99})


@pytest.mark.parametrize("settings", [None, [], "text", {}, {"form": "1"}, {"form": None}], ids=repr)
def test_what_no_tuner_wrote_is_refused(settings):
    with pytest.raises(CorruptStateError, match="not made by a Tuner"):
        again(settings)


def test_the_checkpoint_settings_are_the_experiments_own_unless_given_again():
    own = CheckpointConfig(num_to_keep=2)
    assert with_checkpoint_config(a_plan(), own).run.checkpoint_config == own
    given = CheckpointConfig(num_to_keep=5)
    plan = a_plan(run=RunConfig(checkpoint_config=given))
    assert with_checkpoint_config(plan, own).run.checkpoint_config == given


def test_a_space_that_cannot_be_stored():
    plan = a_plan(space={"x": object()})
    with pytest.raises(ConfigError, match="cannot be stored"):
        pack(settings_of(plan))
    assert settings_of(replace(plan, space=None))["space"] is None
