"""Owns what the demo says after a crash: what was kept, what it goes on from, how much work was lost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from asynctune.demo.heartbeat import INTERVAL_S, LastWords
from asynctune.trial import Trial, TrialStatus

__all__ = ["Resumption", "examine", "tell"]

_CLOCK_SLACK_S: Final = 1.0
"""A heartbeat older than the newest checkpoint by more than this was not written by the driver that died."""


@dataclass(frozen=True, slots=True)
class Resumption:
    """What a restart finds.

    Attributes:
        finished: Trials that are through and stay so.
        paused: Trials that wait at a rung, with a checkpoint.
        resumed: Name, id and epoch of the newest checkpoint (0: none) of each trial that was in training.
        died_at: When the driver ended, seconds since the Unix epoch; `None` if that cannot be known.
        closed: Whether it had stopped by itself.
        lost_ms: Training since the newest checkpoint by trial id, in milliseconds; `None`: cannot be known.
        lost_records_ms: How old the oldest change was that was not on disk yet; `None`: cannot be known.
    """

    finished: int
    paused: int
    resumed: Sequence[tuple[str, str, int]]
    died_at: float | None
    closed: bool
    lost_ms: dict[str, float] | None
    lost_records_ms: float | None


def examine(trials: Sequence[Trial], words: LastWords | None, opening: int) -> Resumption:
    """Compare what is on disk with the last words of the driver before.

    Args:
        trials: All trials, as the store has found them.
        words: The newest heartbeat.
        opening: Number of this opening; the driver before had the one below.
    """
    finished = [trial for trial in trials if trial.status.is_finished]
    stopped = [
        trial
        for trial in trials
        if trial.status is TrialStatus.RUNNING or (trial.status is TrialStatus.PENDING and trial.num_results)
    ]
    resumed = [(each.trial_name, each.trial_id, _epoch(each)) for each in stopped]
    newest = max((c.committed_at or 0.0 for trial in trials for c in trial.checkpoints), default=0.0)
    died_at: float | None = None
    lost: dict[str, float] | None = None
    records: float | None = None
    if words is not None and words.opening < opening - 1:
        # The driver before died between opening the experiment and its first beat: it had trained nothing.
        lost, records = {}, 0.0
    elif words is not None and words.opening == opening - 1 and words.at > newest - _CLOCK_SLACK_S:
        died_at, records = words.at, words.dirty_s * 1000
        lost = {each: max(0.0, words.at - unsaved.since) * 1000 for each, unsaved in words.training.items()}
    return Resumption(
        finished=len(finished),
        paused=sum(trial.status is TrialStatus.PAUSED for trial in trials),
        resumed=resumed,
        died_at=died_at,
        closed=words is not None and words.closed and died_at is not None,
        lost_ms=lost,
        lost_records_ms=records,
    )


def _epoch(trial: Trial) -> int:
    return max((c.metrics["epoch"] for c in trial.checkpoints), default=0)


def tell(found: Resumption, total: int, now: float) -> list[str]:
    """The same in lines for people."""
    lines = [_how_it_ended(found, now)]
    lines.append(f"  kept     {found.finished} of {total} trials finished before, {found.paused} paused")
    for name, _, epoch in found.resumed:
        origin = (
            f"from its checkpoint of epoch {epoch}" if epoch else "from the beginning: it had no checkpoint"
        )
        lines.append(f"  resumed  {name} {origin}")
    if not found.resumed:
        lines.append("  resumed  nothing was being trained")
    if found.lost_ms is None or found.lost_records_ms is None:
        lines.append("  lost     not known: that driver has left no heartbeat (after a power loss, for one)")
        return lines
    names = {trial_id: name for name, trial_id, _ in found.resumed}
    parts = [f"{names.get(trial_id, trial_id)} {ms:,.0f} ms" for trial_id, ms in found.lost_ms.items()]
    detail = f" ({', '.join(parts)})" if parts else ""
    lost_ms = sum(found.lost_ms.values())
    lines.append(f"  lost     {lost_ms:,.0f} ms of training since the newest checkpoints{detail}")
    if not found.closed:
        every_ms = INTERVAL_S * 1000
        lines.append(
            f"           {found.lost_records_ms:,.0f} ms of records: age of the oldest one not yet on disk"
        )
        lines.append(
            f"           as of the last heartbeat of that driver, which wrote one every {every_ms:.0f} ms"
        )
    return lines


def _how_it_ended(found: Resumption, now: float) -> str:
    if found.died_at is None:
        return "Going on after a driver that ended before it trained anything, or left no trace of when:"
    at = datetime.fromtimestamp(found.died_at).astimezone().strftime("%H:%M:%S.%f")[:-3]
    how = "was stopped" if found.closed else "died"
    return f"Going on: the driver before {how} at {at}, {now - found.died_at:,.1f} s ago."
