"""Owns how reports are built from what a store says, and what is said of names that nothing has. Pure.

Reads an open store, never a file; whether files are there is looked up elsewhere and passed in.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Literal

from asynctune.errors import TrialNotFoundError
from asynctune.inspect.exits import MetricNotFoundError
from asynctune.inspect.fields import FIELDS, duration_s, field_value, iteration
from asynctune.inspect.report import Head, Presence, SavedState, TrialRow, Writer
from asynctune.inspect.scan import Scan
from asynctune.inspect.text import path_text, printable
from asynctune.inspect.tuned import own_objective, tuning
from asynctune.store.opening import Opening
from asynctune.store.store import ExperimentStore
from asynctune.trial import Trial

__all__ = ["build_head", "check_names", "find_trial", "no_such_name", "trial_row"]

_NEAR: Final = 3
_COMPARED: Final = 1000
_NAMES_LISTED: Final = 20


def build_head(
    store: ExperimentStore,
    driver: Mapping[str, Any] | None,
    states: Mapping[str, SavedState],
    *,
    as_of: float,
    last_change_at: float | None,
) -> Head:
    """What a store says of its experiment.

    Args:
        store: Open for reading.
        driver: Its `writer_info`, which asks the operating system whether the process lives.
        states: How far saved states are.
        as_of: The present, seconds since the Unix epoch.
        last_change_at: When the state was written last, there where it is read.
    """
    opening, metadata, total = store.opening, store.metadata, len(store.trials)
    settings, started_over = tuning(metadata, total), store.started_over
    return Head(
        location=path_text(store.location),
        name=path_text(store.name),
        experiment_id=printable(store.experiment_id),
        created_at=store.created_at,
        last_change_at=last_change_at,
        as_of=as_of,
        writer=_writer(driver, opening),
        tear=None if opening.tear is None else printable(opening.tear),
        damage=tuple(map(printable, opening.damage)),
        trials_total=total,
        metadata=metadata,
        epoch=opening.epoch,
        seq=store.stats().committed_seq,
        tuning=settings,
        states=states,
        objective=own_objective(settings, store.tracked_metric),
        started_over=started_over,
        in_place_of={new: old for old, new in started_over.items()},
        copy_uri=None if store.upload_uri is None else path_text(store.upload_uri),
        from_copy=store.copy_source is not None,
    )


def _writer(info: Mapping[str, Any] | None, opening: Opening) -> Writer:
    if info is None:
        closed_at = opening.previous_closed_at
        return Writer("closed", opening.pid, opening.hostname, opening.opened_at, closed_at)
    alive = info["alive"]
    state: Literal["live", "dead", "unknown"] = "unknown" if alive is None else "live" if alive else "dead"
    return Writer(state, info["pid"], info["hostname"], info["since"])


def trial_row(trial: Trial, head: Head, presence: Presence | None = None) -> TrialRow:
    """A trial with what reports add to it."""
    return TrialRow(
        trial=trial,
        iteration=iteration(trial),
        duration_s=duration_s(trial, head.trials_as_of),
        presence=presence,
        started_over_as=head.started_over.get(trial.trial_id),
        in_place_of=head.in_place_of.get(trial.trial_id),
    )


def find_trial(store: ExperimentStore, name: str) -> Trial:
    """The trial with this id, or with this name.

    Raises:
        TrialNotFoundError: There is none; the message has what looks most like it.
    """
    try:
        return store.get_trial(name)
    except TrialNotFoundError:
        names: dict[str, None] = {}
        for trial in store.trials:
            if trial.trial_name == name:
                return trial
            names |= {trial.trial_id: None, trial.trial_name: None}
        near = _near(name, list(names))
        hint = f"did you mean {_or(near)}?" if near else "the command `trials` lists them"
        there = f"{path_text(store.location)}, which has {len(store.trials):,}"
        msg = f"no trial {printable(name)!r} in {there}; {hint}"
        raise TrialNotFoundError(msg) from None


def _near(name: str, names: list[str]) -> list[str]:
    """Names that contain what was typed; else those that look like it, of a thousand: more would take seconds."""
    found = [each for each in names if name and name in each]
    return found[:_NEAR] or difflib.get_close_matches(name, names[:_COMPARED], _NEAR, cutoff=0.5)


def check_names(names: Iterable[str], scan: Scan, rows: Sequence[TrialRow]) -> None:
    """Refuse a column that nothing has, unless there are no results yet that could have it.

    Raises:
        MetricNotFoundError: With the names that there are.
    """
    for name in names:
        known: Mapping[str, None] = scan.settings if name.startswith("config/") else scan.metrics
        if not known or name in known or name in FIELDS:
            continue
        if all(field_value(row.trial, name, 0.0) is None for row in rows):
            raise no_such_name(name, scan)


def no_such_name(name: str, scan: Scan) -> MetricNotFoundError:
    """The error for a metric or column that no trial has, or has a number for."""
    known = list(scan.settings if name.startswith("config/") else scan.metrics)
    near = difflib.get_close_matches(name, known, n=_NEAR, cutoff=0.6)
    what = "hyperparameter" if name.startswith("config/") else "metric"
    if not known:
        return MetricNotFoundError(f"no trial has {printable(name)!r}: there is no {what} of any kind yet")
    if name in known:
        return MetricNotFoundError(f"no trial has a number as its last {printable(name)!r} (NaN is none)")
    listed = ", ".join(printable(each) for each in known[:_NAMES_LISTED])
    more = f", and {len(known) - _NAMES_LISTED} more" if len(known) > _NAMES_LISTED else ""
    hint = f"did you mean {_or(near)}? " if near else ""
    return MetricNotFoundError(
        f"no trial has the {what} {printable(name)!r}; {hint}there are: {listed}{more}"
    )


def _or(names: Sequence[str]) -> str:
    return " or ".join(printable(name) for name in names)
