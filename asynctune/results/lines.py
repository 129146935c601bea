"""Owns row operations as lines of result.json: what each says, rendered. Pure; which lines stay is `timeline`'s."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from asynctune.breathing import breathe
from asynctune.results.render import json_text, plain
from asynctune.results.rows import Cut, OpeningInfo, ResultRow, RowOperation, TrialInfo, expand
from asynctune.results.timeline import KnownLine

__all__ = ["changes_of"]


def changes_of(
    trial: TrialInfo, operations: Iterable[tuple[RowOperation, OpeningInfo]]
) -> tuple[list[KnownLine | Cut], bool]:
    """What a trial's operations, in order, mean for its lines; and whether the trial is announced among them."""
    config = plain(trial.config)
    text = json_text(config)
    changes: list[KnownLine | Cut] = []
    is_announced = False
    for each, opening in operations:
        breathe()
        if isinstance(each, ResultRow):
            changes.append(_known_line(each, trial, opening, config, text))
        elif isinstance(each, Cut):
            changes.append(each)
        else:
            is_announced = True
    return changes, is_announced


def _known_line(
    row: ResultRow, trial: TrialInfo, opening: OpeningInfo, config: Any, config_text: bytes
) -> KnownLine:
    full = expand(row, trial, opening)
    del full["config"]  # which may be large, and is the same in every row
    full = plain(full)
    text = b'%s, "config": %s}' % (json_text(full)[:-1], config_text)
    full["config"] = config
    return KnownLine(row.ordinal, text, full)
