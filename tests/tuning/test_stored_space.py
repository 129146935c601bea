"""A search space comes back as it was stored."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asynctune.errors import CorruptStateError
from asynctune.packing import pack, unpack
from asynctune.tuning.space import (
    choice,
    grid_search,
    lograndint,
    loguniform,
    qlograndint,
    qloguniform,
    qrandint,
    qrandn,
    quniform,
    randint,
    randn,
    sample_from,
    uniform,
)
from asynctune.tuning.stored_space import functions_of, stored, unstored
from asynctune.tuning.variants import Space

DOMAINS = (
    uniform(0, 1.5),
    quniform(0, 10, 0.5),
    loguniform(1e-5, 1),
    qloguniform(1, 100, 2),
    randn(1, 2),
    qrandn(0, 1, 0.25),
    randint(0, 10),
    qrandint(0, 10, 5),
    lograndint(1, 100),
    qlograndint(2, 64, 2),
    choice(["a", None, 3, (1, 2), [1, (2,)], {"x": uniform(0, 1)}]),
    grid_search([choice([1, 2]), {"y": grid_search([3, 4])}]),
)

plain = st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.text(), st.binary())
values = st.recursive(
    st.one_of(plain, st.sampled_from(DOMAINS)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.tuples(plain, st.tuples(plain)),
        st.dictionaries(
            st.one_of(st.text(max_size=3), st.sampled_from(["__domain__", "items", "kind"])),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.text(max_size=3), values, max_size=4), st.integers())
def test_what_is_stored_comes_back(tree, seed):
    space = Space(tree)
    again = Space(unstored(unpack(pack(stored(space.tree)))))
    assert again.tree == space.tree
    assert again.grid_size == space.grid_size
    assert again.config(random.Random(seed), 0) == space.config(random.Random(seed), 0)


def test_functions_are_told_by_their_paths():
    space = Space(
        {"a": {"b": [1, sample_from(lambda: 1)]}, "c": uniform(0, 1), "d": sample_from(lambda spec: spec.c)}
    )
    assert functions_of(space) == [("a", "b", 1), ("d",)]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"__domain__": "quantum"}, "upgrade"),
        ({"__domain__": [3]}, "upgrade"),
        ({"a": [{"__domain__": "float", "lower": 2, "upper": 1}]}, "cannot be used: uniform: lower"),
        ({"__domain__": "float", "lower": 2}, "cannot be used"),
        ({"__domain__": "float", "lower": 1, "upper": 2, "base": 3}, "cannot be used"),
        ({"__domain__": "mapping"}, "no items"),
        (({"__domain__": "mapping", "items": 3},), "no items"),
    ],
    ids=["newer", "number", "bounds", "missing", "more", "mapping", "items"],
)
def test_what_cannot_be_used_is_refused(value, text):
    with pytest.raises(CorruptStateError, match=text):
        unstored(value)
