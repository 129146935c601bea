"""The states of callbacks go back to those they came from."""

from __future__ import annotations

import pytest

from asynctune.errors import CorruptStateError, UserCodeError
from asynctune.store.attached import CaptureError
from asynctune.store.store import ExperimentStore
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


class Failing(Counts):
    def get_state(self):
        if self.count:
            raise RuntimeError("lost")
        return object()

    def set_state(self, state):
        raise ValueError(state)


def test_one_that_fails_is_named():
    with pytest.raises(
        UserCodeError, match=r"the callback Failing\.set_state\(\) failed: ValueError\(7\)"
    ) as failed:
        CallbackStates([Counts(), Failing()]).set_state([["Counts", 1], ["Failing", 7]])
    assert isinstance(failed.value.__cause__, ValueError)


def test_an_error_that_says_it_all_stays_as_it_is():
    class Choosy(Counts):
        def set_state(self, state):
            raise CorruptStateError("from another version")

    with pytest.raises(CorruptStateError, match=r"^from another version$"):
        CallbackStates([Choosy()]).set_state([[Choosy.__qualname__, 7]])


async def test_the_message_of_a_failed_capture_names_the_callback(tmp_path):
    store = await ExperimentStore.open(tmp_path / "exp")
    callbacks = [Counts(), failing := Failing(), Names()]
    store.attach_state("callbacks", CallbackStates(callbacks))
    with pytest.raises(CaptureError, match=r"callbacks Counts, Failing, Names could not .* state\[1\]\[1\]"):
        await store.flush()
    failing.count = 1
    with pytest.raises(
        CaptureError, match=r"the state of the callbacks Failing could not be captured: .*lost"
    ):
        await store.flush()
    failing.count = 0
    with pytest.raises(CaptureError, match="callbacks Counts, Failing, Names"):
        await store.aclose()


@pytest.mark.parametrize("states", [None, 3, [1], [["Counts"]]], ids=["none", "number", "flat", "half"])
def test_what_is_no_state(states):
    with pytest.raises(CorruptStateError):
        CallbackStates([Counts()]).set_state(states)
