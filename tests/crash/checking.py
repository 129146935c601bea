"""What must hold of an experiment after its driver died: nothing promised is missing, nothing listed is broken."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

from asynctune.checkpoints.disk import DiskThreads
from asynctune.checkpoints.verify import verify_directory
from asynctune.files import LocalFiles
from asynctune.state.recovery import recover
from asynctune.store.store import ExperimentStore
from tests.store.scenes import result_rows

__all__ = ["check_after_crash", "check_experiment", "promises"]


def promises(log: Path) -> list[dict[str, Any]]:
    """The whole lines of a driver's log."""
    if not log.exists():
        return []
    return [json.loads(line) for line in log.read_text().splitlines(keepends=True) if line.endswith("\n")]


async def check_after_crash(location: Path, log: Path) -> str:
    """Open what a killed driver left, for reading and for writing, and compare it with what the driver was told."""
    told = promises(log)
    if not any(entry["kind"] == "opened" for entry in told):
        return "killed before it was open"
    reached = next((e["value"] for e in reversed(told) if e["kind"] == "flushed"), None)
    asked = [e["value"] for e in told if e["kind"] == "tick"]
    before = await asyncio.to_thread(recover, str(location / ".asynctune"), LocalFiles())
    async with ExperimentStore.open(location, "read") as reader:
        seen = reader.metadata.get("tick")
        trials = {trial.trial_id: trial for trial in reader.trials}
        assert reader.stats().committed_seq == before.seq
    if reached is not None:
        assert seen is not None, f"{reached} was promised, and nothing is there"
        assert seen >= reached, f"{reached} was promised, and {seen} is there"
    assert seen is None or seen in asked, f"{seen} was never asked for"
    async with ExperimentStore.open(location) as store:
        assert {trial.trial_id: trial for trial in store.trials} == trials  # opening changed nothing
        check_saved(store, told)
        await store.flush()
        await check_experiment(store)
        tear = store.opening.tear
    check_result_files(location, trials)
    assert not leftovers(location), leftovers(location)
    return "a tear was left behind" if tear else "clean"


def check_saved(store: ExperimentStore, told: list[dict[str, Any]]) -> None:
    """Every acknowledged checkpoint is listed, unless newer ones have pushed it out."""
    for entry in told:
        if entry["kind"] != "saved":
            continue
        steps = [checkpoint.step or 0 for checkpoint in store.checkpoints(entry["trial"])]
        assert entry["step"] in steps or (len(steps) >= 3 and min(steps) > entry["step"]), (entry, steps)


async def check_experiment(store: ExperimentStore) -> None:
    """Every listed checkpoint verifies; what stands below a trial is listed, or on its way out."""
    threads = DiskThreads()
    try:
        for trial in store.trials:
            for checkpoint in trial.checkpoints:
                record = store._records.get(f"checkpoint/{trial.trial_id}/{checkpoint.step}")
                assert record is not None
                report = await verify_directory(
                    str(checkpoint.path), record["sha256"], files=LocalFiles(), threads=threads
                )
                assert report.intact, str(report)
            steps = [checkpoint.step or 0 for checkpoint in trial.checkpoints]
            assert steps == sorted(set(steps))
    finally:
        threads.close()


def check_result_files(location: Path, trials: dict[str, Any]) -> None:
    """result.json has exactly the committed rows of the present timeline, each once, in order."""
    for trial in trials.values():
        rows = result_rows(location / trial.trial_name)
        assert len(rows) == trial.num_results, (trial.trial_id, len(rows), trial.num_results)
        iterations = [row["training_iteration"] for row in rows]
        assert iterations == sorted(set(iterations)), iterations
        marks = [row["mark"] for row in rows]
        assert len(set(marks)) == len(marks), marks
        if rows:
            assert rows[-1]["mark"] == trial.last_result["mark"]
            assert iterations[-1] == trial.last_result["training_iteration"]


def leftovers(location: Path) -> list[str]:
    """What a clean close must not leave: stages, private copies, claims and snapshots cut short."""
    state = location / ".asynctune"
    found = [name for name in os.listdir(state) if name.startswith((".claim-", ".snap-"))]
    for folder in ("staging", "restored"):
        if (state / folder).is_dir():
            found += [f"{folder}/{name}" for name in os.listdir(state / folder)]
    return found
