"""What must hold of an experiment with a copy whenever it is opened again: told by the log of those that worked on it.

The log is replayed. A state that is found has to be one that there was, as a whole, at some moment from the last
promise on that still counts: what the copy promised always does, what the disk promised as long as that disk is there.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

from asynctune.checkpoints.records import CheckpointRecord
from asynctune.clock import SystemClock
from asynctune.inspect.garbage import find_garbage
from asynctune.inspect.verifying import verify
from tests.crash.mirror_places import Place

__all__ = ["State", "check_bucket", "check_log", "lost_epochs"]

Rows = dict[str, tuple[tuple[int, str], ...]]
Steps = Mapping[str, Sequence[Sequence[float]]]


@dataclass(frozen=True)
class State:
    """What an experiment holds: a number that rises, and each trial's rows."""

    tick: str | None = None
    rows: Rows = field(default_factory=dict)

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> State:
        """As a line of the log tells it."""
        rows = {trial: tuple((n, mark) for n, mark in each) for trial, each in entry["rows"].items()}
        return cls(entry["tick"], rows)

    def after(self, entry: Mapping[str, Any]) -> State:
        """After what a line tells was done."""
        kind = entry["kind"]
        if kind == "tick":
            return State(entry["value"], self.rows)
        trial = entry.get("trial", "")
        if kind == "trial":
            return State(self.tick, {**self.rows, trial: ()})
        if kind == "row":
            row = entry["iteration"], entry["mark"]
            return State(self.tick, {**self.rows, trial: (*self.rows[trial], row)})
        if kind == "cut":
            kept = tuple(row for row in self.rows[trial] if row[0] <= entry["after"])
            return State(self.tick, {**self.rows, trial: kept})
        return self


@dataclass
class _Promise:
    """What one place promised: the states that may be found there, and the checkpoints that have to be."""

    states: list[State] = field(default_factory=lambda: [State()])
    steps: Steps = field(default_factory=dict)

    def made(self, state: State, steps: Steps) -> None:
        self.states, self.steps = [state], steps

    def done(self, state: State) -> None:
        if self.states[-1] != state:
            self.states.append(state)

    def found(self, state: State) -> None:
        """What came after this state is gone."""
        last = max(index for index, known in enumerate(self.states) if known == state)
        del self.states[last + 1 :]


def check_log(told: Sequence[Mapping[str, Any]], keep: int, *, scored: bool) -> int:
    """Replay a log, and compare all that was found with what had been promised; how many promises there were.

    Args:
        told: The lines of all processes, with a line `lost` of the test's own where a machine was lost.
        keep: How many checkpoints of a trial are kept.
        scored: Whether those with the best scores are.
    """
    state, count, lost = State(), 0, False
    here, there = _Promise(), _Promise()
    for number, entry in enumerate(told):
        kind = entry["kind"]
        if kind == "lost":
            lost = True
        elif kind == "found":
            state = State.of(entry)
            promise = there if lost else here
            assert state in promise.states, _explained(number, state, promise.states)
            _check_steps(promise.steps, entry["steps"], keep, scored=scored)
            for each in state.rows.values():
                iterations = [row[0] for row in each]
                assert iterations == list(range(1, len(each) + 1)), iterations
            here.made(state, entry["steps"])
            if lost:
                there.made(state, entry["steps"])
            elif state in there.states:
                there.found(state)
            lost = False
        elif kind in {"flushed", "mirrored"}:
            count += 1
            here.made(state, entry["steps"])
            if kind == "mirrored":
                there.made(state, entry["steps"])
        else:
            state = state.after(entry)
            here.done(state)
            there.done(state)
    return count


