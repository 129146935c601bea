"""Which configurations are tried and how far each is trained; knows no store and no process.

All trials are trained to the first rung (a number of epochs), the better half of them to the second, the better half
of those to the third, and so on. It is decided only when a rung is complete, and by values that do not depend on
timing: an experiment that was killed ten times ends with the same table as one that never was. Source: Jamieson and
Talwalkar, "Non-stochastic Best Arm Identification and Hyperparameter Optimization", 2016.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any


def rungs_of(epochs: int) -> tuple[int, ...]:
    """Epochs at which trials are compared."""
    return tuple(sorted({max(1, epochs // part) for part in (8, 4, 2, 1)}))


def sample_config(index: int) -> dict[str, Any]:
    """The hyperparameters of trial number `index` (from 0): the same whenever and wherever it is asked."""
    draw = random.Random(index)
    return {
        "units": draw.choice([16, 32, 64, 128]),
        "learning_rate": float(f"{10 ** draw.uniform(-4, -1.5):.2g}"),
        "batch_size": draw.choice([16, 32, 64]),
        "seed": index,
    }


class SuccessiveHalving:
    """The scheduler. Every method may be called again with what it was told before; it changes nothing then."""

    def __init__(self, rungs: Sequence[int]) -> None:
        self.rungs = tuple(rungs)
        self.reached: dict[str, dict[int, float]] = {}  # by trial, in the order of trials, which settles ties
        self.failed: set[str] = set()

    def add_scores(self, trial_id: str, scores: Mapping[int, float]) -> None:
        """A trial that competes, and what it reached at rungs."""
        self.reached.setdefault(trial_id, {}).update(scores)

    def on_trial_result(self, trial_id: str, result: Mapping[str, Any]) -> str:
        epoch = int(result["training_iteration"])
        if epoch not in self.rungs:
            return "CONTINUE"
        self.reached[trial_id][epoch] = float(result["accuracy"])
        return "STOP" if epoch == self.rungs[-1] else "PAUSE"

    def on_trial_error(self, trial_id: str) -> None:
        """The trial will not come back: nobody waits for it."""
        self.failed.add(trial_id)

    def scores(self, trial_id: str) -> dict[int, float]:
        """What the trial reached at each rung, by epoch."""
        return dict(self.reached[trial_id])

    def next_rung(self, trial_id: str) -> int:
        """The epoch to train the trial to."""
        return self.rungs[min(len(self.reached[trial_id]), len(self.rungs) - 1)]

    def verdict(self, trial_id: str) -> str:
        """Whether a trial that is not running should `"RUN"` on, `"WAIT"` for the others of its rung, or `"STOP"`."""
        reached = len(self.reached[trial_id])
        if trial_id in self.failed or reached == len(self.rungs):
            return "STOP"
        if reached == 0:
            return "RUN"
        promoted = self.promoted(reached - 1)
        if promoted is None:
            return "WAIT"
        return "RUN" if trial_id in promoted else "STOP"

    def choose_trial_to_run(self, trial_ids: Sequence[str]) -> str | None:
        return next((each for each in trial_ids if self.verdict(each) == "RUN"), None)

    def promoted(self, rung: int) -> list[str] | None:
        """Who goes on from the rung with this index; `None` while somebody is still on the way to it."""
        members = list(self.reached) if rung == 0 else self.promoted(rung - 1)
        if members is None:
            return None
        epoch = self.rungs[rung]
        arrived = [each for each in members if epoch in self.reached[each]]
        if any(each not in self.failed for each in members if epoch not in self.reached[each]):
            return None
        ranked = sorted(arrived, key=lambda each: -self.reached[each][epoch])
        return ranked[: max(1, len(members) // 2)]

    def get_state(self) -> dict[str, Any]:
        return {
            "rungs": self.rungs,
            "reached": {each: dict(scores) for each, scores in self.reached.items()},
            "failed": sorted(self.failed),
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        self.rungs = tuple(state["rungs"])
        self.reached = {each: dict(scores) for each, scores in state["reached"].items()}
        self.failed = set(state["failed"])
