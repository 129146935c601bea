"""Ends Tuners of every kind at random moments; the full lab 200 times."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

from tests.crash.tuner_killing import MOST, kill_tuners
from tests.crash.tuning import KINDS
from tests.lab.registry import Lab, Row, experiment


@experiment("tuner", "SIGKILL, SIGTERM and SIGINT of a Tuner, and SIGKILL of its workers, at random moments")
def tuner(lab: Lab) -> Iterable[Row]:
    logging.getLogger("asynctune").setLevel(logging.CRITICAL)  # each orphan set aside is a warning
    for kind, full in zip(KINDS, (80, 60, 60), strict=False):
        directory = lab.directory / kind
        directory.mkdir()
        tally = asyncio.run(kill_tuners(directory, lab.rng, lab.times(full, 10), kind))
        signals = ", ".join(f"{count} {name}" for name, count in tally.kills.most_common())
        workers = f", {tally.workers} workers killed" if tally.workers else ""
        yield Row(
            f"ended, {kind}",
            tally.kills.total(),
            f"{signals}{workers}; {tally.restores} restores of {tally.experiments} experiments; worked "
            f"{tally.ratio:.2f} × the minimum (at most {MOST} ×)",
        )
