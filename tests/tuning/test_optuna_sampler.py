"""What can be a sampler or a pruner, and what is made where none is given."""

from __future__ import annotations

import optuna
import pytest

from asynctune import ConfigError, OptunaSearcher, TuneConfig
from asynctune.tuning.optuna_sampler import draw_seeds, pruner_of, quiet, sampler_of


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("sampler", "tpe", r"one of Optuna's, such as optuna.samplers.TPESampler\(\), not 'tpe'"),
        ("sampler", optuna.samplers.TPESampler, r"an object, not the class TPESampler; write TPESampler\("),
        ("sampler", optuna.pruners.NopPruner(), r"one of Optuna's, such as"),
        ("sampler", 0, "not 0"),
        ("pruner", "median", r"one of Optuna's, such as optuna.pruners.MedianPruner\(\), not 'median'"),
        ("pruner", optuna.pruners.HyperbandPruner, "an object, not the class HyperbandPruner"),
        ("pruner", False, "not False"),
    ],
    ids=["name", "class", "pruner", "number", "pruner-name", "pruner-class", "false"],
)
def test_what_is_none_is_refused_where_it_is_given(name, value, text):
    with pytest.raises(
        ConfigError, match=f"^{name} must be {text}" if text.startswith(("one", "an")) else text
    ):
        OptunaSearcher(**{name: value})


def test_what_is_given_is_taken_and_else_there_is_one():
    sampler, pruner = optuna.samplers.RandomSampler(), optuna.pruners.NopPruner()
    assert sampler_of(optuna, sampler, None) is sampler
    assert pruner_of(optuna, pruner) is pruner
    assert isinstance(sampler_of(optuna, None, 3), optuna.samplers.TPESampler)
    assert isinstance(pruner_of(optuna, None), optuna.pruners.MedianPruner)
    with pytest.raises(ConfigError, match="seed"):
        sampler_of(optuna, sampler, 1)


def test_a_seed_is_drawn_once():
    sampler = optuna.samplers.TPESampler()
    assert sampler._rng._rng is None
    draw_seeds(sampler)
    drawn = sampler._rng._rng
    assert drawn is not None
    draw_seeds(sampler)
    assert sampler._rng._rng is drawn


def test_quiet_for_a_while():
    before = optuna.logging.get_verbosity()
    with quiet(optuna.logging):
        assert optuna.logging.get_verbosity() >= optuna.logging.WARNING
    assert optuna.logging.get_verbosity() == before


def test_a_scheduler_of_another_searcher_is_refused():
    searcher = OptunaSearcher()
    assert TuneConfig(search_alg=searcher, scheduler=searcher.scheduler()).search_alg is searcher
    for other in (None, OptunaSearcher()):
        with pytest.raises(
            ConfigError, match=r"another OptunaSearcher than search_alg is; give both of the same"
        ):
            TuneConfig(search_alg=other, scheduler=searcher.scheduler())
