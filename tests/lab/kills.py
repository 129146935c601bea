"""Kills drivers at random moments, and processes at every operation of the disk; lets them race for an experiment."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Iterable

from tests.crash.killing import kill_many
from tests.crash.life import count_operations, kill_at
from tests.crash.racing import race
from tests.lab.registry import Lab, Row, experiment


@experiment("kills", "SIGKILL of a driver that flushes, saves, reports and requeues, at random moments")
def kills(lab: Lab) -> Iterable[Row]:
    logging.getLogger("asynctune").setLevel(logging.CRITICAL)  # each orphan set aside is a warning
    for what, full, small in (("snapshots now and then", 200, 20_000), ("snapshots all the time", 100, 200)):
        directory = lab.directory / what.replace(" ", "-")
        directory.mkdir()
        outcomes = Counter(asyncio.run(kill_many(directory, lab.rng, lab.times(full, 10), small=small)))
        promised = outcomes.pop("acknowledged")
        yield Row.tally(f"killed, {what}", outcomes)
        yield Row(f"acknowledged before, {what}", promised, "all there")


@experiment("kills at operations", "SIGKILL at each operation that changes the disk")
def kills_at_operations(lab: Lab) -> Iterable[Row]:
    logging.getLogger("asynctune").setLevel(logging.CRITICAL)
    counting = lab.directory / "counting"
    counting.mkdir()
    total = asyncio.run(count_operations(counting, "any"))
    outcomes: Counter[str] = Counter()
    for nth in lab.progress(lab.few(range(1, total + 10), 10), "operations", total):
        directory = lab.directory / str(nth)
        directory.mkdir()
        outcomes[asyncio.run(kill_at(directory, "", nth))] += 1
    yield Row.tally("killed at an operation", outcomes)


@experiment("races", "processes that open one experiment in the same moment")
def races(lab: Lab) -> Iterable[Row]:
    outcomes = Counter(asyncio.run(race(lab.directory, lab.times(400, 12), count=4)))
    yield Row.tally("answers to openings", outcomes)
