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


@pytest.mark.parametrize("space", [[1], {1: 2}, {"a": {2: 3}}], ids=["list", "key", "deep"])
def test_what_is_no_space_is_refused(space):
    with pytest.raises(ConfigError, match="param_space"):
        Space(space)