def _explained(number: int, state: State, states: Sequence[State]) -> str:
    ticks = [each.tick for each in states]
    lines = [f"line {number}: found {state.tick}, and from {ticks[0]} to {ticks[-1]} was promised"]
    nearest = next((each for each in reversed(states) if each.tick == state.tick), states[-1])
    for trial in sorted({*nearest.rows, *state.rows}):
        was, now = nearest.rows.get(trial), state.rows.get(trial)
        if was != now:
            lines.append(f"trial {trial}: {now and now[-4:]}, and was {was and was[-4:]}")
    return "\n".join(lines)


def _check_steps(promised: Steps, found: Steps, keep: int, *, scored: bool) -> None:
    """A checkpoint that was promised is there, unless enough better ones are."""

    def rank(each: Sequence[float]) -> tuple[float, ...]:
        return (each[1], each[0]) if scored else (each[0],)

    for trial, steps in promised.items():
        there = found[trial]
        assert len(there) <= keep + scored, (trial, there)
        for each in steps:
            if list(each) in [list(other) for other in there]:
                continue
            better = [other for other in there if rank(other) > rank(each)]
            assert len(better) >= keep, f"trial {trial}: {each} was promised, and {there} is there"


def lost_epochs(told: Sequence[Mapping[str, Any]]) -> int:
    """The last epoch of which a machine was lost with what it alone knew; 0: none."""
    lost = last = 0
    for entry in told:
        last = entry.get("epoch", last)
        if entry["kind"] == "lost":
            lost = last
    return lost


async def check_bucket(place: Place, name: str, state: State, steps: Steps, lost: int = 0) -> None:
    """After a clean end the copy holds just what the experiment does, all of it whole.

    Args:
        place: Where it is.
        name: Of the experiment.
        state: What it holds.
        steps: The checkpoints.
        lost: Up to this epoch checkpoints may have got there whose records were lost with a machine.
    """
    async with place.read(name) as reader:
        assert reader.writer_info is None
        seen = {}
        for trial in reader.trials:
            rows = await reader.history(trial.trial_id)
            seen[trial.trial_id] = tuple((row["training_iteration"], row["mark"]) for row in rows)
            assert len(rows) == trial.num_results
            assert [[c.step, c.metrics.get("score", -1)] for c in trial.checkpoints] == [
                list(each) for each in steps[trial.trial_id]
            ]
            for checkpoint in trial.checkpoints:
                assert checkpoint.mirrored
                await reader.fetch(checkpoint)  # which verifies it
        assert State(reader.metadata.get("tick"), seen) == state
        names = {trial.trial_name for trial in reader.trials}
        named = {_directory_of(reader, t.trial_id, c.step) for t in reader.trials for c in t.checkpoints}
    keys = set(await place.listing(name))
    manifests = {key.removesuffix("/.manifest.json") for key in keys if key.endswith("/.manifest.json")}
    assert named <= manifests
    unnamed = {key for key in manifests - named if (_epoch_of(key) or 0) > lost or not lost}
    assert not unnamed, unnamed
    assert all(key.startswith(".asynctune/") or key.partition("/")[0] in names for key in keys), keys
    with mock.patch.dict(os.environ, place.direct):
        report = await verify(place.uri(name))
        garbage = await find_garbage(place.uri(name), clock=_Later())
    assert not report.problems, report.problems
    assert report.checkpoints == len(named)
    left = {leak.name.rstrip("/") for leak in garbage.leaks}
    assert manifests - named <= left, "gc does not tell all that was left behind"
    assert not named & left, "gc takes for garbage what is not"


class _Later(SystemClock):
    """Two hours on: whatever is left is old enough to be told."""

    def time(self) -> float:
        return super().time() + 7200


def _directory_of(reader: Any, trial_id: str, step: int) -> str:
    value = reader._records.get(f"checkpoint/{trial_id}/{step}")
    return CheckpointRecord.from_value(trial_id, step, value).directory


def _epoch_of(directory: str) -> int | None:
    """The epoch in the name of a checkpoint's directory; `None`: its trial was made in the same."""
    suffix = directory.rpartition("/")[2].partition("-")[2]
    return int(suffix.partition(".")[0]) if suffix else None
