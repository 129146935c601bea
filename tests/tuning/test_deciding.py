"""Searchers and schedulers are asked and told in order, and answers that make no sense are told of."""

from __future__ import annotations

import pytest

from asynctune.errors import UserCodeError
from asynctune.tuning.basic import BasicSearcher
from asynctune.tuning.deciding import Deciding
from asynctune.tuning.following import EventLog, Follower
from tests.tuning.test_following import Log


class Searcher:
    """Notes what it is told, and proposes what it was given."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.told = []

    def suggest(self, trial_id):
        self.told.append(("suggest", trial_id))
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def on_trial_result(self, trial_id, result):
        self.told.append(("result", trial_id, dict(result)))

    def on_trial_complete(self, trial_id, result=None, error=False):
        self.told.append(("complete", trial_id, result, error))

    def on_trial_add(self, trial_id, config):
        self.told.append(("add", trial_id, config))

    def on_trial_rewind(self, trial_id, iteration):
        self.told.append(("rewind", trial_id, iteration))

    def get_state(self):
        return None

    def set_state(self, state):
        pass


class Scheduler(Searcher):
    """Decides what it was given."""

    def on_trial_result(self, trial_id, result):
        super().on_trial_result(trial_id, result)
        return self.suggest(trial_id)

    def choose_trial_to_run(self, trial_ids):
        return self.suggest(tuple(trial_ids))


def deciding(searcher, scheduler=None, **how):
    how = {"max_suggestions": None, **how}
    kept = Log()
    log = EventLog(kept)
    Follower("searcher", searcher, log)
    return Deciding(searcher, scheduler, log, **how), kept


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (ValueError("no idea"), r"Searcher\.suggest\('a'\) failed: ValueError\('no idea'\)"),
        ([1, 2], r"Searcher\.suggest\(\) returned \[1, 2\], which is no config"),
        (3, "which is no config"),
    ],
    ids=["raises", "list", "number"],
)
def test_a_searcher_that_fails_is_named(answer, text):
    with pytest.raises(UserCodeError, match=text) as failed:
        deciding(Searcher(answer))[0].suggest("a")
    assert "Tuner.restore()" in str(failed.value)


def test_no_more_is_asked_for_than_allowed():
    asked, _ = deciding(Searcher({"x": 1}, None, {"x": 2}), max_suggestions=4, suggestions=2)
    assert [asked.suggest(each) for each in "abcd"] == [{"x": 1}, None, {"x": 2}, None]


def test_a_proposal_is_copied():
    config = {"x": 1}
    made = deciding(Searcher(config))[0].suggest("a")
    made["x"] = 2
    assert config == {"x": 1}


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("GO", "returned 'GO'; there are CONTINUE, PAUSE, STOP"),
        (None, "returned None"),
        (OSError("no"), "failed"),
    ],
    ids=["word", "none", "raises"],
)
def test_a_scheduler_that_decides_nonsense_is_named(answer, text):
    with pytest.raises(UserCodeError, match=text):
        deciding(Searcher(), Scheduler(answer))[0].reported("a", {"loss": 1})


def test_a_scheduler_chooses_among_those_that_wait():
    asked, _ = deciding(Searcher(), Scheduler("b", None, "c"))
    assert asked.choose(["a", "b"]) == "b"
    assert asked.choose(["a"]) is None
    with pytest.raises(UserCodeError, match="chose 'c', which is not waiting"):
        asked.choose(["a"])
    assert deciding(Searcher())[0].choose(["a", "b"]) == "a"
    assert deciding(Searcher())[0].choose([]) is None


def test_what_was_told_can_be_told_again(caplog):
    searcher, scheduler = Searcher({"x": 1}), Scheduler("CONTINUE")
    asked, kept = deciding(searcher, scheduler)
    asked.suggested("a", asked.suggest("a"))
    asked.reported("a", {"loss": 1})
    asked.completed("a", {"loss": 1}, failed=False)
    asked.rewound("a", 3)
    again, also = Searcher({"x": 1}), Scheduler("CONTINUE")
    repeated, _ = deciding(again, also)
    for event in kept.values.values():
        repeated.tell_searcher(tuple(event))
        repeated.tell_scheduler(tuple(event))
    assert again.told == searcher.told
    assert also.told == scheduler.told
    assert not caplog.text


def test_a_searcher_that_proposes_something_else_than_before_is_named_once(caplog):
    asked, kept = deciding(Searcher({"x": 1}, {"x": 2}))
    for trial_id in "ab":
        asked.suggested(trial_id, asked.suggest(trial_id))
    other, _ = deciding(Searcher({"x": 3}, {"x": 4}))
    for event in kept.values.values():
        other.tell_searcher(tuple(event))
    assert caplog.text.count("Searcher proposes another config for trial a than before the restart") == 1
    assert "trial b" not in caplog.text


def test_of_a_search_that_learns_nothing_only_proposals_are_kept():
    searcher = BasicSearcher({"x": 1}, 2)
    asked, kept = deciding(searcher)
    asked.suggested("a", asked.suggest("a"))
    asked.reported("a", {"loss": 1})
    asked.completed("a", {"loss": 1}, failed=False)
    assert [value[0] for value in kept.values.values()] == ["suggested"]


def test_a_scheduler_without_an_interest_in_ends_is_not_told():
    class Plain:
        def on_trial_result(self, trial_id, result):
            return "STOP"

    asked, _ = deciding(Searcher(), Plain())
    assert asked.reported("a", {}) == "STOP"
    asked.completed("a", {}, failed=False)
