"""Domains draw what their names and bounds say."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asynctune.errors import ConfigError
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

numbers = st.floats(-1e6, 1e6, allow_nan=False)


def draw(domain, count=500, seed=1):
    rng = random.Random(seed)
    return [domain.sample(rng) for _ in range(count)]


@given(numbers, numbers, st.integers())
def test_uniform_stays_within_its_bounds(a, b, seed):
    lower, upper = min(a, b), max(a, b)
    if lower == upper:
        return
    assert all(lower <= value <= upper for value in draw(uniform(lower, upper), 20, seed))


def test_the_widest_bounds():
    values = draw(uniform(-1.7e308, 1.7e308))
    assert all(math.isfinite(value) for value in values)
    assert min(values) < -1e308 < 1e308 < max(values)


def test_loguniform_has_as_many_of_each_magnitude():
    found = Counter(math.floor(math.log10(value)) for value in draw(loguniform(1e-4, 1), 4000))
    assert set(found) == {-4, -3, -2, -1}
    assert all(800 < count < 1200 for count in found.values())


@pytest.mark.parametrize("q", [0.1, 0.25, 2, 0.3])
def test_quantized_values_are_multiples_within_the_bounds(q):
    for domain in (quniform(0.5, 7, q), qloguniform(0.5, 7, q)):
        for value in draw(domain):
            assert 0.5 <= value <= 7
            assert math.isclose(value / q, round(value / q), abs_tol=1e-9)
            assert value == round(value, 10), "no rounding error is shown to the user"


def test_the_bounds_of_whole_numbers():
    assert set(draw(randint(0, 3))) == {0, 1, 2}
    assert set(draw(qrandint(0, 3))) == {0, 1, 2, 3}
    assert set(draw(qrandint(0, 10, 5))) == {0, 5, 10}
    assert set(draw(lograndint(1, 4))) == {1, 2, 3}
    assert set(draw(qlograndint(2, 8, 2))) == {2, 4, 6, 8}
    assert all(type(value) is int for value in draw(qrandint(0, 10, 5)) + draw(lograndint(1, 9)))


def test_normal_numbers():
    values = draw(randn(10, 2), 4000)
    assert abs(sum(values) / len(values) - 10) < 0.2
    assert all(value == round(value * 2) / 2 for value in draw(qrandn(10, 2, 0.5)))


def test_choices_and_grids():
    assert set(draw(choice(["a", None, 3]))) == {"a", None, 3}
    assert set(draw(grid_search([1, 2]))) == {1, 2}


def test_bounds_of_numpy():
    numpy = pytest.importorskip("numpy")
    found = (
        randint(numpy.int64(1), 5),
        qrandint(0, numpy.uint8(4), numpy.int32(2)),
        uniform(numpy.float32(0.5), numpy.array(1.5)),
        qloguniform(numpy.float64(0.5), 2, numpy.float64(0.5), base=numpy.int64(2)),
        qrandn(numpy.int64(0), numpy.float16(1), numpy.float32(0.5)),
    )
    assert found == (
        randint(1, 5),
        qrandint(0, 4, 2),
        uniform(0.5, 1.5),
        qloguniform(0.5, 2, 0.5),
        qrandn(0, 1, 0.5),
    )
    for domain in found:
        assert {type(value) for value in vars(domain).values()} <= {int, float, bool, type(None)}
        assert type(domain.sample(random.Random(1))) in {int, float}
    for made in (
        lambda: randint(numpy.float32(1), 5),
        lambda: randint(numpy.bool_(0), 5),
        lambda: uniform(numpy.zeros(1), 1),
    ):
        with pytest.raises(ConfigError, match=r"whole numbers|finite number"):
            made()


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: uniform(1, 1), "lower must be below upper"),
        (lambda: uniform(2, 1), "lower must be below upper"),
        (lambda: uniform("a", 1), "finite number"),  # type: ignore[arg-type]
        (lambda: uniform(0, math.inf), "finite number"),
        (lambda: uniform(math.nan, 1), "finite number"),
        (lambda: loguniform(0, 1), "above 0"),
        (lambda: loguniform(1, 2, base=1), "base"),
        (lambda: quniform(0, 1, 0), "q must be above 0"),
        (lambda: quniform(0.1, 0.2, 5), "no multiple"),
        (lambda: randint(0.5, 2), "whole numbers"),  # type: ignore[arg-type]
        (lambda: randint(0, True), "whole numbers"),
        (lambda: lograndint(0, 4), "above 0"),
        (lambda: qrandint(0, 4, 0.5), "whole number"),  # type: ignore[arg-type]
        (lambda: randn(0, 0), "sd"),
        (lambda: qrandn(0, 1, 0), "q must be above 0"),
        (lambda: choice([]), "at least one"),
        (lambda: choice("abc"), "list of values"),
        (lambda: choice(3), "list of values"),  # type: ignore[arg-type]
        (lambda: grid_search({"a": 1}), "list of values"),
        (lambda: sample_from(3), "function"),  # type: ignore[arg-type]
        (lambda: uniform(0, 10**400), "finite number"),
        (lambda: choice([1, {"a": [sample_from(int)]}]), "cannot choose a sample_from"),
        (lambda: grid_search([sample_from(int)]), "cannot choose a sample_from"),
    ],
    ids=map(str, range(23)),
)
def test_what_makes_no_sense_is_refused(make, text):
    with pytest.raises(ConfigError, match=text):
        make()
