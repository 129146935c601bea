"""Owns the two records about the experiment as a whole: what it is, and who has it open. No I/O."""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import Any

from asynctune.config import CheckpointConfig
from asynctune.store.opening import OpenedForWriting, Opening
from asynctune.store.records import FORMAT, Records

__all__ = ["experiment_record", "opening_record"]


def experiment_record(
    records: Records, opened: OpenedForWriting, path: str, config: CheckpointConfig | None
) -> dict[str, Any]:
    """The record `experiment`, made for a new one; brought up to date where another `config` is given."""
    record: dict[str, Any] | None = records.get("experiment")
    if record is None:
        record = {
            "experiment_id": opened.experiment_id,
            "name": os.fsencode(os.path.basename(path)).decode("utf-8", "replace"),
            "created_at": opened.opening.opened_at,
            "prefix": opened.experiment_id[:5],
            "format": FORMAT,
            "checkpoint_config": asdict(config or CheckpointConfig()),
        }
        records.put("experiment", record)
    elif config is not None and asdict(config) != record["checkpoint_config"]:
        record["checkpoint_config"] = asdict(config)
        records.put("experiment", record)
    return record


def opening_record(opening: Opening, closed_at: float | None) -> dict[str, Any]:
    """The record `opening`; `closed_at` in seconds since the Unix epoch, `None` while it is open."""
    return {
        "epoch": opening.epoch,
        "hostname": opening.hostname,
        "pid": opening.pid,
        "opened_at": opening.opened_at,
        "closed_at": closed_at,
    }
