from __future__ import annotations

import ast
import itertools
import math
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asynctune.checkpoints import retention
from asynctune.checkpoints.retention import Candidate, plan_retention, rank, score_of
from asynctune.config import CheckpointConfig

NAN = math.nan


def config(keep: int | None = 2, attribute: str | None = "acc", order: str = "max") -> CheckpointConfig:
    return CheckpointConfig(
        num_to_keep=keep,
        checkpoint_score_attribute=attribute,
        checkpoint_score_order=order,  # type: ignore[arg-type]
    )


def candidates(scores: list[Any]) -> list[Candidate]:
    """One for each score, steps from 1; `...` is a missing attribute."""
    return [Candidate(i, {} if s is ... else {"acc": s}) for i, s in enumerate(scores, 1)]


def kept(scores: list[Any], config_: CheckpointConfig, leased: frozenset[int] = frozenset()) -> set[int]:
    every = candidates(scores)
    return {each.step for each in every} - set(plan_retention(every, config_, leased).delete)


def test_without_a_number_to_keep_everything_stays():
    assert plan_retention(candidates([1, 2, 3]), config(None)).delete == ()


def test_without_an_attribute_the_newest_stay():
    assert plan_retention(candidates([3, 2, 1]), config(2, None)).delete == (1,)


@pytest.mark.parametrize(
    ("scores", "order", "expected"),
    [
        ([0.9, 0.1, 0.5], "max", {1, 3}),
        ([0.9, 0.1, 0.5], "min", {2, 3}),
        ([0.9, 0.8, 0.1], "max", {1, 2, 3}),  # the latest comes on top of the best
        ([1, 1, 1, 1], "max", {3, 4}),  # ties go to the newer
        ([1, 1, 1, 1], "min", {3, 4}),
        ([NAN, 1, NAN, 0], "max", {2, 4}),
        ([NAN, 1, NAN, 0], "min", {2, 4}),
        ([NAN, NAN, NAN], "max", {2, 3}),
        ([..., NAN, ...], "max", {2, 3}),  # NaN is above missing
        ([..., ..., ...], "min", {2, 3}),
        (["0.9", None, [1], 0.1, 0.2], "max", {4, 5}),  # no numbers: missing
        ([2.0, math.inf, 1, 3], "max", {2, 4}),
        ([2.0, -math.inf, 1, 3], "min", {2, 3, 4}),
        ([10**400, 10**400 + 1, 1.5, 0], "max", {1, 2, 4}),
        ([True, False, 0.5, 0.25], "max", {1, 3, 4}),
        ([1 + 2j, 0.5, 0.25], "max", {2, 3}),
    ],
)
def test_what_is_kept(scores, order, expected):
    assert kept(scores, config(2, order=order)) == expected


def test_every_order_of_insertion_gives_the_same_best():
    for scores in itertools.permutations([3, 1, NAN, 2, ...]):
        stays = kept(list(scores), config(2))
        best = {scores.index(3) + 1, scores.index(2) + 1}
        assert stays == best | {len(scores)}


score = st.one_of(st.floats(), st.integers(), st.just(...), st.text(max_size=2), st.none(), st.booleans())


@given(
    st.lists(score, max_size=12),
    st.integers(1, 5),
    st.sampled_from(["max", "min"]),
    st.sets(st.integers(1, 12)),
    st.randoms(use_true_random=False),
)
def test_the_rule_against_its_plainest_form(scores, keep, order, leased, shuffle):
    every = candidates(scores)
    shuffle.shuffle(every)
    plan = plan_retention(every, config(keep, order=order), leased)
    stays = {each.step for each in every} - set(plan.delete)
    assert list(plan.delete) == sorted(set(plan.delete))
    assert not set(plan.delete) & leased
    if every:
        assert max(each.step for each in every) in stays

    def merit(each: Candidate) -> tuple[Any, ...]:
        value = each.metrics.get("acc")
        if not isinstance(value, int | float):
            return (0, each.step)
        if value != value:  # noqa: PLR0124
            return (1, each.step)
        return (2, value if order == "max" else -value, each.step)

    def above(one: Candidate, other: Candidate) -> bool:
        first, second = merit(one), merit(other)
        return first[0] > second[0] or (first[0] == second[0] and first[1:] > second[1:])

    for each in every:
        better = sum(above(other, each) for other in every)
        if better < keep:
            assert each.step in stays
        elif each.step not in leased and each.step != len(scores):
            assert each.step not in stays


def test_it_is_stable_when_applied_again(rng: random.Random):
    every: list[Candidate] = []
    for step in range(1, 60):
        every.append(Candidate(step, {"acc": rng.choice([NAN, rng.random(), 0.5])}))
        gone = plan_retention(every, config(3)).delete
        every = [each for each in every if each.step not in gone]
        assert plan_retention(every, config(3)).delete == ()
        assert len(every) <= 4
        assert every[-1].step == step


def test_the_best_of_all_time_is_still_there_after_many_saves(rng: random.Random):
    every: list[Candidate] = []
    seen: list[tuple[float, int]] = []
    for step in range(1, 80):
        value = rng.random()
        seen.append((value, step))
        every.append(Candidate(step, {"acc": value}))
        gone = set(plan_retention(every, config(3)).delete)
        every = [each for each in every if each.step not in gone]
        assert {step for _, step in sorted(seen)[-3:]} <= {each.step for each in every}


def test_leased_ones_take_no_place():
    assert kept([0.1, 0.9, 0.8, 0.2], config(2), frozenset({1})) == {1, 2, 3, 4}


@pytest.mark.parametrize(
    ("metrics", "name", "expected"),
    [
        ({"a": {"b": 1}}, "a/b", 1),
        ({"a/b": 2}, "a/b", 2),
        ({"a/b": 2, "a": {"b": 1}}, "a/b", 2),
        ({"a": {"b/c": 3}}, "a/b/c", 3),
        ({"a/b": {"c": 4}}, "a/b/c", 4),
        ({"a": 1}, "a/b", None),
        ({"a": {}}, "a/b", None),
        ({}, "a", None),
        ({"a": {"b": {"c": 1}}}, "a/b", None),
        ({"loss": 0.5}, "/loss/", 0.5),
        ({"a": {"b": "1"}}, "a/b", None),
    ],
)
def test_nested_names(metrics, name, expected):
    assert score_of(metrics, name) == expected


def test_ranking_is_best_first():
    assert [each.step for each in rank(candidates([1, ..., 3, NAN]), config())] == [3, 1, 4, 2]


def test_a_missing_attribute_is_one_sentence_that_says_what_there_is():
    plan = plan_retention([Candidate(1, {"loss": 1}), Candidate(2, {"acc": 1})], config(5))
    assert plan.delete == ()
    assert plan.warning is not None
    assert "'acc'" in plan.warning
    assert "checkpoint 1" in plan.warning
    assert "loss" in plan.warning
    assert plan_retention(candidates([1, NAN]), config(5)).warning is None
    assert plan_retention(candidates([1, ...]), config(5, None)).warning is None


def test_the_rule_does_no_io():
    source = Path(retention.__file__).read_text(encoding="utf-8")
    imported = {
        node.module or "" for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)
    } | {
        name.name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Import)
        for name in node.names
    }
    values = {"asynctune.config", "asynctune.metrics"}
    assert imported <= {"__future__", "collections.abc", "dataclasses", "typing", *values}
