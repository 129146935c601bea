"""The suites for people who write a searcher, a scheduler or a runner: right ones pass, wrong ones do not."""

from __future__ import annotations

import random
import subprocess
import sys
from typing import ClassVar

import pytest

import asynctune.testing
from asynctune import BasicSearcher, choice, grid_search, uniform
from asynctune.testing import ReportLog, SearcherTests, TrialRunnerTests, TrialSchedulerTests


class TestRandomSearch(SearcherTests):
    @pytest.fixture
    def make_searcher(self):
        return lambda: BasicSearcher({"x": uniform(0, 1), "y": {"z": choice([1, 2, 3])}}, 20, seed=3)


class TestGridSearch(SearcherTests):
    @pytest.fixture
    def make_searcher(self):
        return lambda: BasicSearcher({"x": grid_search([1, 2, 3]), "y": uniform(0, 1)}, 2, seed=3)


class Learning:
    """Draws around the best that it has seen."""

    def __init__(self):
        self.rng = random.Random(1)
        self.configs = {}
        self.best = (float("inf"), 0.5)

    def suggest(self, trial_id):
        self.configs[trial_id] = self.best[1] + self.rng.uniform(-1, 1)
        return {"x": self.configs[trial_id]}

    def on_trial_result(self, trial_id, result):
        if trial_id in self.configs:
            self.best = min(self.best, (result["loss"], self.configs[trial_id]))

    def on_trial_complete(self, trial_id, result=None, error=False):
        self.configs.pop(trial_id, None)

    def get_state(self):
        return {"rng": self.rng.getstate(), "configs": dict(self.configs), "best": self.best}

    def set_state(self, state):
        self.rng.setstate(state["rng"])
        self.configs, self.best = state["configs"], state["best"]


class TestLearning(SearcherTests):
    @pytest.fixture
    def make_searcher(self):
        return Learning


class Median:
    """Pauses those that are worse than the median, and stops those that are so twice."""

    def __init__(self):
        self.seen = {}
        self.paused = {}

    def on_trial_result(self, trial_id, result):
        self.seen[trial_id] = result["loss"]
        if self.seen[trial_id] <= sorted(self.seen.values())[len(self.seen) // 2]:
            return "CONTINUE"
        self.paused[trial_id] = self.paused.get(trial_id, 0) + 1
        return "PAUSE" if self.paused[trial_id] == 1 else "STOP"

    def choose_trial_to_run(self, trial_ids):
        return min(trial_ids, key=lambda each: self.seen.get(each, 0), default=None)

    def get_state(self):
        return {"seen": dict(self.seen), "paused": dict(self.paused)}

    def set_state(self, state):
        self.seen, self.paused = state["seen"], state["paused"]


class TestMedian(TrialSchedulerTests):
    @pytest.fixture
    def make_scheduler(self):
        return Median


class Forgetful(Learning):
    def set_state(self, state):
        super().set_state({**state, "best": (float("inf"), 0.5)})


class Restless(Learning):
    def get_state(self):
        self.rng.random()
        return super().get_state()


class Aliased(Learning):
    def get_state(self):
        return {**super().get_state(), "configs": self.configs}


class Afraid(Learning):
    def on_trial_result(self, trial_id, result):
        self.best = min(self.best, (result["loss"], self.configs[trial_id]))


class Pickled(Learning):
    def get_state(self):
        return self.rng


class Shared(Learning):
    config: ClassVar = {"x": 1}

    def suggest(self, trial_id):
        super().suggest(trial_id)
        return self.config


@pytest.mark.parametrize(
    ("bad", "test", "arguments"),
    [
        (Forgetful, "test_a_restored_search_goes_on_exactly", [5]),
        (Restless, "test_asking_for_the_state_changes_nothing", []),
        (Aliased, "test_a_state_is_of_its_moment", []),
        (Afraid, "test_trials_that_it_does_not_know", []),
        (Pickled, "test_a_restored_search_goes_on_exactly", [1]),
        (Shared, "test_a_suggestion_is_the_callers_own", []),
    ],
    ids=lambda each: each.__name__ if isinstance(each, type) else None,
)
def test_a_bad_searcher_is_found_out(bad, test, arguments):
    with pytest.raises((AssertionError, KeyError, asynctune.errors.ConfigError)):
        getattr(SearcherTests(), test)(bad, *arguments)


class Amnesiac(Median):
    def set_state(self, state):
        pass


class Vague(Median):
    def on_trial_result(self, trial_id, result):
        return None


class Inventive(Median):
    def choose_trial_to_run(self, trial_ids):
        return "another"


class Idle(Median):
    def choose_trial_to_run(self, trial_ids):
        return None


@pytest.mark.parametrize(
    ("bad", "test", "arguments"),
    [
        (Amnesiac, "test_a_restored_scheduler_decides_the_same", [3]),
        (Vague, "test_results_get_a_decision", []),
        (Inventive, "test_the_choice_is_one_that_waits", []),
        (Idle, "test_new_trials_are_started", []),
    ],
    ids=lambda each: each.__name__ if isinstance(each, type) else None,
)
def test_a_bad_scheduler_is_found_out(bad, test, arguments):
    with pytest.raises(AssertionError):
        getattr(TrialSchedulerTests(), test)(bad, *arguments)


class Deaf:
    """Runs coroutines and hears no answer."""

    capacity = 1

    def __init__(self, max_concurrent):
        pass

    async def start(self, trainable, options):
        pass

    async def run_trial(self, task, report):
        for number in range(task.config["reports"]):
            await report(asynctune.TrialReport(metrics={"number": number}))

    async def aclose(self):
        pass


async def test_a_bad_runner_is_found_out(tmp_path, blockbuster):
    with pytest.raises(AssertionError):
        await TrialRunnerTests().test_a_trial_that_is_told_to_ends(Deaf, None, tmp_path, "STOP")


async def test_a_report_log_answers_as_told():
    log = ReportLog({2: "STOP", 3: KeyError("x")})
    report = asynctune.TrialReport(metrics={"loss": 1})
    assert [await log(report), await log(report)] == ["CONTINUE", "STOP"]
    with pytest.raises(KeyError):
        await log(report)
    assert log.values("loss") == [1, 1, 1]


def test_the_clock_needs_no_pytest():
    script = (
        "import sys; sys.modules['pytest'] = None\n"
        "from asynctune.testing import ManualClock, FaultyFiles\n"
        "import asynctune.testing; assert 'TrialRunnerTests' in dir(asynctune.testing)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_every_name_of_testing_resolves():
    for name in asynctune.testing.__all__:
        assert getattr(asynctune.testing, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = asynctune.testing.no_such_name
