"""Owns which configurations the demo tries and how far each is trained; knows no store and no process.

`SuccessiveHalving` trains all trials to the first rung (a number of epochs), the better half of them to the
second, the better half of those to the third, and so on. It decides only when a rung is complete, and by
values that do not depend on timing: an experiment that was killed ten times ends with the same table as one
that never was. Source: Jamieson and Talwalkar, "Non-stochastic Best Arm Identification and Hyperparameter
Optimization", 2016.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

__all__ = ["METRIC", "Plan", "SuccessiveHalving", "sample_config"]

METRIC: Final = "accuracy"

Verdict = Literal["RUN", "WAIT", "STOP"]


@dataclass(frozen=True)
class Plan:
    """What is to be tried; recorded in the experiment, so that a restart does the same.

    Attributes:
        trials: How many configurations.
        epochs: To how many epochs the best of them are trained.
        seed: What the configurations follow from.
    """

    trials: int = 24
    epochs: int = 24
    seed: int = 1

    @property
    def rungs(self) -> tuple[int, ...]:
        """Epochs at which trials are compared."""
        return tuple(sorted({max(1, self.epochs // part) for part in (8, 4, 2, 1)}))

    @property
    def epochs_in_all(self) -> int:
        """How many epochs the whole experiment takes if no trial fails."""
        total, members, before = 0, self.trials, 0
        for rung in self.rungs:
            total += members * (rung - before)
            members, before = max(1, members // 2), rung
        return total


def sample_config(seed: int, index: int) -> dict[str, Any]:
    """The hyperparameters of trial number `index` (from 0): the same whenever and wherever it is asked."""
    draw = random.Random(f"{seed}:{index}")
    return {
        "hidden": draw.choice([(32,), (64,), (128,), (64, 32), (128, 64)]),
        "activation": draw.choice(["relu", "tanh"]),
        "learning_rate": float(f"{10 ** draw.uniform(-4, -1.5):.2g}"),
        "alpha": float(f"{10 ** draw.uniform(-6, -1):.2g}"),
        "batch_size": draw.choice([8, 16, 32]),
        "seed": draw.randrange(2**31),
    }


class SuccessiveHalving:
    """The scheduler. Every method may be called again with what it was told before; it changes nothing then.

    Args:
        rungs: Epochs at which trials are compared, rising; the last one is where a trial is finished.
    """

    def __init__(self, rungs: Sequence[int]) -> None:
        self.rungs = tuple(rungs)
        self._scores: dict[str, dict[int, float]] = {}
        self._failed: set[str] = set()

    # -- what it is told -----------------------------------------------------------------------------

    def add_trials(self, trial_ids: Iterable[str]) -> None:
        """Name the trials that compete; their order settles ties."""
        for trial_id in trial_ids:
            self._scores.setdefault(trial_id, {})

    def add_scores(self, trial_id: str, scores: Mapping[int, float]) -> None:
        """What a trial reached at rungs, by epoch; for a scheduler whose own state is a moment old."""
        self._scores.setdefault(trial_id, {}).update(scores)

    def on_trial_result(self, trial_id: str, result: Mapping[str, Any]) -> str:
        """`"CONTINUE"`, or `"PAUSE"` at a rung, or `"STOP"` at the last one."""
        epoch = int(result["training_iteration"])
        if epoch not in self.rungs:
            return "CONTINUE"
        self._scores[trial_id][epoch] = float(result[METRIC])
        return "STOP" if epoch == self.rungs[-1] else "PAUSE"

    def on_trial_error(self, trial_id: str) -> None:
        """The trial will not come back: nobody waits for it."""
        self._failed.add(trial_id)

    # -- what it decides -----------------------------------------------------------------------------

    def scores(self, trial_id: str) -> dict[int, float]:
        """What the trial reached at each rung, by epoch."""
        return dict(self._scores[trial_id])

    def next_rung(self, trial_id: str) -> int:
        """The epoch to train the trial to."""
        return self.rungs[min(len(self._scores[trial_id]), len(self.rungs) - 1)]

    def verdict(self, trial_id: str) -> Verdict:
        """Whether a trial that is not running should run on, wait for the others of its rung, or stop."""
        reached = len(self._scores[trial_id])
        if trial_id in self._failed or reached == len(self.rungs):
            return "STOP"
        if reached == 0:
            return "RUN"
        promoted = self._promoted(reached - 1)
        if promoted is None:
            return "WAIT"
        return "RUN" if trial_id in promoted else "STOP"

    def choose_trial_to_run(self, trial_ids: Sequence[str]) -> str | None:
        """The first of these that should run, or `None` to wait."""
        return next((each for each in trial_ids if self.verdict(each) == "RUN"), None)

    def _promoted(self, rung: int) -> list[str] | None:
        """Who goes on from the rung with this index; `None` while somebody is still on the way to it."""
        members: list[str] | None = list(self._scores)
        if rung > 0:
            members = self._promoted(rung - 1)
        epoch = self.rungs[rung]
        if members is None:
            return None
        arrived = [each for each in members if epoch in self._scores[each]]
        if any(each not in self._failed for each in members if epoch not in self._scores[each]):
            return None
        ranked = sorted(arrived, key=lambda each: -self._scores[each][epoch])
        return ranked[: max(1, len(members) // 2)]

    # -- what the store keeps ------------------------------------------------------------------------

    def get_state(self) -> dict[str, Any]:
        """Everything it was told, as a msgpack value."""
        return {
            "rungs": list(self.rungs),
            "scores": {each: dict(scores) for each, scores in self._scores.items()},
            "failed": sorted(self._failed),
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Take back what `get_state` returned."""
        self.rungs = tuple(state["rungs"])
        self._scores = {each: dict(scores) for each, scores in state["scores"].items()}
        self._failed = set(state["failed"])
