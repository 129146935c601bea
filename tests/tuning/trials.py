"""Trials as a Tuner's display sees them."""

from __future__ import annotations

from asynctune import Trial, TrialStatus

__all__ = ["Trials", "trial"]


def trial(trial_id, status="RUNNING", row=None, *, config=None, error=None, failures=0):
    """A trial with this last result."""
    return Trial(
        trial_id=trial_id,
        trial_name=f"train_{trial_id}",
        status=TrialStatus(status),
        config={"lr": 0.1} if config is None else config,
        metadata={},
        last_result={} if row is None else row,
        num_results=0 if row is None else 1,
        error=error,
        num_failures=failures,
        created_at=0.0,
        started_at=None,
        ended_at=None,
        checkpoints=(),
    )


class Trials:
    """Those of an experiment, by id."""

    def __init__(self):
        self.known = {}

    def __call__(self, trial_id):
        return self.known[trial_id]

    def put(self, progress, trial_id, *args, **kwargs):
        """One has changed."""
        self.known[trial_id] = trial(trial_id, *args, **kwargs)
        progress.changed(trial_id)
