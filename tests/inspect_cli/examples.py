"""Trials and reports with fixed values, for tests that need no store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from asynctune.inspect.building import trial_row
from asynctune.inspect.report import CheckpointEntry, Head, Presence, TrialRow, Tuning, Writer
from asynctune.trial import Checkpoint, Trial, TrialStatus

START = 1_700_000_000.0
NOW = START + 3600


def a_trial(number: int = 0, **given: Any) -> Trial:
    fields: dict[str, Any] = {
        "trial_id": f"3f9ac_{number:05d}",
        "trial_name": f"3f9ac_{number:05d}",
        "status": TrialStatus.TERMINATED,
        "config": {"lr": 10.0**-number, "units": 64},
        "metadata": {},
        "last_result": {"training_iteration": 8, "time_total_s": 12.5, "loss": 0.5 + number / 10, "acc": 0.9},
        "num_results": 8,
        "error": None,
        "num_failures": 0,
        "created_at": START,
        "started_at": START + 1,
        "ended_at": START + 101,
    }
    return Trial(**(fields | given))


def a_checkpoint(step: int = 8, number: int = 0, **given: Any) -> Checkpoint:
    trial_id = f"3f9ac_{number:05d}"
    fields: dict[str, Any] = {
        "path": Path(f"/data/digits/{trial_id}/checkpoint_{step:06d}"),
        "trial_id": trial_id,
        "step": step,
        "metrics": {"loss": 0.5},
        "files": {"weights.npz": 2048, "notes/a.txt": 12},
        "size_bytes": 2060,
        "committed_at": START + 100,
    }
    return Checkpoint(**(fields | given))


def an_entry(
    step: int = 8, presence: Presence = "present", uri: str | None = None, **given: Any
) -> CheckpointEntry:
    return CheckpointEntry(a_checkpoint(step, **given), presence, uri)


def a_head(**given: Any) -> Head:
    fields: dict[str, Any] = {
        "location": "/data/digits",
        "name": "digits",
        "experiment_id": "3f9ac0d1",
        "created_at": START,
        "last_change_at": NOW - 3,
        "as_of": NOW,
        "writer": Writer("live", pid=4242, hostname="node7", since=START),
        "tear": None,
        "damage": (),
        "trials_total": 1,
        "metadata": {},
    }
    return Head(**(fields | given))


def a_tuning(**given: Any) -> Tuning:
    fields: dict[str, Any] = {
        "form": 1,
        "trainable": "train",
        "kind": "function",
        "runner": None,
        "searcher": None,
        "search": "random and grid search",
        "scheduler": "Halving",
        "callbacks": ("Log",),
        "metric": "loss",
        "mode": "min",
        "num_samples": 2,
        "grid_size": 4,
        "samples_planned": 8,
        "samples_proposed": 6,
        "max_concurrent_trials": None,
        "stop": {"training_iteration": 8},
        "stop_function": None,
        "max_failures": 2,
        "fail_fast": False,
        "restores": 3,
        "finished": False,
    }
    return Tuning(**(fields | given))


def a_row(
    number: int = 0, presence: Presence | None = None, head: Head | None = None, **given: Any
) -> TrialRow:
    return trial_row(a_trial(number, **given), head or a_head(), presence)
