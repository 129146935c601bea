"""`OptunaSearcher` passes the suite for searchers, and its pruner the one for schedulers."""

from __future__ import annotations

import optuna
import pytest

from asynctune import OptunaSearcher, Trial, TrialStatus, choice, sample_from, uniform
from asynctune.testing import SearcherTests, TrialSchedulerTests

SPACE = {"x": uniform(-1, 1), "kind": choice(["a", [1, 2]]), "twice": sample_from(lambda spec: 2 * spec.x)}


def searcher(**how):
    return OptunaSearcher(SPACE, metric="loss", mode="min", **how)


def trial(trial_id, config, rows, *, ended, failed):
    """As the store knows it."""
    status = TrialStatus.RUNNING if not ended else TrialStatus.ERROR if failed else TrialStatus.TERMINATED
    return Trial(
        trial_id=trial_id,
        trial_name=trial_id,
        status=status,
        config=config,
        metadata={},
        last_result=rows[-1] if rows else {},
        num_results=len(rows),
        error="it failed" if failed else None,
        num_failures=int(failed),
        created_at=0.0,
        started_at=0.0,
        ended_at=None,
        checkpoints=(),
    )


def tell_past(made, history):
    """What was told before, as a Tuner tells it after a restart."""
    for kind, trial_id, config, _ in history:
        if kind == "suggested":
            mine = [each for each in history if each[1] == trial_id]
            rows = [row for kind, _, row, _ in mine if kind == "reported"]
            ends = [failed for kind, _, _, failed in mine if kind == "completed"]
            failed = ends == [True]
            made.add_past_trial(
                trial(trial_id, config, rows, ended=bool(ends), failed=failed),
                rows,
                ended=bool(ends),
                failed=failed,
            )


class OptunaTests(SearcherTests):
    def restored(self, make_searcher, state, history):
        made = make_searcher()
        made.set_state(state)
        tell_past(made, history)
        return made


class TestTpe(OptunaTests):
    @pytest.fixture
    def make_searcher(self):
        return lambda: searcher(sampler=optuna.samplers.TPESampler(seed=1, n_startup_trials=3))


class TestGenetic(OptunaTests):
    @pytest.fixture
    def make_searcher(self):
        return lambda: searcher(sampler=optuna.samplers.NSGAIISampler(seed=1, population_size=3))


class TestWithItsPruner(OptunaTests):
    @pytest.fixture
    def make_searcher(self):
        def make():
            made = searcher(
                sampler=optuna.samplers.TPESampler(seed=1, n_startup_trials=3),
                pruner=optuna.pruners.MedianPruner(n_startup_trials=1, n_warmup_steps=0),
            )
            made.scheduler()
            return made

        return make


class TestThePruner(TrialSchedulerTests):
    @pytest.fixture
    def make_scheduler(self):
        def make():
            made = searcher(seed=1)
            scheduler = made.scheduler()
            made.suggest("known")
            return scheduler

        return make
