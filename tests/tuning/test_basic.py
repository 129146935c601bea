"""Random and grid search, and going on with it exactly."""

from __future__ import annotations

import json

import pytest

from asynctune.errors import CorruptStateError
from asynctune.tuning.basic import BasicSearcher
from asynctune.tuning.space import choice, grid_search, uniform

SPACE = {"lr": uniform(0, 1), "layers": grid_search([1, 2, 3]), "deep": [choice(["a", "b"])]}


def all_of(searcher):
    return list(iter(lambda: searcher.suggest("t"), None))


def test_samples_repeat_the_grid_with_other_random_values():
    found = all_of(BasicSearcher(SPACE, 4, seed=1))
    assert [each["layers"] for each in found] == [1, 2, 3] * 4
    assert len({each["lr"] for each in found}) == 12


def test_without_end():
    searcher = BasicSearcher({"a": uniform(0, 1)}, -1)
    assert searcher.total is None
    assert all(searcher.suggest(str(number)) is not None for number in range(100))


def test_the_same_seed_proposes_the_same():
    assert all_of(BasicSearcher(SPACE, 2, seed=7)) == all_of(BasicSearcher(SPACE, 2, seed=7))
    assert all_of(BasicSearcher(SPACE, 2)) != all_of(BasicSearcher(SPACE, 2))


@pytest.mark.parametrize("after", range(7))
def test_a_resumed_search_proposes_what_an_uninterrupted_one_would_have(after):
    whole = all_of(BasicSearcher(SPACE, 2, seed=3))
    searcher = BasicSearcher(SPACE, 2, seed=3)
    first = [searcher.suggest("t") for _ in range(after)]
    other = BasicSearcher(SPACE, 2)
    other.set_state(json.loads(json.dumps(searcher.get_state())))
    assert first + all_of(other) == whole


@pytest.mark.parametrize("state", [None, {}, {"seed": "x", "next": 1}, [1]], ids=str)
def test_another_searchers_state_is_refused(state):
    with pytest.raises(CorruptStateError, match="BasicSearcher"):
        BasicSearcher({}).set_state(state)


def test_a_space_of_fixed_values_is_proposed_as_often_as_asked():
    assert all_of(BasicSearcher({"a": 1, "b": [2]}, 3)) == [{"a": 1, "b": [2]}] * 3
    assert all_of(BasicSearcher({}, 2)) == [{}, {}]


def test_a_config_belongs_to_its_trial():
    searcher = BasicSearcher({"a": [1], "b": choice([[2]])}, 2)
    first = searcher.suggest("t")
    assert first is not None
    first["a"].append("mine")
    first["b"].append("mine")
    assert searcher.suggest("u") == {"a": [1], "b": [2]}
