"""A space becomes configs: nested, combined, and with functions that look at other values."""

from __future__ import annotations

import itertools
import random

import pytest

from asynctune.errors import ConfigError
from asynctune.tuning.space import choice, grid_search, sample_from, uniform
from asynctune.tuning.variants import Space


def test_domains_are_found_in_nested_dictionaries_and_lists():
    space = Space(
        {"a": uniform(0, 1), "fixed": [1, {"b": choice([2])}], "deep": {"er": {"c": choice(["x"])}}}
    )
    assert set(space.domains) == {("a",), ("fixed", 1, "b"), ("deep", "er", "c")}
    config = space.config(random.Random(1), 0)
    assert 0 <= config["a"] < 1
    assert (config["fixed"], config["deep"]) == ([1, {"b": 2}], {"er": {"c": "x"}})


def test_configs_share_nothing_with_the_space_or_each_other():
    given = {"list": [1, {"a": 2}]}
    space = Space(given)
    first, second = (space.config(random.Random(1)) for _ in range(2))
    first["list"][1]["a"] = 9
    assert second == {"list": [1, {"a": 2}]}
    assert given == {"list": [1, {"a": 2}]}


def test_grids_are_combined_the_first_one_fastest():
    space = Space({"b": grid_search(["x", "y", "z"]), "a": {"grid_search": [1, 2]}, "r": uniform(0, 1)})
    assert space.grid_size == 6
    found = [space.config(random.Random(1), index) for index in range(6)]
    assert [(each["a"], each["b"]) for each in found] == [(a, b) for b, a in itertools.product("xyz", (1, 2))]


def test_functions_see_what_they_look_at():
    space = Space(
        {
            "third": sample_from(lambda spec: spec.config.second + 1),
            "second": sample_from(lambda spec: spec["first"] * 10),
            "first": choice([4]),
            "nested": {"own": sample_from(lambda spec: spec.nested.get("base", 0) + spec.first), "base": 1},
            "none": sample_from(lambda: "called"),
        }
    )
    config = space.config(random.Random(1))
    assert (config["second"], config["third"], config["none"]) == (40, 41, "called")
    assert config["nested"] == {"own": 5, "base": 1}


def test_functions_in_a_circle_are_named():
    space = Space({"a": sample_from(lambda spec: spec.b), "b": sample_from(lambda spec: spec.a)})
    with pytest.raises(ConfigError, match=r"a, b look at each other"):
        space.config(random.Random(1))


def test_a_function_that_fails_is_named():
    space = Space({"deep": {"a": sample_from(lambda spec: spec.missing)}})
    with pytest.raises(ConfigError, match=r"deep/a failed: .*missing"):
        space.config(random.Random(1))


def test_a_choice_between_spaces_draws_within_the_chosen_one():
    space = Space({"optimizer": choice([{"name": "sgd", "momentum": uniform(0.5, 0.9)}, {"name": "adam"}])})
    found = [space.config(random.Random(seed))["optimizer"] for seed in range(30)]
    assert {each["name"] for each in found} == {"sgd", "adam"}
    assert all(0.5 <= each["momentum"] <= 0.9 for each in found if each["name"] == "sgd")


@pytest.mark.parametrize("values", [[], "abc", {"a": 1}, 3], ids=map(str, range(4)))
def test_both_forms_of_a_grid_refuse_the_same(values):
    with pytest.raises(ConfigError) as refused:
        grid_search(values)
    for space in (
        {"a": {"b": {"grid_search": values}}},
        {"a": {"b": choice([{"c": {"grid_search": values}}])}},
    ):
        with pytest.raises(ConfigError) as again:
            Space(space)
        assert str(again.value) == f"a/b: {refused.value}"


def test_a_grid_in_a_choice_is_drawn_from():
    space = Space(
        {
            "a": choice([{"x": {"grid_search": [1, {"grid_search": [2]}]}}]),
            "b": grid_search([[{"grid_search": [3]}]]),
        }
    )
    found = [space.config(random.Random(seed), 0) for seed in range(20)]
    assert {each["a"]["x"] for each in found} == {1, 2}
    assert {each["b"][0] for each in found} == {3}


@pytest.mark.parametrize("values", [[1, 2], 3], ids=str)
def test_a_grid_without_a_name_is_refused(values):
    with pytest.raises(ConfigError, match="a grid without a name"):
        Space({"grid_search": values})


@pytest.mark.parametrize(
    "value",
    [
        (uniform(0, 1), 2),
        ([{"x": (grid_search([1]),)}],),
        {uniform(0, 1)},
        frozenset({sample_from(int)}),
        ({"grid_search": [1]},),
        choice([1, {"x": [(uniform(0, 1),)]}]),
        {"grid_search": [(uniform(0, 1),)]},
    ],
    ids=["tuple", "deep", "set", "frozenset", "grid", "chosen", "of-a-grid"],
)
def test_a_domain_where_nothing_is_drawn_is_refused_with_its_place(value):
    with pytest.raises(ConfigError, match=r"in a tuple or a set, at a/0; use a list"):
        Space({"a": [value]})


def test_tuples_and_sets_of_values_stay_as_they_are():
    assert Space({"a": ({1: 2}, [{3}])}).config(random.Random(1)) == {"a": ({1: 2}, [{3}])}


def endless():
    made: list = []
    made.append((made,))
    return made


@pytest.mark.parametrize("make", [endless, lambda: (endless(),)], ids=["list", "tuple"])
def test_what_is_nested_without_end_is_refused(make):
    with pytest.raises(ConfigError, match="nested more than 64 deep at a"):
        Space({"a": make()})


def test_a_function_that_returns_a_domain_is_named():
    space = Space({"deep": {"a": sample_from(lambda: uniform(0, 1))}})
    with pytest.raises(ConfigError, match=r"deep/a returned Float\(.*draw the value itself"):
        space.config(random.Random(1))


@pytest.mark.parametrize("space", [[1], {1: 2}, {"a": {2: 3}}], ids=["list", "key", "deep"])
def test_what_is_no_space_is_refused(space):
    with pytest.raises(ConfigError, match="param_space"):
        Space(space)
