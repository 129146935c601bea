"""Who is ahead, and where two copies part."""

from __future__ import annotations

import random

import pytest

from asynctune.state.mirror.relations import Position, common_seq, relate

A, B, C, D, E = (bytes([n]) * 16 for n in range(1, 6))
LINE = [(1, A, 0), (2, B, 10)]


def at(seq: int, *history, crc: int | None = None, experiment_id: str | None = "e1") -> Position:
    return Position(experiment_id, list(history), seq, seq * 7 if crc is None else crc)


NOTHING = Position()

CASES = {
    "both empty": (NOTHING, NOTHING, "same", 0),
    "nothing here": (NOTHING, at(5, (1, A, 0)), "bucket_ahead", 0),
    "nothing there": (at(5, (1, A, 0)), NOTHING, "local_ahead", 0),
    "claimed there, nothing written": (NOTHING, at(0, (1, A, 0), crc=0), "same", 0),
    "begun here, claimed there": (at(5, (1, A, 0)), at(0, (1, A, 0), crc=0), "local_ahead", 0),
    "the same": (at(15, *LINE), at(15, *LINE), "same", 15),
    "the same but another content": (at(15, *LINE), at(15, *LINE, crc=1), "fork", 15),
    "ahead in the same epoch": (at(15, *LINE), at(12, *LINE), "local_ahead", 12),
    "ahead by an epoch": (at(15, *LINE), at(8, (1, A, 0)), "local_ahead", 8),
    "ahead by an epoch, at its adoption": (at(15, *LINE), at(10, (1, A, 0)), "local_ahead", 10),
    "behind in the same epoch": (at(12, *LINE), at(15, *LINE), "bucket_ahead", 12),
    "behind by an epoch": (at(7, (1, A, 0)), at(15, *LINE), "bucket_ahead", 7),
    "went on after the other took over": (at(12, (1, A, 0)), at(15, *LINE), "fork", 10),
    "took over while the other went on": (at(15, *LINE), at(12, (1, A, 0)), "fork", 10),
    "same number, another nonce": (at(15, *LINE), at(15, (1, A, 0), (2, C, 10)), "fork", 10),
    "another experiment": (at(15, *LINE), at(15, *LINE, experiment_id="e2"), "foreign", 15),
    "another history altogether": (at(15, (3, C, 0)), at(9, *LINE), "fork", 0),
    # 2 is claimed in the bucket before its commits come; then the local history says more of it
    "claimed there, not swapped yet": (
        at(107, (1, A, 0), (2, B, 105)),
        at(100, (1, A, 0), (2, B, 100)),
        "local_ahead",
        100,
    ),
    # 3 claimed in the bucket and mirrored nothing; 2 went on here
    "somebody claimed and did nothing": (
        at(105, (2, B, 90)),
        at(100, (2, B, 90), (3, C, 100)),
        "local_ahead",
        100,
    ),
    # a history says that 4 adopted 500, of which the bucket has 100 so far
    "in the middle of catching up": (
        at(505, (2, B, 0), (4, D, 500)),
        at(100, (2, B, 0), (4, D, 500)),
        "local_ahead",
        100,
    ),
    "taken over in the middle of catching up": (
        at(505, (2, B, 0), (4, D, 500)),
        at(130, (2, B, 0), (4, D, 500), (5, E, 100)),
        "fork",
        100,
    ),
}


@pytest.mark.parametrize("case", sorted(CASES))
def test_how_two_copies_stand(case):
    local, bucket, expected, common = CASES[case]
    assert relate(local, bucket) == expected
    if expected != "foreign":
        assert common_seq(local, bucket) == common
        assert common_seq(bucket, local) == common


def test_the_other_way_round_it_is_the_other_way_round():
    mirrored = {"local_ahead": "bucket_ahead", "bucket_ahead": "local_ahead"}
    for local, bucket, expected, _ in CASES.values():
        assert relate(bucket, local) == mirrored.get(expected, expected)


def test_any_two_copies_of_a_tree_of_takeovers(rng: random.Random):
    """Against a model that knows every line, commit by commit."""
    for _ in range(300):
        # a line is what each commit was written by; each new opening goes on from a prefix of some line
        lines: list[tuple[Position, list[tuple[int, bytes]]]] = [(Position("e1"), [])]
        for epoch in range(1, rng.randint(2, 7)):
            base, wrote = rng.choice(lines)
            adopted = rng.randint(0, len(wrote))
            nonce = rng.randbytes(16)
            grown = wrote[:adopted] + [(epoch, nonce)] * rng.randint(0, 5)
            # a takeover knows the history of what it read, and that is of the commits it adopted
            history = [*base.history, (epoch, nonce, adopted)]
            lines.append((Position("e1", history, len(grown), 0), grown))
        (one, first), (two, second) = rng.choice(lines), rng.choice(lines)
        common = 0
        while common < min(len(first), len(second)) and first[common] == second[common]:
            common += 1
        assert common_seq(one, two) == common, (one, two)
