from __future__ import annotations

from typing import Any

import pytest

from asynctune.store.view import TrialsView


async def test_trials_are_a_lazy_sequence_in_the_order_of_creation(store):
    assert list(store.trials) == []
    ids = [store.add_trial({"n": n}).trial_id for n in range(5)]
    trials = store.trials
    assert len(trials) == 5
    assert [trial.trial_id for trial in trials] == ids
    assert trials[-1].config == {"n": 4}
    assert [trial.config["n"] for trial in trials[1:3]] == [1, 2]
    assert [trial.trial_id for trial in reversed(trials)] == ids[::-1]
    assert trials[0] in trials
    with pytest.raises(IndexError):
        trials[5]
    store.add_trial({})
    assert len(trials) == 5
    assert len(store.trials) == 6


def test_nothing_is_built_before_it_is_asked_for():
    built = []
    view: Any

    def build(trial_id):
        built.append(trial_id)
        return trial_id

    view = TrialsView(["a", "b", "c"], build)
    assert len(view) == 3
    assert repr(view) == "<3 trials>"
    part = view[1:]
    assert built == []
    assert part[0] == "b"
    assert next(iter(view)) == "a"
    assert built == ["b", "a"]
