"""Checkpoints and a bucket: each operation of a run fails, or is the driver's last; they fit together all the same."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Coroutine, Iterable
from typing import Any

from tests.checkpoints import bucket_scenes as scenes
from tests.checkpoints.buckets import RULES
from tests.lab.registry import Lab, Row, experiment

KEEP = (None, 1, 3)
FEW = 3


@experiment("bucket", "every operation of a run with uploads and retention fails, or is the driver's last")
def bucket(lab: Lab) -> Iterable[Row]:
    logging.getLogger("asynctune").setLevel(logging.ERROR)
    for rules, order in ((RULES, "in any order"), (scenes.IN_ORDER, "in order")):
        for name, fault in scenes.FAULTS.items():
            outcomes: Counter[str] = Counter()
            for keep in KEEP:
                directory = lab.directory / f"{order}-{name}-{keep}"
                count = asyncio.run(scenes.operations(directory, keep, rules))
                for number in lab.few(range(1, count + 1), FEW):
                    asyncio.run(scenes.fails_once(directory / str(number), keep, rules, fault, number))
                    outcomes["right at the end"] += 1
            yield Row.tally(f"an operation {name}, parts {order}", outcomes)
    for what, scene in SCENES.items():
        outcomes = Counter()
        for keep in KEEP:
            directory = lab.directory / f"{what}-{keep}"
            count = asyncio.run(scenes.operations(directory, keep))
            for number in lab.progress(lab.few(range(1, count + 1), FEW), what, count):
                asyncio.run(scene(directory / str(number), keep, number))
                outcomes["right at the end"] += 1
        yield Row.tally(what, outcomes)


def _opened_again(kill: scenes.Kill, *, notes: bool) -> Any:
    def scene(directory: Any, keep: int | None, number: int) -> Coroutine[Any, Any, None]:
        return scenes.killed_and_opened_again(directory, keep, kill, number, notes=notes)

    return scene


SCENES: dict[str, Any] = {
    "away from an operation on": scenes.is_away,
    "killed before an operation, opened again": _opened_again(scenes.before, notes=True),
    "killed after an operation, opened again": _opened_again(scenes.after, notes=True),
    "killed, opened again without notes": _opened_again(scenes.after, notes=False),
    "killed, taken over elsewhere": scenes.killed_and_taken_over,
}
