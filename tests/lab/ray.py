"""Kills workers, actors, nodes and drivers of experiments on Ray at random moments."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Iterable

from tests.lab.registry import Lab, Row, experiment
from tests.runners.cluster import ray_cluster, why_no_cluster
from tests.runners.ray_killing import NODES, kill_round


@experiment("ray", "SIGKILL of workers, actors, nodes and drivers of experiments on Ray, at random moments")
def ray(lab: Lab) -> Iterable[Row]:
    logging.getLogger("asynctune").setLevel(logging.CRITICAL)
    if (reason := why_no_cluster()) is not None:
        return [Row("experiments on Ray", 0, reason)]
    outcomes: Counter[str] = Counter()
    count = lab.times(60, 3)
    with ray_cluster(NODES) as cluster:
        for number in lab.progress(range(count), "experiments", count):
            kills = lab.rng.randint(1, 4)
            outcomes += asyncio.run(kill_round(cluster, lab.rng, f"killed-{number}", kills))
    failures = outcomes.pop("failures", 0)
    return [
        Row("experiments on Ray", count, "every row once, all that was acknowledged there"),
        Row.tally("killed under them", outcomes),
        Row("starts of trials that failed by it", failures, "tried again"),
    ]
