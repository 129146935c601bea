"""The 5 % rule, in exact numbers and in the long run."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asynctune.state.pacing import TARGET_FRACTION, CommitPacing, CostBudget

REST = 24


def commit(pacing: CommitPacing, start: float, cost: float, size: int = 100) -> float:
    """One commit; returns when the next may start."""
    pacing.committed(start, start + cost, cost, size)
    return pacing.next_start


def test_before_the_first_commit_nothing_has_to_wait():
    pacing = CommitPacing()
    assert pacing.next_start == -math.inf
    assert pacing.interval_s == 0
    assert not pacing.exceeds_target
    assert CostBudget().next_start == -math.inf


def test_a_save_of_two_seconds_makes_the_next_wait_no_less_than_38():
    pacing = CommitPacing()
    assert commit(pacing, 100.0, 2.0) == pytest.approx(150.0)
    assert pacing.interval_s == pytest.approx(48.0), "and so no less than 38"


def test_there_is_no_floor_of_ten_seconds():
    pacing = CommitPacing()
    assert commit(pacing, 0.0, 0.001) == pytest.approx(0.025)
    assert pacing.interval_s == pytest.approx(0.024)


def test_an_explicit_commit_counts_like_any_other():
    pacing = CommitPacing()
    commit(pacing, 0.0, 1.0)
    assert commit(pacing, 1.5, 0.1) == pytest.approx(1.6 + 2.4)


def test_a_gap_that_comes_once_does_not_set_the_pace():
    pacing = CommitPacing()
    for i in range(10):
        commit(pacing, i * 1.0, 0.01)
    # paid off by rests of twice the length; of what a suspended process seemed to take, one second is owed
    assert commit(pacing, 20.0, 60.0) == pytest.approx(80.0 + 2 * REST * 0.01)
    longer = 1
    while commit(pacing, 100.0 * longer, 0.01) > 100.0 * longer + 0.01 + REST * 0.01 + 1e-9:
        longer += 1
    assert longer == pytest.approx(1.0 / 0.01, abs=2)


def test_a_gap_that_comes_again_sets_the_pace():
    pacing = CommitPacing()
    for i in range(10):
        commit(pacing, i * 1.0, 0.01)
    commit(pacing, 20.0, 1.0)
    assert commit(pacing, 30.0, 1.0) == pytest.approx(
        31.0 + 24 + REST * 0.98
    )  # and what is owed of the first
    assert commit(pacing, 90.0, 1.0) == pytest.approx(91.0 + 24)


def test_gaps_that_come_every_few_commits_set_the_pace():
    pacing = CommitPacing()
    now, spared = 0.0, 0
    for i in range(100):
        cost = 0.5 if i % 8 == 7 else 0.01
        now = max(now, commit(pacing, now, cost))
        spared += pacing.interval_s < REST * cost - 1e-9
    assert spared == 1


def test_a_gap_long_after_another_is_forgiven_again():
    pacing = CommitPacing()
    for i in range(30):
        commit(pacing, i * 20.0, 0.5 if i in {9, 25} else 0.01)
        assert pacing.interval_s <= 1.2 + 1e-9


def test_rare_gaps_are_paid_for_in_the_long_run():
    pacing = CommitPacing()
    now, spent = 0.0, 0.0
    for i in range(1, 2001):
        cost = 0.05 if i % 20 == 0 else 0.001
        spent += cost
        now = commit(pacing, now, cost)
    assert spent / now <= 0.0505


def test_a_first_snapshot_that_is_expected_is_paid_for_before():
    pacing = CommitPacing()
    pacing.expect_snapshot(0.4, 1_000_000)
    now, spent = 0.0, 0.0
    for _ in range(1000):
        spent += 0.001
        now = commit(pacing, now, 0.001, 1000)
    pacing.snapshot_written(0.4, 1_000_000)
    assert (spent + 0.4) / (now + 0.4) <= 0.05 + 1e-9


def test_early_costs_are_taken_as_they_are():
    pacing = CommitPacing()
    commit(pacing, 0.0, 0.01)
    assert commit(pacing, 1.0, 1.0) == pytest.approx(2.0 + 24)


def test_a_fixed_period_runs_from_start_to_start():
    pacing = CommitPacing(period_s=10.0)
    assert pacing.next_start == -math.inf
    assert commit(pacing, 100.0, 2.0) == 110.0
    assert pacing.interval_s == 8.0
    assert commit(pacing, 200.0, 30.0) == 230.0
    assert not pacing.exceeds_target


def test_max_interval_wins_over_the_rule_and_says_so():
    pacing = CommitPacing(max_interval_s=5.0)
    assert commit(pacing, 0.0, 0.1) == pytest.approx(0.1 + 2.4)
    assert not pacing.exceeds_target
    assert commit(pacing, 10.0, 2.0) == pytest.approx(17.0)
    assert pacing.exceeds_target


def test_commits_pay_for_the_snapshot_that_they_will_cause():
    pacing = CommitPacing()
    commit(pacing, 0.0, 0.01, 1000)
    assert pacing.interval_s == pytest.approx(0.24)
    pacing.snapshot_written(0.1, 1000)  # nobody paid for the first one
    assert pacing.owed_s == pytest.approx(0.1)
    rests = []
    for i in range(10):  # which they do, and for the next one, with rests that are twice as long
        commit(pacing, 10.0 + i, 0.01, 100)
        rests.append(pacing.interval_s)
    assert rests == pytest.approx([REST * 0.02] * 10)
    pacing.snapshot_written(0.1, 1000)
    assert pacing.owed_s == pytest.approx(0.1), (
        "the first was paid for, and what the second will be was billed"
    )


def test_what_is_owed_keeps_changes_young():
    pacing = CommitPacing()
    pacing.snapshot_written(1.0, 1_000_000)
    now, longest = 0.0, 0.0
    while pacing.owed_s > 0.001:
        now = commit(pacing, now, 0.001)
        longest = max(longest, pacing.interval_s)
    assert longest <= REST * 0.0111
    assert now < 50, "and is paid soon"


@pytest.mark.parametrize("left", [1, 1000, 1_000_000])
def test_no_more_is_paid_in_advance_than_the_snapshot_is_expected_to_take(left):
    pacing = CommitPacing()
    pacing.expect_snapshot(2.0, left)
    for i in range(5):
        commit(pacing, i * 100.0, 0.001, 100_000_000)
        assert pacing.owed_s <= 2.0
        assert pacing.interval_s <= REST * 0.03


def test_a_process_suspended_during_a_snapshot_owes_a_second():
    pacing = CommitPacing()
    for _ in range(2):
        pacing.snapshot_written(0.2, 1_000_000)
    owed = pacing.owed_s
    pacing.snapshot_written(3600.0, 1_000_000)
    assert pacing.owed_s <= owed + 1.2 + 1e-9
    pacing.snapshot_written(3600.0, 1_000_000)
    assert pacing.owed_s > 3600, "twice in a row it is no accident"


def test_a_snapshot_that_is_due_is_not_paid_in_advance():
    pacing = CommitPacing()
    pacing.expect_snapshot(1.0, 0)
    commit(pacing, 0.0, 0.01, 1000)
    assert pacing.interval_s == pytest.approx(0.24)


def test_a_snapshot_of_no_journal_divides_by_nothing():
    pacing = CommitPacing()
    pacing.snapshot_written(1.0, 0)
    commit(pacing, 0.0, 0.01, 1)
    assert math.isfinite(pacing.next_start)


steady = st.floats(1e-4, 10.0)


@given(st.lists(st.floats(0.5, 5.0), min_size=1, max_size=300), steady)
def test_in_the_long_run_commits_take_at_most_five_percent(factors, typical):
    pacing, now, spent = CommitPacing(), 0.0, 0.0
    for factor in factors:
        cost = typical * factor
        spent += cost
        now = commit(pacing, now, cost)
    assert spent / now <= TARGET_FRACTION + 1e-9


@given(st.lists(st.tuples(steady, st.integers(1, 40)), min_size=1, max_size=12))
def test_the_same_when_commits_become_slow_or_quick_and_stay_so(phases):
    # Each change to ten times the cost and more is taken for a gap once: nothing else goes uncounted.
    pacing, now, spent, forgiven = CommitPacing(), 0.0, 0.0, 0.0
    for cost, times in phases:
        for nth in range(times):
            now = commit(pacing, now, cost)
            if nth > 0 or pacing.interval_s >= REST * cost - 1e-9:
                spent += cost
            else:
                forgiven += cost
    assert spent / (now - forgiven) <= TARGET_FRACTION * 1.001


@given(st.lists(steady, min_size=1, max_size=200))
def test_of_nine_in_a_row_at_most_one_is_forgiven(costs):
    budget, now, forgiven = CostBudget(), 0.0, []
    for cost in costs:
        budget.spent(now + cost, cost)
        rest = budget.next_start - (now + cost)
        forgiven.append(rest < REST * cost * (1 - 1e-6))
        now = budget.next_start
    assert all(sum(forgiven[i : i + 9]) <= 1 for i in range(len(forgiven)))


@given(
    st.lists(st.tuples(st.floats(0.001, 0.01), st.integers(100, 10_000)), min_size=50, max_size=300),
    st.floats(0.01, 5.0),
    st.integers(20_000, 100_000),
)
def test_snapshots_are_within_the_five_percent(commits, snapshot_cost, every_bytes):
    # After the first, which nobody could pay for in advance, in the sum over whole rounds.
    pacing, now, spent, journal, start, count = CommitPacing(), 0.0, 0.0, 0, None, 0
    for cost, size in commits * 4:
        now = commit(pacing, now, cost, size)
        spent += cost
        journal += size
        if journal > every_bytes:
            spent += snapshot_cost
            pacing.snapshot_written(snapshot_cost, journal)
            journal, count = 0, count + 1
            if start is None:
                start = (now, spent)
    if start is not None and count > 3:
        assert (spent - start[1] - pacing.owed_s) / (now - start[0]) <= TARGET_FRACTION * 1.05
        assert pacing.owed_s <= 101 * max(snapshot_cost, 0.01), "what is owed does not grow without end"


@pytest.mark.parametrize(("known", "forgiven"), [(1, False), (8, False), (9, True)])
def test_the_first_nine_costs_set_the_pace_whatever_they_are(known, forgiven):
    budget = CostBudget()
    for _ in range(known):
        budget.spent(0.0, 0.001)
    budget.spent(100.0, 1.0)
    rest = budget.next_start - 100.0
    assert (rest < 24.0 - 1e-9) is forgiven
