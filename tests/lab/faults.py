"""Lets each operation of the disk fail, in every way there is, and checks what was acknowledged."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Iterable

from tests.crash.life import FAULTS, count_operations, run_with_fault
from tests.lab.registry import Lab, Row, experiment


@experiment("faults", "EIO, ENOSPC and short writes at each operation of the disk, through the whole store")
def faults(lab: Lab) -> Iterable[Row]:
    logging.getLogger("asynctune").setLevel(logging.CRITICAL)  # every fault is a warning
    for index, name in enumerate(FAULTS):
        base = lab.directory / str(index)
        (base / "counting").mkdir(parents=True)
        total = asyncio.run(count_operations(base / "counting", name))
        outcomes: Counter[str] = Counter()
        for nth in lab.progress(lab.few(range(1, total + 1), 10), name, total):
            directory = base / str(nth)
            directory.mkdir()
            try:
                outcomes[asyncio.run(run_with_fault(directory, name, nth))] += 1
            except BaseException as error:
                error.add_note(f"{name}, at operation {nth}")
                raise
        yield Row.tally(name, outcomes)
