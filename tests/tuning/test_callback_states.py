"""The states of callbacks go back to those they came from."""

from __future__ import annotations

import pytest

from asynctune.errors import CorruptStateError
from asynctune.tuning.callback_states import CallbackStates


class Counts:
    def __init__(self, count=0):
        self.count = count

    def get_state(self):
        return self.count

    def set_state(self, state):
        self.count = state


class Names(Counts):
    pass


class Stateless:
    pass


def test_each_gets_its_own_back():
    states = CallbackStates([Counts(1), Stateless(), Names(2), Counts(3)]).get_state()
    assert states == [["Counts", 1], ["Names", 2], ["Counts", 3]]
    callbacks = [Names(), Counts(), Counts()]
    CallbackStates(callbacks).set_state(states)
    assert [each.count for each in callbacks] == [2, 1, 3]


def test_the_state_of_one_that_is_not_given_again_is_kept(caplog):
    left = CallbackStates([counts := Counts()])
    left.set_state([["Counts", 1], ["Names", 2]])
    assert counts.count == 1
    assert "the callback Names has a saved state" in caplog.text
    assert left.get_state() == [["Counts", 1], ["Names", 2]]


@pytest.mark.parametrize("states", [None, 3, [1], [["Counts"]]], ids=["none", "number", "flat", "half"])
def test_what_is_no_state(states):
    with pytest.raises(CorruptStateError):
        CallbackStates([Counts()]).set_state(states)
