"""What a searcher or scheduler was told after its state was saved is told again, and nothing else."""

from __future__ import annotations

import pytest

from asynctune.errors import CorruptStateError
from asynctune.tuning.following import (
    ADDED,
    COMPLETED,
    REPORTED,
    SUGGESTED,
    Event,
    EventLog,
    Follower,
    catch_up,
)


class Log:
    """Where events are kept, as a store does."""

    def __init__(self):
        self.values = {}
        self.next = 0

    def append_event(self, value):
        self.values[self.next] = value
        self.next += 1
        return self.next - 1

    def logged_events(self, start=0):
        yield from [(number, value) for number, value in self.values.items() if number >= start]

    @property
    def next_event(self):
        return self.next

    def drop_events(self, before):
        self.values = {number: value for number, value in self.values.items() if number >= before}


class Counts:
    """Something with a state."""

    def __init__(self):
        self.seen = []

    def get_state(self):
        return list(self.seen)

    def set_state(self, state):
        self.seen = list(state)


EVENTS: list[Event] = [
    (SUGGESTED, "a", 17, False),
    (REPORTED, "a", {"loss": 1}, False),
    (COMPLETED, "a", None, True),
    (ADDED, "b", {"x": 1}, True),
]


def followers(log):
    both = Follower("searcher", Counts(), log), Follower("scheduler", Counts(), log)
    for each in both:
        each.caught_up()
    return both


async def test_a_state_that_is_captured_while_it_catches_up_knows_what_was_told():
    kept = Log()
    log = EventLog(kept)
    Follower("searcher", Counts(), log)
    for event in EVENTS:
        log.append(event)
    late = Follower("searcher", counts := Counts(), EventLog(kept))
    captured = []

    def tell(event):
        captured.append(late.get_state())
        counts.seen.append(event)

    await catch_up(log, [(late, tell)])
    assert [each["position"] for each in captured] == [0, 1, 2, 3]
    assert [len(each["state"]) for each in captured] == [0, 1, 2, 3]


async def test_a_restored_one_is_told_what_its_state_does_not_know():
    kept = Log()
    log = EventLog(kept)
    counts = Counts()
    follower = Follower("searcher", counts, log)
    follower.caught_up()
    states = [follower.get_state()]
    for event in EVENTS:
        log.append(event)
        counts.seen.append(event)
        states.append(follower.get_state())
    assert list(log.since(0)) == list(enumerate(EVENTS))
    for known, state in enumerate(states):
        log = EventLog(kept)
        log.resume()
        assert log.next == 4
        again = Follower("searcher", restored := Counts(), log)
        again.set_state(state)
        assert restored.seen == EVENTS[:known]
        assert again.position == known
        assert again.get_state() == state, "until it has caught up, what is stored is what was"
        await catch_up(log, [(again, restored.seen.append)])
        assert restored.seen == EVENTS
        assert again.get_state() == {"position": 4, "state": EVENTS}


async def test_each_is_told_in_turn_what_it_lacks():
    kept = Log()
    log = EventLog(kept)
    first, second = followers(log)
    log.append(EVENTS[0])
    one = first.get_state()
    log.append(EVENTS[1])
    two = second.get_state()
    log.append(EVENTS[2])
    log = EventLog(kept)
    log.resume()
    first, second = Follower("searcher", Counts(), log), Follower("scheduler", Counts(), log)
    first.set_state(one)
    second.set_state(two)
    told = []
    await catch_up(
        log,
        [
            (first, lambda event: told.append(("first", event[0]))),
            (second, lambda event: told.append(("second", event[0]))),
        ],
    )
    assert told == [("first", REPORTED), ("first", COMPLETED), ("second", COMPLETED)]


def test_only_what_all_saved_states_know_is_dropped():
    kept = Log()
    log = EventLog(kept)
    first, second = followers(log)
    for event in EVENTS:
        log.append(event)
    first.get_state()
    first.state_saved()
    log.append(EVENTS[0])
    assert set(kept.values) == {0, 1, 2, 3, 4}, "the other one knows nothing yet"
    second.get_state()
    log.append(EVENTS[0])
    assert 0 in kept.values, "its state was taken, and could not be stored"
    second.state_saved()
    log.append(EVENTS[0])
    assert set(kept.values) == {4, 5, 6}


def test_nothing_is_kept_where_nobody_follows():
    kept = Log()
    EventLog(kept).append(EVENTS[0])
    assert not kept.values


async def test_one_that_joins_later_begins_there():
    kept = Log()
    log = EventLog(kept)
    Follower("searcher", Counts(), log)
    for event in EVENTS:
        log.append(event)
    late = Follower("scheduler", counts := Counts(), log)
    late.begin_here()
    await catch_up(log, [(late, counts.seen.append)])
    assert counts.seen == []


@pytest.mark.parametrize(
    "state", [None, {"position": "3", "state": 1}, {"position": 3}, b"x"], ids=map(str, range(4))
)
def test_a_state_of_something_else_is_refused(state):
    with pytest.raises(
        CorruptStateError, match="the stored state of the searcher was not written by a Tuner"
    ):
        Follower("searcher", Counts(), EventLog(Log())).set_state(state)
