"""Owns the suite for trial schedulers: what a Tuner relies on, also after a restart. Needs pytest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Final

import pytest

from asynctune.packing import pack, unpack
from asynctune.protocols import CONTINUE, PAUSE, STOP, Decision, TrialScheduler

__all__ = ["TrialSchedulerTests"]

MakeScheduler = Callable[[], TrialScheduler]

_TRIALS: Final = 6


class TrialSchedulerTests:
    """Inherit from this class, and say how a scheduler is made; pytest runs its tests for it.

    Example::

        class TestMyScheduler(TrialSchedulerTests):
            @pytest.fixture
            def make_scheduler(self):
                return lambda: MyScheduler(metric="loss", mode="min")

    Attributes:
        metric: Name of the metric in the results that it is told.
        iterations: How many results each trial reports at most.
    """

    metric: ClassVar[str] = "loss"
    iterations: ClassVar[int] = 8

    @pytest.fixture
    def make_scheduler(self) -> MakeScheduler:
        """Override: a function that makes a scheduler, each time one that would decide the same."""
        raise NotImplementedError

    def test_it_has_the_methods_of_a_scheduler(self, make_scheduler: MakeScheduler) -> None:
        """See `asynctune.protocols.TrialScheduler`."""
        assert isinstance(make_scheduler(), TrialScheduler)

    def test_results_get_a_decision(self, make_scheduler: MakeScheduler) -> None:
        """One of the three."""
        play = _Play(self, make_scheduler())
        play.go_on(self.iterations)
        assert play.decided
        assert {decision for _, _, decision in play.decided} <= {CONTINUE, PAUSE, STOP}

    def test_the_choice_is_one_that_waits(self, make_scheduler: MakeScheduler) -> None:
        """Or none; none of none."""
        scheduler = make_scheduler()
        assert scheduler.choose_trial_to_run([]) is None
        assert scheduler.choose_trial_to_run(["t0", "t1"]) in {"t0", "t1", None}

    def test_new_trials_are_started(self, make_scheduler: MakeScheduler) -> None:
        """Nothing would ever run otherwise."""
        assert make_scheduler().choose_trial_to_run(["t0"]) == "t0"

    def test_trials_that_it_does_not_know(self, make_scheduler: MakeScheduler) -> None:
        """Of a restored experiment, say: it decides about them too."""
        scheduler = make_scheduler()
        assert scheduler.on_trial_result("stranger", self.result("stranger", 3)) in {CONTINUE, PAUSE, STOP}
        hear = getattr(scheduler, "on_trial_complete", None)
        if callable(hear):  # it may want to know, and need not
            hear("another", None, True)

    @pytest.mark.parametrize("known", [0, 1, 3])
    def test_a_restored_scheduler_decides_the_same(self, make_scheduler: MakeScheduler, known: int) -> None:
        """State, through bytes, into a new scheduler."""
        play = _Play(self, make_scheduler())
        play.go_on(known)
        state = unpack(pack(play.scheduler.get_state(), "the state"))
        restored = make_scheduler()
        restored.set_state(state)
        again = _Play(self, restored, play)
        for each in (play, again):
            each.go_on(self.iterations)
        assert again.decided == play.decided

    def test_asking_for_the_state_changes_nothing(self, make_scheduler: MakeScheduler) -> None:
        """Whenever, and however often."""
        asked, unasked = _Play(self, make_scheduler()), _Play(self, make_scheduler())
        for _ in range(self.iterations):
            asked.scheduler.get_state()
            asked.go_on(1)
            unasked.go_on(1)
        assert asked.decided == unasked.decided

    def result(self, trial_id: str, iteration: int) -> dict[str, Any]:
        """A result row. Override it for other metrics."""
        number = sum(map(ord, trial_id)) * 37 % 101
        return {
            self.metric: number / iteration,
            "training_iteration": iteration,
            "trial_id": trial_id,
            "done": False,
        }


class _Play:
    """One experiment: trials that run report in turn; paused ones are started when they are chosen."""

    def __init__(
        self, suite: TrialSchedulerTests, scheduler: TrialScheduler, before: _Play | None = None
    ) -> None:
        self._suite = suite
        self.scheduler = scheduler
        self.decided: list[tuple[str, int, Decision | None]] = []
        self._running = {f"t{number}": 0 for number in range(_TRIALS)}  # with their iterations
        self._paused: dict[str, int] = {}
        if before is not None:
            self.decided = list(before.decided)
            self._running, self._paused = dict(before._running), dict(before._paused)  # noqa: SLF001 - its own kind

    def go_on(self, rounds: int) -> None:
        for _ in range(rounds):
            for trial_id in list(self._running):
                self._report(trial_id)
            chosen = self.scheduler.choose_trial_to_run(list(self._paused)) if self._paused else None
            if chosen is not None:
                self._running[chosen] = self._paused.pop(chosen)

    def _report(self, trial_id: str) -> None:
        iteration = self._running.pop(trial_id) + 1
        row = self._suite.result(trial_id, iteration)
        decision = self.scheduler.on_trial_result(trial_id, row)
        self.decided.append((trial_id, iteration, decision))
        if decision == PAUSE:
            self._paused[trial_id] = iteration
        elif decision == CONTINUE and iteration < self._suite.iterations:
            self._running[trial_id] = iteration
        elif callable(hear := getattr(self.scheduler, "on_trial_complete", None)):
            hear(trial_id, row, False)
