"""A `param_space` as Optuna knows it: distributions, and configs there and back."""

from __future__ import annotations

import math

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asynctune import (
    ConfigError,
    choice,
    grid_search,
    lograndint,
    loguniform,
    qlograndint,
    qloguniform,
    qrandint,
    quniform,
    randint,
    sample_from,
    uniform,
)
from asynctune.packing import pack, unpack
from asynctune.tuning.optuna_space import OptunaSpace

FLOAT, INT, CATEGORICAL = (
    optuna.distributions.FloatDistribution,
    optuna.distributions.IntDistribution,
    optuna.distributions.CategoricalDistribution,
)


def made(space):
    return OptunaSpace(space, optuna.distributions)


@pytest.mark.parametrize(
    ("domain", "distribution"),
    [
        (uniform(0, 2), FLOAT(0, 2)),
        (loguniform(1e-3, 1), FLOAT(1e-3, 1, log=True)),
        (quniform(0.05, 0.5, 0.1), FLOAT(0.1, 0.5, step=0.1)),
        (quniform(0, 1, 0.25), FLOAT(0, 1, step=0.25)),
        (randint(1, 5), INT(1, 4)),
        (qrandint(3, 17, 5), INT(5, 15, step=5)),
        (qrandint(3, 17), INT(3, 17)),
        (lograndint(1, 100), INT(1, 99, log=True)),
        (choice(["a", None, 1.5]), CATEGORICAL(["a", None, 1.5])),
        (grid_search([1, 2]), CATEGORICAL([1, 2])),
        (choice([1, True]), CATEGORICAL([0, 1])),
        (choice([[1], {"a": 2}]), CATEGORICAL([0, 1])),
        (choice([math.nan, 1.0]), CATEGORICAL([0, 1])),
    ],
    ids=map(str, range(13)),
)
def test_each_domain_has_its_distribution(domain, distribution):
    assert made({"x": domain}).distributions == {"x": distribution}


@pytest.mark.parametrize("domain", [qloguniform(1, 10, 2), qlograndint(1, 100, 5)], ids=["float", "integer"])
def test_rounding_on_a_logarithmic_scale_is_refused(domain):
    with pytest.raises(ConfigError, match="round it yourself"):
        made({"x": domain})


@given(st.integers(0, 2**32 - 1))
def test_a_config_leads_back_to_its_parameters(seed):
    space = made(
        {
            "x": uniform(-1, 1),
            "deep": [{"n": qrandint(0, 30, 10)}, choice([[1, (2, 3)], {"a": 1}, None, True, 1])],
            "q": quniform(0.1, 0.7, 0.1),
            "kind": choice(["a", "b"]),
            "sum": sample_from(lambda spec: spec.x + 1),
        }
    )
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed))
    params = study.ask(space.distributions).params
    config = space.config(params)
    assert config["sum"] == config["x"] + 1
    assert space.params(unpack(pack(config))) == params


@pytest.mark.parametrize(
    "config", [{}, {"x": 3.0}, {"x": "no"}, {"x": None}, {"y": 0.5}, {"x": [1]}], ids=map(str, range(6))
)
def test_a_config_of_another_space_has_none(config):
    assert made({"x": uniform(0, 1)}).params(config) is None


def test_names_are_paths():
    assert list(made({"a": {"b": uniform(0, 1)}, "c": [1, uniform(0, 1)]}).distributions) == ["a/b", "c/1"]
