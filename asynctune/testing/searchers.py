"""Owns the suite for searchers: above all, that a restored search goes on exactly. Needs pytest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import pytest

from asynctune.packing import pack, unpack
from asynctune.protocols import Searcher

__all__ = ["SearcherTests"]

MakeSearcher = Callable[[], Searcher]
Told = tuple[str, str, Any, bool]
"""What a searcher was asked or told: `suggested`, `reported` or `completed`; the trial; its config or result row;
whether it failed."""


class SearcherTests:
    """Inherit from this class, and say how a searcher is made; pytest runs its tests for it.

    Example::

        class TestMySearcher(SearcherTests):
            @pytest.fixture
            def make_searcher(self):
                return lambda: MySearcher(space, seed=1)

    Attributes:
        metric: Name of the metric in the results that it is told.
        suggestions: How many trials the longest test goes through; it may propose fewer.
    """

    metric: ClassVar[str] = "loss"
    suggestions: ClassVar[int] = 12

    @pytest.fixture
    def make_searcher(self) -> MakeSearcher:
        """Override: a function that makes a searcher, each time one that would propose the same."""
        raise NotImplementedError

    def restored(self, make_searcher: MakeSearcher, state: Any, history: list[Told]) -> Searcher:  # noqa: ARG002
        """A new searcher that goes on from `state`, as after a restart.

        Override it for one that needs more than its state, such as what it was told before (`history`).
        """
        searcher = make_searcher()
        searcher.set_state(state)
        return searcher

    # -- suggestions ---------------------------------------------------------------------------------------

    def test_it_has_the_methods_of_a_searcher(self, make_searcher: MakeSearcher) -> None:
        """See `asynctune.protocols.Searcher`."""
        assert isinstance(make_searcher(), Searcher)

    def test_suggestions_are_configs_that_can_be_stored(self, make_searcher: MakeSearcher) -> None:
        """Mappings of msgpack values, or `None`; the first is a mapping."""
        play = _Play(self, make_searcher())
        play.go_on(self.suggestions)
        assert play.suggested[0] is not None, "it proposes nothing at all"
        for config in play.suggested:
            assert config is None or isinstance(config, Mapping)
            assert unpack(pack(config, "the suggestion")) == config

    def test_equal_searchers_suggest_the_same(self, make_searcher: MakeSearcher) -> None:
        """Which is what the other tests build on."""
        first, second = _Play(self, make_searcher()), _Play(self, make_searcher())
        for play in (first, second):
            play.go_on(self.suggestions)
        assert first.suggested == second.suggested

    def test_a_suggestion_is_the_callers_own(self, make_searcher: MakeSearcher) -> None:
        """What a trial does to its config changes none that is suggested later."""
        first, second = _Play(self, make_searcher()), _Play(self, make_searcher())
        second.spoils = True
        for play in (first, second):
            play.go_on(self.suggestions)
        assert first.suggested == second.suggested

    def test_trials_that_it_does_not_know(self, make_searcher: MakeSearcher) -> None:
        """Of an experiment that was extended, say: it may ignore them, and must not fail."""
        searcher = make_searcher()
        searcher.on_trial_result("stranger", self.result("stranger", 1))
        searcher.on_trial_complete("stranger", self.result("stranger", 1))
        searcher.on_trial_complete("another")
        searcher.on_trial_complete("failed", None, error=True)
        assert isinstance(searcher.suggest("t0"), Mapping)

    # -- state ---------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("known", [0, 1, 5])
    def test_a_restored_search_goes_on_exactly(self, make_searcher: MakeSearcher, known: int) -> None:
        """State, through bytes, into a new searcher: the same suggestions, with results told in between."""
        play = _Play(self, make_searcher())
        play.go_on(known)
        state = unpack(pack(play.searcher.get_state(), "the state"))
        again = _Play(self, self.restored(make_searcher, state, list(play.history)), play)
        for each in (play, again):
            each.go_on(self.suggestions)
        assert again.suggested == play.suggested

    def test_asking_for_the_state_changes_nothing(self, make_searcher: MakeSearcher) -> None:
        """Whenever, and however often."""
        asked, unasked = _Play(self, make_searcher()), _Play(self, make_searcher())
        for _ in range(self.suggestions):
            asked.searcher.get_state()
            asked.go_on(1)
            asked.searcher.get_state()
            unasked.go_on(1)
        assert asked.suggested == unasked.suggested

    def test_a_state_is_of_its_moment(self, make_searcher: MakeSearcher) -> None:
        """What happens afterwards does not change one that was handed out."""
        play = _Play(self, make_searcher())
        play.go_on(3)
        state = play.searcher.get_state()
        before = pack(state, "the state")
        play.go_on(3)
        assert pack(state, "the state") == before

    # -- what it is told -----------------------------------------------------------------------------------

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
    """One search: trials are suggested, report, and end or fail, by their number alone."""

    def __init__(self, suite: SearcherTests, searcher: Searcher, before: _Play | None = None) -> None:
        self._suite = suite
        self.searcher = searcher
        self.suggested: list[Any] = [] if before is None else list(before.suggested)
        self.history: list[Told] = [] if before is None else list(before.history)
        self.spoils = False

    def go_on(self, trials: int) -> None:
        for _ in range(trials):
            number = len(self.suggested)
            config = self.searcher.suggest(_id(number))
            self.suggested.append(None if config is None else unpack(pack(config, "the suggestion")))
            self.history.append(("suggested", _id(number), self.suggested[-1], False))
            if self.spoils and isinstance(config, dict):
                config.clear()
            if config is not None:
                self._report(number, 1)
            earlier = number - 2  # two others run beside it
            if earlier >= 0 and self.suggested[earlier] is not None:
                self._report(earlier, 2)
                self._complete(earlier)

    def _report(self, number: int, iteration: int) -> None:
        row = self._suite.result(_id(number), iteration)
        self.history.append(("reported", _id(number), row, False))
        self.searcher.on_trial_result(_id(number), dict(row))

    def _complete(self, number: int) -> None:
        failed = number % 4 == 1
        row = None if failed else self._suite.result(_id(number), 2)
        self.history.append(("completed", _id(number), row, failed))
        self.searcher.on_trial_complete(_id(number), row, failed)


def _id(number: int) -> str:
    return f"t{number}"
