"""Plays drivers against each other on one bucket that fails at random; the full lab 1,000 times."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Iterable

from tests.lab.registry import Lab, Row, experiment
from tests.state.mirror.simulation import simulate


@experiment("interleavings", "two and three drivers on one bucket that fails at random, in one process")
def interleavings(lab: Lab) -> Iterable[Row]:
    logging.getLogger("asynctune").setLevel(logging.CRITICAL)  # a bucket that is away is a warning
    for what, conditions, full in (("with conditions", True, 1000), ("without conditions", False, 300)):
        outcomes: Counter[str] = Counter()
        acknowledged = 0
        total = lab.times(full, 20)
        for number in lab.progress(range(total), "interleavings", total):
            directory = lab.directory / f"{what}-{number}"
            directory.mkdir()
            seed = lab.rng.getrandbits(32)
            try:
                played = asyncio.run(
                    simulate(str(directory), seed, drivers=2 + number % 2, conditions=conditions)
                )
            except Exception as error:
                error.add_note(f"the interleaving of seed {seed}, {what}")
                raise
            outcomes += played.outcomes
            acknowledged += played.acknowledged
        yield Row.tally(f"drivers, {what}", outcomes)
        yield Row(
            f"flushes acknowledged, {what}", acknowledged, "all there" if conditions else "not compared"
        )
