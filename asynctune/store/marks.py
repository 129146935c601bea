"""Owns marks: what a checkpoint remembers of its trial's timeline, so that the trial can be cut back to it. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from asynctune.store.records import Records
from asynctune.store.runs import Run

__all__ = ["cut_back", "kept_rows", "mark", "mark_of"]


def mark(run: Run) -> dict[str, Any]:
    """What a checkpoint saved at this moment remembers."""
    return {
        "num_results": run.num_results,
        "iteration": run.iteration,
        "time_total_s": run.time_total_s,
        "reported_at": run.reported_at,
        "summary": run.summary,
        "metrics": run.metrics,
    }


def mark_of(records: Records, trial_id: str, step: int | None = None) -> dict[str, Any]:
    """The mark of the trial's newest checkpoint up to `step`; empty without one: the beginning."""
    for candidate in reversed(records.steps(trial_id)):
        if step is None or candidate <= step:
            record = records.get(f"checkpoint/{trial_id}/{candidate}") or {}
            if "timeline" in record and record.get("state", "live") == "live":
                return dict(record["timeline"])
    return {}


def kept_rows(found: Mapping[str, Any]) -> int:
    """How many rows are left by cutting back to this mark."""
    return int(found.get("num_results", 0))


def cut_back(run: Run, found: Mapping[str, Any]) -> int | None:
    """Change `run` to what it was at the mark; the number of rows it keeps, `None` if it has no more than those."""
    keep = kept_rows(found)
    if keep >= run.num_results:
        return None
    run.num_results = keep
    run.iteration = int(found.get("iteration", 0))
    run.time_total_s = float(found.get("time_total_s", 0.0))
    run.reported_at = found.get("reported_at")
    run.summary = found.get("summary", [])
    run.metrics = found.get("metrics", {})
    return keep
